"""The storm's picture."""

from benchmarks.chaos.timeline import _stretches


def test_close_reports_become_one_bar() -> None:
    """A bar for each report would be a file of megabytes; a gap stays visible."""
    assert list(_stretches([], 1.0)) == []
    assert list(_stretches([0.0, 0.5, 1.5, 4.0], 1.0)) == [(0.0, 1.5), (4.0, 4.0)]
