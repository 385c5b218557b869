"""PostgreSQL servers of a test's own: with settings, killed, and with a standby."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.embedded import _own, _pg_ctl, _run, embedded_server, ensure_running


@contextmanager
def own_server(folder: Path, *settings: str) -> Iterator[str]:
    """Run a server with these lines in its postgresql.conf; yields its URL."""
    with embedded_server(folder) as url:
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write("".join(f"{setting}\n" for setting in settings))
        _pg_ctl(folder, "restart", "--wait", "--log=server.log")
        yield url


@contextmanager
def standby_of(primary: Path, folder: Path) -> Iterator[str]:
    """Run a server that follows another one and only reads until it is promoted."""
    folder.mkdir(mode=0o700)
    _own(folder)
    _run(
        "pg_basebackup", f"--host={primary}", "--username=postgres", f"--pgdata={folder / 'data'}",
        "--write-recovery-conf", "--checkpoint=fast", "--no-sync",
    )  # fmt: skip
    with embedded_server(folder) as url:
        yield url


def move_log(folder: Path, disk: Path) -> None:
    """Let a server keep its write-ahead log on another disk."""
    _pg_ctl(folder, "stop", "--wait", "--mode=fast")
    disk.chmod(0o700)
    _own(disk)
    log = folder / "data" / "pg_wal"
    shutil.copytree(log, disk / "pg_wal")
    for path in (disk / "pg_wal", *(disk / "pg_wal").rglob("*")):
        _own(path)
    shutil.rmtree(log)
    log.symlink_to(disk / "pg_wal")
    ensure_running(folder)


def promote(folder: Path) -> None:
    """Let a standby take its primary's place."""
    _pg_ctl(folder, "promote", "--wait")


def kill_server(folder: Path) -> None:
    """Kill a server's first process, on whose death all the others leave."""
    pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
