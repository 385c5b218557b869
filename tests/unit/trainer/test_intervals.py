"""Bootstrap intervals: what they cover, and where there is none."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, norm

from trainer.intervals import estimate, estimate_difference, words_of
from trainer.measures import MEASURES
from trainer.metrics import Array, MetricUndefinedError, accuracy, roc_auc


def draw_split(rng: np.random.Generator, num_clips: int, shift: float) -> tuple[Array, Array]:
    """Draw normal scores of both classes, the fakes' `shift` above the others'."""
    targets_N = np.arange(num_clips) % 2
    return rng.normal(shift * targets_N, 1.0), targets_N


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 200 splits about 95 % have the true AUC in their interval; 88 % would be 4.5 sigma off."""
    rng = np.random.default_rng(3)
    truth = norm.cdf(1.0 / np.sqrt(2))
    intervals = [estimate(roc_auc, *draw_split(rng, 120, 1.0), seed=n) for n in range(200)]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.88 <= covered <= 0.99


def test_interval_is_scipys_for_one_class() -> None:
    """Where there are no classes to keep, SciPy's percentile bootstrap ends at the same range."""
    rng = np.random.default_rng(5)
    probs_N = rng.random(300)
    ours = estimate(accuracy, probs_N, np.ones(300, np.int64))
    theirs = bootstrap(
        [probs_N > 0.5], np.mean, n_resamples=4000, method="percentile", rng=rng
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=0.01)


def test_interval_is_narrower_for_more_clips() -> None:
    """Sixteen times the clips are about a quarter of the width."""
    rng = np.random.default_rng(7)
    few, many = (estimate(roc_auc, *draw_split(rng, num, 1.0)) for num in (100, 1600))
    assert 2.5 < (few.high - few.low) / (many.high - many.low) < 6


@pytest.mark.parametrize("num_right", [0, 10])
def test_accuracy_without_an_error_is_not_sure(num_right: int) -> None:
    """Of 5 + 5 clips that are all told, or none, the range is SciPy's exact one."""
    targets_N = np.arange(10) % 2
    log_odds_N = np.where(targets_N == 1, 2.0, -2.0) * (1 if num_right else -1)
    ours = estimate(MEASURES["accuracy"], log_odds_N, targets_N)
    theirs = binomtest(num_right, 10).proportion_ci(0.95, method="exact")
    assert ours.value == num_right / 10
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.high - ours.low > 0.3


def test_undefined_metric_names_both_reasons() -> None:
    """A class may be there, and a score be none."""
    assert words_of(None) == "undefined: a class is missing, or a score is not finite"


def test_difference_of_a_detector_to_itself_is_nothing() -> None:
    """Both are measured on the same clips."""
    log_odds_N, targets_N = draw_split(np.random.default_rng(1), 60, 1.0)
    difference = estimate_difference(roc_auc, log_odds_N, log_odds_N, targets_N)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_difference_of_detectors_that_err_alike_is_surer_than_their_intervals() -> None:
    """What makes a clip hard for both doesn't blur their difference."""
    rng = np.random.default_rng(2)
    worse_N, targets_N = draw_split(rng, 400, 1.0)
    better_N = worse_N + 0.4 * targets_N
    difference = estimate_difference(roc_auc, better_N, worse_N, targets_N)
    alone = estimate(roc_auc, better_N, targets_N)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.high - difference.low < (alone.high - alone.low) / 2


@pytest.mark.parametrize("name", MEASURES)
def test_every_metric_has_an_interval_around_it(name: str) -> None:
    """The value lies in its own interval, for all but what a resample can only raise."""
    split = draw_split(np.random.default_rng(4), 200, 1.5)
    interval = estimate(MEASURES[name], *split)  # type: ignore[index]
    biased = 0.05 if name == "ece" else 0.0
    assert interval.low - biased <= interval.value <= interval.high
    assert interval.low < interval.high


def test_one_class_has_no_interval_where_two_are_needed() -> None:
    """It is said, not made up."""
    with pytest.raises(MetricUndefinedError):
        estimate(roc_auc, np.array([1.0, 2.0]), np.array([1, 1]))
