"""When the log says that the database is lost, and when that it is back."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.outage import Outage


def test_outage_for_one_thread_ends_with_that_threads_success(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another one gets through all the while, as on a full disk: two lines, not two a try."""
    outage = Outage()
    outage.ends()
    with ThreadPoolExecutor(1) as reporter:
        for _ in range(3):
            reporter.submit(outage.begins, "no space left").result()
            outage.ends()
            assert outage.lasts
        reporter.submit(outage.ends).result()
    assert not outage.lasts
    assert [record.message for record in caplog.records] == ["database_lost", "database_back"]


def test_outage_ends_without_who_gave_up(caplog: pytest.LogCaptureFixture) -> None:
    """A thread that has ended will not try again, and keeps nobody waiting."""
    outage = Outage()
    outage.ends()
    with ThreadPoolExecutor(1) as reporter:
        reporter.submit(outage.begins, "no space left").result()
    outage.ends()
    assert not outage.lasts
    assert [record.message for record in caplog.records] == ["database_lost", "database_back"]


def test_database_that_was_never_reached_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Who starts without it says so in other ways."""
    outage = Outage()
    outage.begins("connection refused")
    assert not outage.lasts
    outage.ends()
    assert caplog.records == []
