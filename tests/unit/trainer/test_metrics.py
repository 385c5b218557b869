"""Metrics: values worked out by hand, and what happens where a metric is undefined."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.measures import MEASURES, summarize
from trainer.metrics import (
    MetricUndefinedError,
    accuracy,
    balanced_accuracy,
    brier,
    cllr,
    equal_error_rate,
    expected_calibration_error,
    log_loss,
    min_dcf,
    roc_auc,
    tpr_at_fpr,
)
from trainer.objectives import Objective
from trainer.prior import prior_log_odds

NEED_BOTH_CLASSES = {
    "balanced_accuracy", "auc", "eer", "tpr_at_fpr_1e-2", "tpr_at_fpr_1e-3", "min_dcf", "cllr",
}  # fmt: skip
NAMES = NEED_BOTH_CLASSES | {"loss", "accuracy", "nll", "ece", "brier"}
Metric = Callable[[NDArray[np.float64], NDArray[np.int64]], float]


def targets(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def scores(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def test_perfect_scores_have_no_error() -> None:
    """Scores that separate the classes reach every metric's best value."""
    clean = scores(-3, -2, 2, 3), targets(0, 0, 1, 1)
    assert roc_auc(*clean) == 1
    assert equal_error_rate(*clean) == 0
    assert tpr_at_fpr(*clean) == 1


def test_reversed_scores_have_nothing_but_errors() -> None:
    """A detector that takes real for fake is at the other end."""
    reversed_ = scores(3, 2, -2, -3), targets(0, 0, 1, 1)
    assert roc_auc(*reversed_) == 0
    assert equal_error_rate(*reversed_) == 1
    assert tpr_at_fpr(*reversed_) == 0


def test_equal_scores_are_a_coin_toss() -> None:
    """A constant score gives 1/2, not 0 or 1 by the order of clips."""
    constant = scores(1, 1, 1, 1), targets(0, 0, 1, 1)
    assert roc_auc(*constant) == 0.5
    assert equal_error_rate(*constant) == 0.5
    assert tpr_at_fpr(*constant) == 0


def test_equal_error_rate_lies_at_an_exact_crossing() -> None:
    """One of four fakes missed and one of four real taken for fake is 1/4."""
    values = scores(0.1, 0.2, 0.3, 0.8, 0.4, 0.9, 0.7, 0.6)
    assert equal_error_rate(values, targets(0, 0, 0, 0, 1, 1, 1, 1)) == pytest.approx(0.25)


def test_equal_error_rate_interpolates_between_thresholds() -> None:
    """Between (false alarms, misses) of (0, 1/2) and (1, 0) the line crosses at 1/3."""
    assert equal_error_rate(scores(1, 1, 1, 2), targets(0, 0, 1, 1)) == pytest.approx(1 / 3)


def test_tpr_counts_fakes_above_the_allowed_false_alarms() -> None:
    """With one false alarm in four allowed, the fakes above the second real one count."""
    values, classes = scores(5, 3, 2, 1, 6, 4, 2.5, 0), targets(0, 0, 0, 0, 1, 1, 1, 1)
    assert tpr_at_fpr(values, classes, 0.0) == 0.25
    assert tpr_at_fpr(values, classes, 0.24) == 0.25
    assert tpr_at_fpr(values, classes, 0.25) == 0.5
    assert tpr_at_fpr(values, classes, 1.0) == 1.0


def test_accuracy_takes_one_half_for_bona_fide() -> None:
    """A tie is decided as argmax over (bona fide, fake) decides it."""
    assert accuracy(scores(0.5, 0.5, 0.9, 0.1), targets(0, 1, 1, 1)) == 0.5


def test_log_loss_of_certain_and_wrong_log_odds_is_finite() -> None:
    """Log-odds of 1000 against the target cost 1000 nats, without overflow."""
    assert log_loss(scores(1000), targets(0)) == pytest.approx(1000)
    assert log_loss(scores(1000), targets(1)) == 0
    assert log_loss(scores(0, 0), targets(0, 1)) == pytest.approx(math.log(2))


