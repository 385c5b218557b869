"""How sure a metric is: intervals over the clips of a split, nearly all by bootstrap."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.measures import MEASURES, Measure
from trainer.metrics import Array

# Shape suffixes: N clips, R resamples.

NUM_RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A metric's value, and the range that holds the true one in `LEVEL` of all splits."""

    value: float
    low: float
    high: float


def estimate(
    measure: Measure, log_odds_N: Array, targets_N: Array, *, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Return the metric of a split with its percentile interval.

    Where an accuracy is 0 or 1 all resamples are alike, so its range is Clopper and Pearson's.
    Clips are drawn anew within each class, as many as there are, so that no resample lacks one.
    Equal seeds draw the same clips, also for another metric. Clips of one speaker or of one attack
    are no independent draws: on other speakers or attacks the metric may lie far outside.

    Raises:
        MetricUndefinedError: the metric has no value for this split.
    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13; Clopper and
    Pearson 1934, The use of confidence or fiducial limits illustrated in the case of the binomial.
    """
    log_odds_N, targets_N = np.asarray(log_odds_N), np.asarray(targets_N)

    def of_clips(drawn_N: NDArray[np.int64]) -> float:
        return measure(log_odds_N[drawn_N], targets_N[drawn_N])

    if measure is MEASURES["accuracy"] and (share := measure(log_odds_N, targets_N)) in (0, 1):
        return _of_clips_alike(share, len(targets_N), level)
    return _bootstrap(of_clips, targets_N, level, seed)


def estimate_difference(
    measure: Measure,
    log_odds_N: Array,
    others_N: Array,
    targets_N: Array,
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Return by how much the first detector's metric is above the other's on the same clips.

    Both are measured on the same resamples, so what makes a clip hard for both cancels out.

    Raises:
        MetricUndefinedError: the metric has no value for this split.
    """
    log_odds_N, others_N = np.asarray(log_odds_N), np.asarray(others_N)
    targets_N = np.asarray(targets_N)

    def of_clips(drawn_N: NDArray[np.int64]) -> float:
        first = measure(log_odds_N[drawn_N], targets_N[drawn_N])
        return first - measure(others_N[drawn_N], targets_N[drawn_N])

    return _bootstrap(of_clips, targets_N, level, seed)


def words_of(interval: Interval | None) -> str:
    """Return a metric with its interval, such as `0.812 (0.764 to 0.858)`."""
    if interval is None:
        return "undefined: a class is missing, or a score is not finite"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _of_clips_alike(share: float, num_clips: int, level: float) -> Interval:
    """Return a share that is 0 or 1 with the other shares that may well come to it."""
    furthest = ((1 - level) / 2) ** (1 / num_clips)
    return Interval(1.0, furthest, 1.0) if share else Interval(0.0, 0.0, 1 - furthest)


def _bootstrap(
    of_clips: Callable[[NDArray[np.int64]], float], targets_N: Array, level: float, seed: int
) -> Interval:
    """Return a statistic of all clips, with the percentiles of it over the resamples."""
    value = of_clips(np.arange(len(targets_N)))
    values = [of_clips(drawn_N) for drawn_N in _resamples(targets_N, seed)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _resamples(targets_N: Array, seed: int) -> NDArray[np.int64]:
    """Return the clips of each resample (R, N), each class drawn from itself."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(targets_N == target) for target in np.unique(targets_N)]
    drawn = [rng.choice(clips, (NUM_RESAMPLES, len(clips))) for clips in members]
    return np.concatenate(drawn, axis=1)
