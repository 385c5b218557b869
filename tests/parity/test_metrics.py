"""Metrics against scikit-learn, on random scores with and without ties."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from sklearn import metrics as reference

from trainer.calibration import apply_temperature
from trainer.measures import summarize
from trainer.metrics import tpr_at_fpr

Arrays = tuple[NDArray[np.float64], NDArray[np.int64]]


@pytest.fixture(params=["continuous", "tied", "rare", "small"])
def split(request: pytest.FixtureRequest) -> Arrays:
    """Return logits and targets of a validation split of the named kind."""
    num_clips = 7 if request.param == "small" else 1500
    rng = np.random.default_rng(5)
    targets = (rng.random(num_clips) < (0.03 if request.param == "rare" else 0.6)).astype(np.int64)
    logits = rng.normal(0, 1, (num_clips, 2)) + 0.8 * np.eye(2)[targets]
    if request.param == "tied":
        logits = np.round(logits)
    return logits, targets


def test_ranking_metrics_equal_scikit_learn(split: Arrays) -> None:
    """AUC to rounding; TPR at several FPR from the same operating points."""
    logits, targets = split
    scores = logits[:, 1] - logits[:, 0]
    assert summarize(*split)["auc"] == pytest.approx(reference.roc_auc_score(targets, scores))
    fpr, tpr, _ = reference.roc_curve(targets, scores, drop_intermediate=False)
    for most in (0.0, 1e-3, 1e-2, 0.1, 1.0):
        assert tpr_at_fpr(scores, targets, most) == pytest.approx(tpr[fpr <= most].max())


def test_equal_error_rate_lies_where_scikit_learns_curve_crosses(split: Arrays) -> None:
    """A root finder on the interpolated ROC curve ends at the same rate."""
    logits, targets = split
    fpr, tpr, _ = reference.roc_curve(targets, logits[:, 1] - logits[:, 0])
    crossing = brentq(lambda rate: 1 - rate - np.interp(rate, fpr, tpr), 0, 1, xtol=1e-12)
    assert summarize(*split)["eer"] == pytest.approx(crossing, abs=1e-9)


def test_probability_metrics_equal_scikit_learn(split: Arrays) -> None:
    """Accuracy, cross-entropy and Brier score of the softmax."""
    logits, targets = split
    summary, probs = summarize(logits, targets), apply_temperature(logits, 1.0)
    decided = probs.argmax(axis=1)
    assert summary["accuracy"] == pytest.approx(reference.accuracy_score(targets, decided))
    balanced = reference.balanced_accuracy_score(targets, decided)
    assert summary["balanced_accuracy"] == pytest.approx(balanced)
    assert summary["nll"] == pytest.approx(reference.log_loss(targets, probs))
    assert summary["loss"] == summary["nll"]
    assert summary["brier"] == pytest.approx(reference.brier_score_loss(targets, probs[:, 1]))
