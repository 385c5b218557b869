"""Leases on a real PostgreSQL."""

import threading

import pytest
import sqlalchemy as sa
from optuna.study import StudyDirection

from storage.database import Database, parse_url
from storage.errors import LeaseLostError
from storage.leases import Lease, Leases
from storage.schema import ensure_schema
from storage.trials import DurableStorage
from tests.waiting import wait_until


@pytest.fixture
def leases(database: Database) -> Leases:
    """A lease table whose leases never expire within a test."""
    leases = Leases(database, ttl_seconds=3600)
    ensure_schema(database)
    return leases


def expire(database: Database, lease: Lease) -> None:
    """Let a lease end as if its holder had been dead for a day, and the server up for longer."""
    with database.engine.begin() as connection:
        connection.execute(
            sa.text(
                "update melsearch_lease set expires_at = now() - interval '1 day'"
                " where resource = :resource"
            ),
            {"resource": lease.resource},
        )


def test_free_resource_is_taken_once(leases: Leases) -> None:
    """A second worker gets nothing while the first holds the lease."""
    lease = leases.take("trial:s:1", "a")
    assert lease == Lease("trial:s:1", "a", token=1, attempts=0)
    assert leases.take("trial:s:1", "b") is None


def test_expired_lease_is_taken_over_with_a_higher_token(database: Database) -> None:
    """A takeover from a dead holder raises the token and counts as an attempt."""
    leases = Leases(database, ttl_seconds=0.05)
    ensure_schema(database)
    assert leases.take("trial:s:1", "a")
    taken = wait_until(lambda: leases.take("trial:s:1", "b"))
    assert (taken.token, taken.attempts) == (2, 1)


def test_restart_of_the_server_gives_every_holder_a_ttl(leases: Leases, database: Database) -> None:
    """A lease that ended before the server was up for its holder's ttl is not taken over yet.

    Studies with other ttls share the GPUs: the taker's does not count.
    """
    hasty = Leases(database, ttl_seconds=0.001)
    lease, short = leases.take("gpu:a:0", "a"), hasty.take("gpu:b:0", "b")
    assert lease
    assert short
    expire(database, lease)
    expire(database, short)
    assert hasty.take("gpu:a:0", "c") is None, "this server is younger than a's ttl"
    assert leases.take("gpu:b:0", "c")
    assert leases.renew(lease)


def test_released_lease_is_taken_at_once_without_an_attempt(leases: Leases) -> None:
    """Giving a trial back costs it nothing, and the next worker need not wait."""
    lease = leases.take("trial:s:1", "a")
    assert lease
    assert leases.release(lease)
    assert leases.take("trial:s:1", "b") == Lease("trial:s:1", "b", token=2, attempts=0)


def test_abandoned_lease_is_taken_at_once_and_counts(leases: Leases) -> None:
    """Giving up is as a death that nobody waits for; the server's age doesn't matter."""
    lease = leases.take("trial:s:1", "a")
    assert lease
    assert leases.abandon(lease)
    assert leases.held("trial:") == []
    leases.release_all("a")
    assert not leases.renew(lease)
    assert not leases.release(lease)
    assert leases.take("trial:s:1", "b") == Lease("trial:s:1", "b", token=3, attempts=1)
    assert not leases.abandon(lease)


def test_lost_lease_neither_renews_nor_fences(leases: Leases) -> None:
    """Whoever was taken over can do nothing more with the lease."""
    old = leases.take("trial:s:1", "a")
    assert old
    leases.release(old)
    assert leases.take("trial:s:1", "b")
    assert not leases.renew(old)
    assert not leases.release(old)
    assert not leases.end(old)
    with pytest.raises(LeaseLostError), leases.fence(old):
        pytest.fail("the fence let a zombie in")


def test_fence_lets_no_write_of_a_zombie_pass(leases: Leases, database: Database) -> None:
    """Whoever is taken over inside the fence writes nothing more, though it had passed before."""
    storage = DurableStorage(database)
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE])
    lease = leases.take("trial:s:1", "a")
    assert lease
    with pytest.raises(LeaseLostError), leases.fence(lease):
        storage.set_study_user_attr(study_id, "wrote", "in time")
        expire(database, lease)
        assert Leases(database, ttl_seconds=3600).release(lease)
        assert leases.take("trial:s:1", "b")
        storage.set_study_user_attr(study_id, "wrote", "too late")
    assert storage.get_study_user_attrs(study_id) == {"wrote": "in time"}


def test_fence_holds_a_takeover_back(database: Database, database_url: str) -> None:
    """A takeover waits until a fenced write that has begun is committed."""
    leases = Leases(database, ttl_seconds=0.001)
    storage = DurableStorage(database)
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE])
    lease = leases.take("trial:s:1", "a")
    assert lease
    taken: list[Lease | None] = []
    thread = threading.Thread(target=lambda: taken.append(leases.take("trial:s:1", "b")))
    waiting = sa.text("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
    observer = sa.create_engine(parse_url(database_url, {}), isolation_level="AUTOCOMMIT")

    @sa.event.listens_for(storage.scoped_session.session_factory, "before_commit")
    def begin_a_takeover(_: object) -> None:
        thread.start()
        with observer.connect() as connection:
            wait_until(lambda: connection.execute(waiting).scalar())
        assert not taken

    with leases.fence(lease):
        storage.set_study_user_attr(study_id, "wrote", "in time")
    thread.join()
    observer.dispose()
    assert [lease and lease.holder for lease in taken] == ["b"]


def test_ended_lease_is_forgotten(leases: Leases) -> None:
    """An ended lease leaves no row behind."""
    lease = leases.take("worker:s:a", "a")
    assert lease
    assert [held.holder for held in leases.held("worker:s:")] == ["a"]
    assert leases.end(lease)
    assert leases.held("worker:s:") == []


def test_dead_holder_is_neither_listed_nor_kept(leases: Leases, database: Database) -> None:
    """Who is silent for longer than its lease is not there, however young the server is."""
    lease = Leases(database, ttl_seconds=0.001).take("worker:s:dead", "dead")
    assert lease
    assert leases.take("worker:s:alive", "alive")
    expire(database, lease)
    assert [held.holder for held in leases.held("worker:s:")] == ["alive"]
    leases.sweep("worker:s:")
    with database.engine.begin() as connection:
        count = connection.execute(sa.text("select count(*) from melsearch_lease"))
        assert count.scalar() == 1


def test_held_lists_one_prefix_literally(leases: Leases) -> None:
    """A study's name that looks like a pattern lists its own leases only."""
    assert leases.take("trial:a_b:1", "x")
    assert leases.take("trial:aXb:1", "y")
    assert [held.holder for held in leases.held("trial:a_b:")] == ["x"]


def test_many_threads_never_hold_one_resource_together(leases: Leases) -> None:
    """Of many takers at the same moment exactly one wins."""
    won: list[Lease] = []

    def take(holder: str) -> None:
        if lease := leases.take("gpu:0:0", holder):
            won.append(lease)

    threads = [threading.Thread(target=take, args=(str(number),)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
