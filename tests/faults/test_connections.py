"""How few connections workers have, so that a hundred share a server of PostgreSQL's defaults."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Event

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from search.claim import Claims, worker_prefix
from search.holding import Keeper, until_told
from search.study import Study, create_study, open_study
from search.worker import _present
from storage.database import Database, parse_url
from storage.leases import Leases
from storage.outage import persist
from tests.faults.workers import Crew, assert_whole, tiny_study
from tests.waiting import wait_until

NUM_WORKERS = 100
_NUM_CONNECTIONS = sa.text(
    "select count(*) from pg_stat_activity where application_name = 'melsearch' "
    "and datname = current_database()"
)


@pytest.fixture
def watcher(database_url: str) -> Iterator[sa.Connection]:
    """A connection of a stranger, which is none of melsearch's."""
    engine = sa.create_engine(parse_url(database_url, {}), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_worker_has_two_connections_at_most_and_mostly_none(
    study: Study, crew: Crew, watcher: sa.Connection
) -> None:
    """One to work and one to renew, only while there is something to say."""
    worker = crew.start()
    seen: Counter[int] = Counter()

    def has_left() -> bool:
        seen[watcher.execute(_NUM_CONNECTIONS).scalar_one()] += 1
        return worker.process.poll() is not None

    wait_until(has_left, poll_seconds=0.01)
    assert worker.wait() == 0
    assert_whole(study)
    assert max(seen) in (1, 2)
    assert seen[0] > seen.total() / 2, seen


def test_hundred_workers_share_a_server_of_a_hundred_connections(
    database: Database, database_url: str, watcher: sa.Connection
) -> None:
    """Each claims, reports and ends one trial, while it renews that it is there."""
    assert watcher.execute(sa.text("show max_connections")).scalar_one() == str(NUM_WORKERS)
    study = create_study(database, tiny_study(trials=NUM_WORKERS), "data")
    stop = Event()

    def work(name: str) -> None:
        with closing(Database(parse_url(database_url, {}))) as database:
            study = persist(lambda: open_study(database, "s"), stop)
            leases = Leases(database, 60)
            claims = Claims(study, leases, name, "cpu")
            with Keeper(leases, 1.0) as keeper, _present(study, leases, keeper, name):
                claimed = claims.next_trial(stop)
                assert claimed is not None
                with keeper.keep(claimed.lease):
                    until_told(lambda: claims.report(claimed, [0.25]), stop)
                    until_told(lambda: claims.finish(claimed, TrialState.COMPLETE, 0.5), stop)

    with ThreadPoolExecutor(NUM_WORKERS) as executor:
        list(executor.map(work, map(str, range(NUM_WORKERS))))
    trials = study.trials()
    assert [trial.number for trial in trials] == list(range(NUM_WORKERS))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert all(trial.intermediate_values == {1: 0.25} for trial in trials)
    held = Leases(database, 60).held
    assert [x for x in held("") if not x.resource.startswith(worker_prefix("s"))] == []
    wait_until(lambda: held("") == [])  # who can't say that it left is missed within a ttl
