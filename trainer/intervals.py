"""How sure a metric is: intervals over the clips of a split, by bootstrap where clips differ."""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.measures import MEASURES, Measure
from trainer.metrics import COST_OF_ALL_PASSED, COST_OF_ALL_REFUSED, Array
from trainer.objectives import Objective

# Shape suffixes: N clips, R resamples.

NUM_RESAMPLES = 1000
LEVEL = 0.95
RATES: tuple[Objective, ...] = (
    "accuracy", "balanced_accuracy", "auc", "eer", "tpr_at_fpr_1e-2", "tpr_at_fpr_1e-3", "min_dcf",
)  # fmt: skip
"""Those that clips without a mistake take to 0 or 1, and whose resamples are then alike."""
ROUNDING = 1e-9


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

    Clips are drawn anew within each class, as many as there are, so that no resample lacks one.
    Equal seeds draw the same clips, also for another metric. Clips of one speaker or of one attack
    are no independent draws: on other speakers or attacks the metric may lie far outside.

    Where all resamples put one of RATES at 0 or 1, the range reaches to the furthest value with
    which so many clips may well be told without a mistake, or all wrongly: see `_of_clips_alike`.

    Raises:
        MetricUndefinedError: the metric has no value for this split.
    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13.
    """
    log_odds_N, targets_N = np.asarray(log_odds_N), np.asarray(targets_N)

    def of_clips(drawn_N: NDArray[np.int64]) -> float:
        return measure(log_odds_N[drawn_N], targets_N[drawn_N])

    found = _bootstrap(of_clips, targets_N, level, seed)
    name = next((name for name in RATES if MEASURES[name] is measure), None)
    for bound in (0, 1):
        if name is not None and all(abs(x - bound) < ROUNDING for x in astuple(found)):
            return _of_clips_alike(name, bound, targets_N, level)
    return found


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


def _of_clips_alike(name: Objective, bound: int, targets_N: Array, level: float) -> Interval:
    """Return a metric that is 0 or 1 with the other values that may well come to it.

    `furthest` is Clopper and Pearson's limit for a share that n of n draws came to. With m clips
    in the smaller class, a detector beyond it comes to the bound in at most 1 - `level` of all
    splits (but for EER and min_dcf in half of these):

    - accuracy: n is all clips. Balanced accuracy b: no mistake has a chance of b ** 2m at most.
    - AUC: separated classes have m disjoint pairs in order, each with a chance of the AUC.
    - EER e: around the threshold where both errors are e, classes are separated only if no fake
      lies below it or no bona fide clip above: a chance of 2 (1 - e) ** m at most.
    - TPR: of the threshold that these bona fide clips set, above which each fake lies with this
      chance. How near its FPR is to the wanted one depends on how many set it.
    - min_dcf 0: at most what the threshold of equal errors costs. With 1 the classes need not be
      separated, so it is Hoeffding's limit of both errors, weighted, at the best threshold.

    Source: Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the
    case of the binomial; Hoeffding 1963, Probability inequalities for sums of bounded random
    variables, theorem 2.
    """
    num_real, num_fake = (int((targets_N == target).sum()) for target in (0, 1))
    fewest = min(num_real, num_fake)
    num_draws = {"accuracy": len(targets_N), "balanced_accuracy": 2 * fewest}.get(name, fewest)
    furthest = ((1 - level) / 2) ** (1 / num_draws)
    if name == "min_dcf":
        unit = min(COST_OF_ALL_REFUSED, COST_OF_ALL_PASSED)
        refused, passed = COST_OF_ALL_REFUSED / unit, COST_OF_ALL_PASSED / unit
        if bound:
            spread = refused**2 / num_real + passed**2 / num_fake
            furthest = max(0.0, 1 - math.sqrt(spread * -math.log(1 - level) / 2))
        else:
            furthest = max(0.0, 1 - (refused + passed) * (1 - furthest))
    return Interval(1.0, furthest, 1.0) if bound else Interval(0.0, 0.0, 1 - furthest)


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
