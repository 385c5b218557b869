"""A database that doesn't answer, is full or moves: the training goes on, and nothing is lost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from search.claim import ClaimedTrial, Claims
from search.home import Home
from search.study import Study, create_study, open_study
from storage.database import Database, parse_url
from storage.embedded import ensure_running
from storage.leases import Leases
from tests.command import user_folder
from tests.cutter import cutter_before
from tests.disk import fill, small_disk
from tests.faults.workers import (
    EPOCHS,
    Crew,
    assert_one_outage,
    assert_whole,
    crew_of,
    fingerprint,
    holders,
    tiny_study,
)
from tests.servers import kill_server, move_log, own_server, promote, standby_of
from tests.waiting import SECONDS, wait_until


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for servers."""
    with user_folder() as folder:
        yield folder


@contextmanager
def study_on(url: str, home: Home, trials: int = 1) -> Iterator[Study]:
    """Create a study in the database of that URL, and close it after."""
    with closing(Database(parse_url(url, {}))) as database:
        yield create_study(database, tiny_study(trials=trials), fingerprint(home))


def test_black_hole_stops_no_training(study: Study, database_url: str, crew: Crew) -> None:
    """Nothing comes through for longer than a lease; it trains to its end and tells all later."""
    with cutter_before(database_url) as (cutter, crew.url):
        worker = crew.start()
        worker.wait_for_epoch(2)
        cutter.hold_idle()
        worker.wait_for_epoch(EPOCHS)
        worker.wait_for("database_lost")
        wait_until(lambda: holders(study) == [])
        cutter.hold(False)
        assert worker.wait() == 0
    assert_whole(study)
    assert_one_outage(worker)


def test_server_that_is_full_of_strangers_stops_no_training(
    folder: Path, own_home: Home, tmp_path: Path
) -> None:
    """ "Too many clients" is an outage like any other."""
    with own_server(folder, "max_connections = 8") as url, ExitStack() as strangers:
        server = sa.create_engine(parse_url(url, {}), isolation_level="AUTOCOMMIT")
        with server.connect() as connection:  # as others than the superuser, who has places kept
            connection.execute(sa.text("create role ann login"))
            connection.execute(sa.text("alter database postgres owner to ann"))
        server.dispose()
        url = url.replace("//postgres@", "//ann@")
        crowd = sa.create_engine(parse_url(url, {}), pool_size=9)

        def crowd_in() -> bool:
            with suppress(OperationalError):
                while True:
                    strangers.enter_context(crowd.connect())
            return True

        with study_on(url, own_home) as study, crew_of(url, own_home, tmp_path) as crew:
            worker = crew.start()
            worker.wait_for_epoch(2)
            wait_until(lambda: crowd_in() and worker.events("database_lost"))
            worker.train_on()
            strangers.close()
            crowd.dispose()
            assert "slots are reserved" in worker.events("database_lost")[0]["reason"]
            assert worker.wait() == 0
            assert_whole(study)
            assert_one_outage(worker)


def test_fail_over_to_a_standby_stops_no_training(
    folder: Path, own_home: Home, tmp_path: Path
) -> None:
    """The primary is killed, the standby refuses to write at first, then it is promoted."""
    primary, standby = folder / "primary", folder / "standby"
    with (
        own_server(primary) as url,
        study_on(url, own_home, trials=2),
        cutter_before(url) as (cutter, through),
        crew_of(through, own_home, tmp_path) as crew,
        standby_of(primary, standby) as new_url,
    ):
        worker = crew.start()
        worker.wait_for_epoch(2)
        kill_server(primary)
        cutter.target = standby
        worker.wait_for("database_lost")
        log = standby / "server.log"
        wait_until(lambda: "in a read-only transaction" in log.read_text())
        worker.train_on()
        promote(standby)
        assert worker.wait() == 0
        with closing(Database(parse_url(new_url, {}))) as database:
            assert_whole(open_study(database, "s"), num_trials=2)
        assert_one_outage(worker)


def test_deadlock_is_repeated(database: Database, study: Study) -> None:
    """The server ends one of two transactions that wait for each other: ours is done again."""
    claimed = Claims(study, Leases(database, 60), "ann", "cpu").claim()
    assert isinstance(claimed, ClaimedTrial)

    def write() -> None:
        with Leases(database, 60).fence(claimed.lease):
            claimed.trial.set_user_attr("key", "value")

    stranger = sa.create_engine(database.url)
    with ThreadPoolExecutor(1) as executor, stranger.connect() as other:
        other.execute(sa.text("set deadlock_timeout = '1min'"))  # so that it is not the victim
        other.execute(sa.text("select from trials for update"))
        writing = executor.submit(write)
        wait_until(lambda: count(database, "pg_locks where not granted"))
        other.execute(sa.text("select from melsearch_lease for update"))
        other.commit()
        writing.result(SECONDS)
    stranger.dispose()
    assert study.trials()[0].user_attrs["key"] == "value"
    ended = "pg_stat_database where datname = current_database() and deadlocks = 1"
    wait_until(lambda: count(database, ended))


def count(database: Database, rows: str) -> int:
    """Count such rows."""
    with database.transaction() as connection:
        query = f"select count(*) from {rows}"  # noqa: S608  (a constant of ours)
        return int(connection.execute(sa.text(query)).scalar_one())


def test_full_disk_of_the_database_stops_no_training(
    folder: Path, own_home: Home, tmp_path: Path
) -> None:
    """Reports that the server has no space for wait until it has."""
    with (
        small_disk(folder, "100m") as disk,
        own_server(disk / "postgres") as url,
        study_on(url, own_home) as study,
        crew_of(url, own_home, tmp_path) as crew,
    ):
        with study.database.transaction() as connection:  # a few reports shall need a new page
            table = "trial_intermediate_values"
            connection.execute(sa.text(f"alter table {table} set (fillfactor = 10)"))
        worker = crew.start()
        worker.wait_for_epoch(2)
        filler = fill(folder)
        lost = worker.wait_for("database_lost")
        assert "No space left on device" in lost["reason"]
        worker.train_on()
        filler.unlink()
        assert worker.wait() == 0
        assert_whole(study)
        assert_one_outage(worker)


def test_full_disk_of_the_write_ahead_log_stops_no_training(
    folder: Path, own_home: Home, tmp_path: Path
) -> None:
    """The server itself ends by it, and can't start; once it can, all is told."""
    with (
        user_folder() as log,
        small_disk(log, "64m") as disk,
        own_server(folder, "min_wal_size = 32MB", "max_wal_size = 32MB") as url,
    ):
        move_log(folder, disk)
        with study_on(url, own_home) as study, crew_of(url, own_home, tmp_path) as crew:
            worker = crew.start()
            worker.wait_for_epoch(2)
            filler = fill(disk)
            write_until_it_breaks(url)
            wait_until(lambda: "PANIC" in (folder / "server.log").read_text())
            worker.wait_for("database_lost")
            worker.train_on()
            filler.unlink()
            ensure_running(folder)  # as `up` and Compose do
            assert worker.wait() == 0
            assert_whole(study)
            assert_one_outage(worker)


def write_until_it_breaks(url: str) -> None:
    """Write so much into a database that its log needs new files."""
    engine = sa.create_engine(parse_url(url, {}), isolation_level="AUTOCOMMIT")
    with pytest.raises(OperationalError), engine.connect() as connection:
        while True:
            query = "select repeat('x', 2000) from generate_series(1, 5000)"
            connection.execute(sa.text(f"create table if not exists ballast as {query}"))
            connection.execute(sa.text("drop table ballast"))
    engine.dispose()
