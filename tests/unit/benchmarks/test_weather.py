"""The storm's weather: the same for a seed, and never all at once."""

from itertools import islice, pairwise

from benchmarks.chaos.weather import KINDS, forecast


def test_seed_fixes_the_weather() -> None:
    """Both arms, and whoever repeats a storm, get the same events at the same instants."""
    storms = [list(forecast(seed, 600.0, 8, 6.0)) for seed in (1, 1, 2)]
    assert storms[0] == storms[1]
    assert storms[0] != storms[2]


def test_long_storm_has_every_kind_and_ends_in_time() -> None:
    """Every kind comes, at every worker, and all is over when the storm is."""
    events = list(forecast(3, 1800.0, 8, 6.0))
    assert {event.kind for event in events} == set(KINDS)
    assert {event.worker for event in events} == set(range(8))
    assert all(event.at_seconds + event.lasts_seconds <= 1800.0 for event in events)


def test_nothing_begins_during_an_outage() -> None:
    """Two outages at once would be one; and there are seconds between any two events."""
    for event, following in pairwise(islice(forecast(4, 1800.0, 8, 6.0), 200)):
        over = event.at_seconds
        if KINDS[event.kind].stops_others:
            over += event.lasts_seconds
        assert following.at_seconds >= over + 3.0