def test_brier_is_the_mean_squared_error_of_probabilities() -> None:
    """(0.2² + 0.4²) / 2 = 0.1."""
    assert brier(scores(0.2, 0.6), targets(0, 1)) == pytest.approx(0.1)


def test_cllr_of_no_information_is_one_bit() -> None:
    """Ratios of 1 cost one bit whatever the shares of the classes."""
    assert cllr(scores(0, 0, 0), targets(0, 1, 1)) == pytest.approx(1)


def test_cllr_follows_its_definition() -> None:
    """Half the mean cost over fakes plus half the mean cost over bona fide clips, in bits."""
    fake, bona_fide = (1.0, -0.5), (-2.0,)
    expected = 0.5 * np.mean([math.log2(1 + math.exp(-x)) for x in fake])
    expected += 0.5 * np.mean([math.log2(1 + math.exp(x)) for x in bona_fide])
    assert cllr(scores(*fake, *bona_fide), targets(1, 1, 0)) == pytest.approx(expected)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy() -> None:
    """Ten clips at a confidence of 0.8, of which six are right, are 0.2 off."""
    probs = scores(*[0.8] * 5, *[0.2] * 5)
    classes = targets(1, 1, 1, 0, 0, 0, 0, 0, 1, 1)
    assert expected_calibration_error(probs, classes) == pytest.approx(0.2)


def test_calibration_error_weighs_bins_by_their_clips() -> None:
    """Three of four clips in a bin without gap and one in a bin with a gap of 0.4."""
    probs, classes = scores(1, 1, 0, 0.6), targets(1, 1, 0, 1)
    assert expected_calibration_error(probs, classes) == pytest.approx(0.4 / 4)


def test_calibration_error_follows_its_definition_on_random_scores() -> None:
    """Bins (m - 1) / M < confidence <= m / M, as in the paper, one by one."""
    rng = np.random.default_rng(0)
    probs, classes = rng.random(500), rng.integers(0, 2, 500)
    confidence, right = np.maximum(probs, 1 - probs), (probs > 0.5) == classes
    expected = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(probs, classes) == pytest.approx(expected)


@pytest.mark.parametrize(
    "metric", [balanced_accuracy, roc_auc, equal_error_rate, tpr_at_fpr, min_dcf, cllr]
)
def test_one_class_leaves_a_metric_undefined(metric: Metric) -> None:
    """The error names the classes that are there, and is one of the trainer's."""
    with pytest.raises(MetricUndefinedError, match=r"got \[1\]") as caught:
        metric(scores(0.1, 0.9), targets(1, 1))
    assert isinstance(caught.value, TrainerError)


@pytest.mark.parametrize("metric", [accuracy, log_loss, brier, expected_calibration_error, roc_auc])
def test_no_clips_leave_a_metric_undefined(metric: Metric) -> None:
    """An empty split has no metric at all."""
    with pytest.raises(MetricUndefinedError):
        metric(scores(), targets())


def test_scores_that_are_no_numbers_leave_a_metric_undefined() -> None:
    """A diverged model has no rank among others."""
    with pytest.raises(MetricUndefinedError, match="finite"):
        roc_auc(scores(0.1, math.nan), targets(0, 1))


def test_targets_other_than_the_two_classes_are_refused() -> None:
    """A target of 2 is the caller's mistake and named."""
    with pytest.raises(ValueError, match=r"got \[0, 2\]"):
        roc_auc(scores(0.1, 0.2), targets(0, 2))


def test_arrays_of_unequal_length_are_refused() -> None:
    """Scores and targets that don't belong together are never broadcast."""
    with pytest.raises(ValueError, match="one length"):
        brier(scores(0.1), targets(0, 1))


def test_balanced_accuracy_weighs_the_classes_alike() -> None:
    """All of three fakes and none of one bona fide clip are a half, not three quarters."""
    assert balanced_accuracy(scores(0.9, 0.9, 0.9, 0.9), targets(0, 1, 1, 1)) == 0.5


def test_min_dcf_of_no_information_is_one() -> None:
    """The cheaper of refusing all and passing all: 10 x 0.05 against 0.95."""
    assert min_dcf(scores(1, 1, 1), targets(0, 1, 1)) == 1
    assert min_dcf(scores(-1, 1), targets(0, 1)) == 0
    assert min_dcf(scores(1, -1), targets(0, 1)) == 1


