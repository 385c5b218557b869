"""What a worker holds, and what it takes, through an outage of a real PostgreSQL."""

from collections.abc import Iterator

import pytest

from search.holding import Keeper, Standstill
from search.reporting import Reporter
from storage.database import Database, parse_url
from storage.errors import DatabaseUnavailableError, LeaseLostError
from storage.leases import Leases
from storage.schema import ensure_schema
from tests.cutter import Cutter, cutter_before
from tests.waiting import wait_until

TTL_SECONDS = 1.5


@pytest.fixture
def reached(database: Database, database_url: str) -> Iterator[tuple[Cutter, Leases]]:
    """A database that can be cut off, and one worker's leases in it."""
    ensure_schema(database)
    with cutter_before(database_url) as (cutter, url):
        behind = Database(parse_url(url, {}))
        leases = Leases(behind, TTL_SECONDS)
        assert leases.held("") == []
        yield cutter, leases
        behind.close()


def fail_once(leases: Leases) -> None:
    """Let a call meet the outage."""
    with pytest.raises(DatabaseUnavailableError):
        leases.held("")


def test_nobody_is_robbed_after_an_outage(
    reached: tuple[Cutter, Leases], database: Database
) -> None:
    """What expired meanwhile is its holder's for one ttl more: he was cut off too."""
    cutter, leases = reached
    theirs = Leases(database, 0.2).take("trial:s:0", "b")
    assert theirs
    cutter.refuse(True)
    fail_once(leases)
    wait_until(lambda: Leases(database, 1).held("") == [])
    cutter.refuse(False)
    assert leases.take("trial:s:0", "a") is None, "the outage is just over"
    assert Leases(database, 3600).renew(theirs)
    assert leases.database.outage.lasts or leases.database.outage.seconds_since < TTL_SECONDS
    assert leases.take("trial:s:1", "a"), "what nobody held is free"
    assert Leases(database, 0.2).renew(theirs)
    assert wait_until(lambda: leases.take("trial:s:0", "a")), "after that, silence is death"


def test_one_outage_is_two_lines_in_the_log(
    reached: tuple[Cutter, Leases], caplog: pytest.LogCaptureFixture
) -> None:
    """However many calls fail, and whichever succeeds first."""
    cutter, leases = reached
    cutter.refuse(True)
    for _ in range(3):
        fail_once(leases)
    cutter.refuse(False)
    wait_until(lambda: leases.held("") == [] and not leases.database.outage.lasts)
    leases.held("")
    assert [record.message for record in caplog.records] == ["database_lost", "database_back"]


def test_woken_worker_writes_no_file_before_it_could_ask(
    reached: tuple[Cutter, Leases], database: Database
) -> None:
    """After a standstill, in an outage: it may compute, but its checkpoint has to wait."""
    cutter, leases = reached
    lease = leases.take("trial:s:0", "a")
    assert lease
    with Keeper(leases, renew_seconds=0.1) as keeper, keeper.keep(lease) as hold:
        cutter.refuse(True)
        wait_until(lambda: leases.database.outage.lasts)
        still = Standstill(lease, hold, allowed_seconds=-1.0)
        still.require_lease()
        with pytest.raises(OSError, match="can't be asked"):
            still.require_certainty()
        assert Leases(database, TTL_SECONDS).release(lease)
        cutter.refuse(False)
        assert hold.wait(30.0)
        with pytest.raises(LeaseLostError):
            still.require_certainty()


def test_presence_that_was_swept_is_said_again(
    reached: tuple[Cutter, Leases], database: Database
) -> None:
    """A worker that was cut off, and swept by another one, shows up again till its end."""
    _, leases = reached
    presence = leases.take("worker:s:a", "a")
    assert presence
    others = Leases(database, TTL_SECONDS)
    with Keeper(leases, renew_seconds=0.1) as keeper:
        with keeper.keep(presence, make=True) as lost:
            assert others.end(presence)
            wait_until(lambda: others.held("worker:s:"))
            assert not lost.is_set()
        leases.end(presence)
        assert others.held("worker:s:") == []


def test_trial_lease_that_is_gone_is_lost(reached: tuple[Cutter, Leases]) -> None:
    """A lease that ended is never made again: its trial is over."""
    _, leases = reached
    lease = leases.take("trial:s:0", "a")
    assert lease
    with Keeper(leases, renew_seconds=0.1) as keeper, keeper.keep(lease) as lost:
        leases.end(lease)
        assert lost.wait(30.0)
    assert leases.held("") == []


def test_reporter_waits_for_no_outage_and_leaves_in_one(reached: tuple[Cutter, Leases]) -> None:
    """Training goes on at once, what was kept back is sent when the database is there again."""
    cutter, leases = reached
    sent: list[list[float]] = []

    def send(values: object) -> bool:
        leases.held("")
        sent.append(list(values))  # type: ignore[call-overload]
        return len(sent) > 1

    reporter = Reporter(send, leases.database.outage, trial=0)
    with reporter.closing():
        assert not reporter.report([0.1])
        cutter.refuse(True)
        assert not reporter.report([0.1, 0.2])
        assert not reporter.report([0.1, 0.2, 0.3])
        cutter.refuse(False)
        wait_until(reporter.is_poor)
        assert sent == [[0.1], [0.1, 0.2, 0.3]]
    pending = Reporter(send, leases.database.outage, trial=1)
    cutter.refuse(True)
    with pending.closing():
        assert not pending.report([0.5])
    assert not pending.is_poor()
