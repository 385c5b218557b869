"""Backup and restore of the service, by the commands of docs/operations.md."""

import subprocess

from tests.compose.stack import Stack, give_to
from tests.compose.test_service import assert_left_with_0, assert_whole

RUNS = ".melsearch/runs"
DUMP = ("exec", "--no-TTY", "db", "pg_dump", "-U", "melsearch", "--no-owner", "melsearch")
RESTORE = (
    "exec", "--no-TTY", "db", "psql", "-U", "melsearch", "-q", "-v", "ON_ERROR_STOP=1", "-1",
    "melsearch",
)  # fmt: skip


def test_restored_service_goes_on(stack: Stack) -> None:
    """Containers, database and runs are destroyed in mid-run; all trials go on from the backup."""
    stack.write_study("restored", trials=3, epochs=100)
    stack.up(2)
    stack.wait_for_epoch(2, num_trials=2)
    stack.compose("stop", "--timeout", "10", "worker")
    dump = stack.compose(*DUMP)
    archive = stack.folder / "runs.tgz"
    tar("-czf", archive, "-C", stack.runs, RUNS)
    before = stack.status()
    stack.compose("down", "--volumes", "--timeout=5")
    lost = stack.folder / "lost"
    stack.runs.rename(lost)
    stack.runs.mkdir()
    tar("--numeric-owner", "-xpzf", archive, "-C", stack.runs)
    for folder in (stack.runs, stack.runs / ".melsearch"):
        give_to(folder, "1000:1000")
    stack.compose("up", "--detach", "--wait", "db")
    stack.compose(*RESTORE, text=dump)
    assert stack.status() == before
    stack.up(2)
    stack.wait_for_end()
    assert_left_with_0(stack)
    assert_whole(stack.status(), 3)
    assert len(stack.events("training_resumed")) == 2


def test_dump_is_restored_over_what_is_there(stack: Stack) -> None:
    """The database is emptied first; a second restore, which isn't whole, changes nothing."""
    stack.write_study("kept", trials=1, epochs=2)
    stack.up(1)
    stack.wait_for_end()
    dump = stack.compose(*DUMP)
    stack.compose("stop", "dashboard")
    stack.compose("exec", "--no-TTY", "db", "dropdb", "-U", "melsearch", "--force", "melsearch")
    stack.compose("exec", "--no-TTY", "db", "createdb", "-U", "melsearch", "melsearch")
    stack.compose(*RESTORE, text=dump)
    assert_whole(stack.status(), 1)
    again = stack.run(*RESTORE, text=dump)
    assert again.returncode != 0
    assert "already exists" in again.stderr
    assert_whole(stack.status(), 1)


def tar(*arguments: object) -> None:
    """Run tar, which must succeed."""
    subprocess.run(["tar", *map(str, arguments)], check=True)