def test_min_dcf_is_the_cheapest_of_all_thresholds() -> None:
    """Tried one by one: a refused bona fide clip costs 1, a fake that passes 10."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 300)
    values = np.round(rng.normal(classes, 1), 1)
    costs = []
    for threshold in [*np.unique(values), math.inf]:
        refused = np.mean(values[classes == 0] >= threshold)
        passed = np.mean(values[classes == 1] < threshold)
        costs.append(0.95 * refused + 10 * 0.05 * passed)
    assert min_dcf(values, classes) == pytest.approx(min(costs) / 0.5)


def test_every_objective_has_a_measure() -> None:
    """What a study may judge by is what a split is measured by, in the same order."""
    assert tuple(MEASURES) == get_args(Objective)


def test_summary_holds_every_metric_of_the_split() -> None:
    """A perfect detector's summary has all names and their best values."""
    summary = summarize(np.array([[9.0, -9.0], [-9.0, 9.0]]), targets(0, 1))
    assert set(summary) == NAMES
    assert summary["accuracy"] == summary["auc"] == summary["tpr_at_fpr_1e-2"] == 1
    assert summary["eer"] == 0
    assert summary["loss"] == summary["nll"] == pytest.approx(math.exp(-18), rel=1e-6)
    assert max(summary["cllr"], summary["ece"], summary["brier"]) < 1e-6


@pytest.mark.parametrize("classes", [targets(0, 1, 1, 1), targets(0, 0, 0, 1)])
def test_summary_takes_the_prior_that_was_trained_on_for_cllr(classes: NDArray[np.int64]) -> None:
    """Logits that only repeat it cost one bit, whatever the share of fakes that is measured."""
    logits = np.tile([0.0, math.log(3)], (4, 1))
    assert summarize(logits, classes, math.log(3))["cllr"] == pytest.approx(1)
    assert summarize(logits, classes)["cllr"] > 1


def test_summary_has_no_cllr_where_one_class_was_trained_on() -> None:
    """No ratio can be taken out of log-odds that never saw the other class."""
    logits = np.array([[0.0, 1.0], [1.0, 0.0]])
    prior = prior_log_odds(TrainConfig(), 1.0)
    summary = summarize(logits, targets(1, 0), prior)
    assert {name for name, value in summary.items() if math.isnan(value)} == {"cllr"}


def test_summary_of_one_class_is_nan_where_two_are_needed() -> None:
    """The other metrics still have their values."""
    summary = summarize(np.array([[0.0, 1.0], [0.0, -1.0]]), targets(1, 1))
    undefined = {name for name, value in summary.items() if math.isnan(value)}
    assert undefined == NEED_BOTH_CLASSES
    assert summary["accuracy"] == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_summary_of_a_diverged_model_is_nan(value: float) -> None:
    """One logit that is no finite number spoils the split, without a warning."""
    summary = summarize(np.array([[value, 2.0], [0.0, 1.0]]), targets(0, 1))
    assert all(math.isnan(metric) for metric in summary.values())


def test_importing_metrics_and_calibration_loads_no_heavy_module() -> None:
    """Commands that only read figures start fast."""
    heavy = "{'torch', 'sklearn', 'scipy', 'librosa', 'pandas'}"
    code = "import sys, trainer.measures, trainer.calibration\n"
    code += f"sys.exit(bool({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_summary_counts_false_alarms_in_hundreds_and_in_thousands() -> None:
    """One bona fide clip of 500 scores above half of the fakes: 1 % allows it, 0.1 % doesn't."""
    log_odds_N = np.concatenate([np.full(499, -1.0), [2.0], np.full(5, 1.0), np.full(5, 3.0)])
    targets_N = np.repeat([0, 1], [500, 10])
    summary = summarize(np.stack([np.zeros(510), log_odds_N], axis=1), targets_N)
    assert summary["tpr_at_fpr_1e-2"] == 1
    assert summary["tpr_at_fpr_1e-3"] == 0.5
