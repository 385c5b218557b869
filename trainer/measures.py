"""Every metric of a split by its name, from the logits of a detector."""

import math
from collections.abc import Callable

import numpy as np

from trainer.errors import DataError
from trainer.metrics import (
    Array,
    FloatArray,
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

# Shape suffixes: N clips, K classes.

Measure = Callable[[Array, Array], float]
"""Takes log-odds of fake (N,), or what `to_scores` makes of them, and targets (N,)."""


def summarize(logits_NK: Array, targets_N: Array, prior_log_odds: float = 0.0) -> dict[str, float]:
    """Return every metric of a split by its name; one that is undefined is nan.

    The prior is that which the detector was trained on; 0 is a prior of one half. `loss` is the
    cross-entropy, and `nll` the same under the name that calibration compares.
    """
    log_odds_N = to_log_odds(logits_NK)
    targets_N = np.asarray(targets_N)
    with np.errstate(invalid="ignore"):  # of a diverged model; each metric sees its nan
        values: dict[str, float] = {
            name: _value(measure, to_scores(name, log_odds_N, prior_log_odds), targets_N)
            for name, measure in MEASURES.items()
        }
    return {"loss": values["nll"], **values}


def require_defined(objective: str, targets_N: Array) -> None:
    """Refuse clips to choose by of which the objective is undefined, whatever a detector says.

    Every epoch would be as good as any other. An unknown objective is left to `fit`.

    Raises:
        DataError: names the objectives that these clips have.
    """
    values = summarize(np.zeros((len(targets_N), 2)), targets_N)
    if math.isnan(values.get(objective, 0.0)):
        num_fake = int(np.sum(targets_N == 1))
        defined = ", ".join(name for name, value in values.items() if not math.isnan(value))
        raise DataError(
            f"the objective {objective} needs real and fake validation clips to choose the epoch"
            f" by, got {len(targets_N) - num_fake} real and {num_fake} fake; add clips of both to"
            f" the validation split, or choose by one of {defined} (of a recipe: origin.objective)"
        )


def to_log_odds(logits_NK: Array) -> FloatArray:
    """Return the log-odds of fake (N,); nan where a logit isn't finite."""
    logits_NK = np.asarray(logits_NK, dtype=np.float64)
    log_odds_N: FloatArray = np.diff(np.where(np.isfinite(logits_NK), logits_NK, np.nan))[:, 0]
    return log_odds_N


def to_scores(
    name: Objective, log_odds_N: FloatArray, prior_log_odds: float | FloatArray
) -> FloatArray:
    """Return what a metric is measured on: log-odds of fake; of cllr, log-likelihood ratios.

    The prior is that which the detector was trained on, or each clip's detector (N,).
    """
    return log_odds_N - prior_log_odds if name == "cllr" else log_odds_N


def to_probs(log_odds_N: Array) -> FloatArray:
    """Return P(fake) of log-odds of fake."""
    probs_N: FloatArray = np.exp(-np.logaddexp(0, -np.asarray(log_odds_N, dtype=np.float64)))
    return probs_N


def _of_probs(metric: Measure) -> Measure:
    return lambda log_odds_N, targets_N: metric(to_probs(log_odds_N), targets_N)


def _tpr_at(max_fpr: float) -> Measure:
    return lambda log_odds_N, targets_N: tpr_at_fpr(log_odds_N, targets_N, max_fpr)


def _value(measure: Measure, log_odds_N: Array, targets_N: Array) -> float:
    try:
        return measure(log_odds_N, targets_N)
    except MetricUndefinedError:
        return float("nan")


MEASURES: dict[Objective, Measure] = {
    "accuracy": _of_probs(accuracy),
    "balanced_accuracy": _of_probs(balanced_accuracy),
    "auc": roc_auc,
    "eer": equal_error_rate,
    "tpr_at_fpr_1e-2": _tpr_at(1e-2),
    "tpr_at_fpr_1e-3": _tpr_at(1e-3),
    "min_dcf": min_dcf,
    "cllr": cllr,
    "nll": log_loss,
    "brier": _of_probs(brier),
    "ece": _of_probs(expected_calibration_error),
}
"""In the order in which they are shown."""
