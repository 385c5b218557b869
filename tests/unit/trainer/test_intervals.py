"""Bootstrap intervals: what they cover, and where there is none."""

from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, norm

from trainer.intervals import RATES, estimate, estimate_difference, words_of
from trainer.measures import MEASURES
from trainer.metrics import Array, MetricUndefinedError, accuracy, roc_auc
from trainer.objectives import Objective


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


def separated(num_real: int, num_fake: int, sign: int = 1) -> tuple[Array, Array]:
    """Return clips that are all told, or with -1 none; their scores are as different as can be."""
    targets_N = np.repeat([0, 1], [num_real, num_fake])
    return sign * (np.arange(len(targets_N)) - num_real + 0.5), targets_N


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("name", "num_draws"),
    [("accuracy", 12), ("balanced_accuracy", 10), ("auc", 5), ("eer", 5), ("tpr_at_fpr_1e-2", 5)],
)
def test_metric_without_a_mistake_is_not_sure(name: Objective, num_draws: int, sign: int) -> None:
    """Of 7 + 5 clips that are all told, or none, the range is SciPy's exact one of some draws."""
    ours = estimate(MEASURES[name], *separated(7, 5, sign))
    share = ours.value if name != "eer" else 1 - ours.value
    assert share == (sign == 1)
    theirs = binomtest(num_draws * round(ours.value), num_draws).proportion_ci(0.95, "exact")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.high - ours.low > 0.2


def test_detection_cost_without_a_mistake_is_not_sure() -> None:
    """At most what an equal error rate at its limit costs, which few clips can't tell from 1."""
    assert astuple(estimate(MEASURES["min_dcf"], *separated(5, 5))) == (0, 0, 1)
    eer = estimate(MEASURES["eer"], *separated(40, 60)).high
    cost = estimate(MEASURES["min_dcf"], *separated(40, 60)).high
    assert cost == pytest.approx((0.95 * eer + 0.5 * eer) / 0.5)
    assert cost < 0.3


@pytest.mark.parametrize("name", [name for name in RATES if "accuracy" not in name])
def test_detector_beyond_the_range_seldom_makes_no_mistake(name: Objective) -> None:
    """Of 20,000 splits at most 5 % are told as well by one whose errors are just beyond it.

    Errors are fakes below all bona fide clips, bona fide clips above all fakes, or both alike;
    for a TPR the fakes alone, as it is that of the threshold which the bona fide clips set.
    """
    measure, rng = MEASURES[name], np.random.default_rng(6)
    found = estimate(measure, *separated(40, 40))
    for errs in [(1, 0)] if name.startswith("tpr") else [(1, 0), (0, 1), (1, 1)]:
        values = (measure(*outliers(*np.multiply(errs, num))) for num in range(1001))
        beyond = next(num for num, x in enumerate(values) if not found.low <= x <= found.high)
        errors = rng.binomial(40, np.multiply(errs, beyond / 1001), (20_000, 2))
        assert np.mean((errors == 0).all(axis=1)) <= 0.05


def outliers(num_missed: int, num_alarms: int) -> tuple[Array, Array]:
    """Return two classes of 1001 clips, so many of which lie beyond all of the other class."""
    ranks = np.arange(1001)
    real_N = np.where(ranks < num_alarms, 2.0, 0.0)
    fake_N = np.where(ranks < num_missed, -1.0, 1.0)
    return np.concatenate([real_N, fake_N]), np.repeat([0, 1], 1001)


def test_useless_detection_cost_is_not_sure() -> None:
    """A minimum of 1, which most fakes below most bona fide clips have, is held by Hoeffding."""
    log_odds_N, targets_N = draw_split(np.random.default_rng(8), 200, -1.0)
    found = estimate(MEASURES["min_dcf"], log_odds_N, targets_N)
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - np.sqrt((1.9**2 + 1) / 100 * np.log(20) / 2))


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
