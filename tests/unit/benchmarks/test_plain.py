"""Plain Optuna in the storm: what needs no database."""

import pytest

from benchmarks.chaos.plain import make_sampler


@pytest.mark.parametrize("seed", [-1, 0, 2**32, 5_000_000_000])
def test_storm_of_any_seed_has_a_sampler(seed: int) -> None:
    """NumPy refuses some of them, in a worker that would then die and be started for ever."""
    assert make_sampler(seed)
