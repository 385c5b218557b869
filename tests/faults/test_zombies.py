"""Workers that wake too late, share a name, or live in another hour: none does any harm."""

import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from search.home import Home
from search.study import Study, create_study
from storage.database import Database
from tests.faults.workers import (
    Crew,
    WorkerProcess,
    assert_whole,
    fingerprint,
    holders,
    tiny_study,
)
from tests.waiting import SECONDS, wait_until

FREEZES_BEFORE_COMMIT = """
import signal, sys, threading
from pathlib import Path
import sqlalchemy as sa
from search.cli import main

statement, flag = sys.argv[1], Path(sys.argv[2])

@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def note(connection, cursor, text, *_):
    if text.startswith(statement):
        connection.info["matches"] = True

@sa.event.listens_for(sa.Engine, "commit")
def freeze(connection):
    if connection.info.pop("matches", False) and flag.exists():
        flag.unlink()
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread at once

sys.argv = ["melsearch", "worker", "s"]
main()
"""
NAMESAKE = """
import os, secrets, sys
from search.cli import main

os.getpid = lambda: 7
secrets.token_hex = lambda num_bytes: "1234"
sys.argv = ["melsearch", "worker", "s"]
main()
"""
_IDLE = sa.text(
    "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity "
    "where datname = current_database() and state = 'idle in transaction'"
)
_WATCH = """
create table taken_early (resource text);
create function watch() returns trigger language plpgsql as $$
begin
    if new.token > old.token and old.holder is not null and old.expires_at > clock_timestamp() then
        insert into taken_early values (old.resource);
    end if;
    return new;
end $$;
create trigger watch before update on melsearch_lease for each row execute function watch();
"""


@pytest.mark.parametrize("statement", ["INSERT INTO trial_intermediate_values", "UPDATE trials"])
def test_worker_frozen_right_before_a_commit_writes_nothing_when_it_wakes(
    study: Study, database: Database, crew: Crew, tmp_path: Path, statement: str
) -> None:
    """It keeps its lease's row locked until the server ends its transaction; then it is refused."""
    flag = tmp_path / "flag"
    frozen = crew.run(["-c", FREEZES_BEFORE_COMMIT, statement, str(flag)])
    frozen.wait_for_epoch(2)
    flag.touch()
    wait_until(frozen.is_frozen)
    successor = crew.start()
    wait_until(lambda: holders(study) == [])

    def num_ended() -> int:  # as the server does by itself, after 30 s
        with database.transaction() as connection:
            return int(connection.execute(_IDLE).scalar_one())

    assert num_ended()
    assert successor.wait() == 0
    before = study.trials()
    frozen.send(signal.SIGCONT)
    assert frozen.wait() == 0
    assert frozen.events("lease_lost")
    assert study.trials() == before
    assert_whole(study)


def test_workers_of_one_name_are_not_taken_for_each_other(
    database: Database, home: Home, crew: Crew
) -> None:
    """The second one refuses to start; the first one's trial is its own."""
    config = tiny_study(lease={"ttl_seconds": 2 * SECONDS, "renew_seconds": 0.5})
    study = create_study(database, config, fingerprint(home))
    first = crew.run(["-c", NAMESAKE])
    first.wait_for_epoch(1)
    first.send(signal.SIGSTOP)
    second = crew.run(["-c", NAMESAKE])
    assert second.wait() == 1
    assert "-7-1234; start this one again" in second.log.read_text()
    first.send(signal.SIGCONT)
    assert first.wait() == 0
    assert_whole(study)
    assert not first.events("lease_lost")


@pytest.mark.parametrize("first", ["late", "right"])
def test_clock_that_is_hours_off_takes_no_lease_early(
    database: Database, home: Home, crew: Crew, first: str
) -> None:
    """One host is five hours behind: the other waits until the lease of its dead worker expires."""
    lease = {"ttl_seconds": 12.0, "renew_seconds": 0.5}  # longer than a worker needs to start
    study = create_study(database, tiny_study(lease=lease), fingerprint(home))
    with database.transaction() as connection:
        connection.execute(sa.text(_WATCH))

    def start(clock: str) -> WorkerProcess:
        crew.environ = late_clock() if clock == "late" else {}
        return crew.start()

    killed = start(first)
    killed.wait_for_epoch(2)
    killed.send(signal.SIGKILL)
    other = start("right" if first == "late" else "late")
    assert other.wait() == 0
    assert other.events("trial_taken_over")
    assert_whole(study)
    hours = abs(joined_at(killed) - joined_at(other)) / timedelta(hours=1)
    assert 4 < hours < 6
    with database.transaction() as connection:
        assert connection.execute(sa.text("select * from taken_early")).all() == []


def late_clock() -> dict[str, str]:
    """Return the environment of a process whose clock is five hours behind."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert found, "this test needs a library: apt-get install --no-install-recommends libfaketime"
    return {"LD_PRELOAD": str(found[0]), "FAKETIME": "-5h", "DONT_FAKE_MONOTONIC": "1"}


def joined_at(worker: WorkerProcess) -> datetime:
    """Return when a worker joined, by its own clock."""
    return datetime.fromisoformat(worker.events("worker_joined")[0]["time"])
