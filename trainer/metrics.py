"""What a detector's scores are worth: pure functions on numpy arrays.

A target is 1 for fake, 0 for bona fide. Functions that only rank take `scores_N`, where any rising
function of P(fake) gives the same value; the others say whether they take P(fake) or log-odds.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import TrainerError

# Shape suffix: N clips.

Array = NDArray[Any]
FloatArray = NDArray[np.float64]


PRIOR_OF_FAKE = 0.05
COST_OF_REFUSED, COST_OF_PASSED = 1.0, 10.0
"""Of min_dcf: what a bona fide clip that is refused costs, and a fake that passes."""
COST_OF_ALL_REFUSED = COST_OF_REFUSED * (1 - PRIOR_OF_FAKE)
COST_OF_ALL_PASSED = COST_OF_PASSED * PRIOR_OF_FAKE
"""On average over clips: of a detector that refuses all bona fide ones, or passes all fakes."""


class MetricUndefinedError(TrainerError):
    """A metric has no value: a class it needs is missing, or a score is no finite number."""


def accuracy(probs_N: Array, targets_N: Array) -> float:
    """Return the share of clips on their target's side of P(fake) = 1/2, which itself is bona fide.

    Raises:
        MetricUndefinedError: there is no clip, or a probability isn't finite.
    """
    probs_N, targets_N = _checked(probs_N, targets_N, num_classes=1)
    return float(np.mean((probs_N > 0.5) == (targets_N == 1)))


def balanced_accuracy(probs_N: Array, targets_N: Array) -> float:
    """Return the mean of the two classes' shares on their side of P(fake) = 1/2.

    Raises:
        MetricUndefinedError: only one class is present, or a probability isn't finite.
    """
    probs_N, targets_N = _checked(probs_N, targets_N, num_classes=2)
    right_N = (probs_N > 0.5) == (targets_N == 1)
    return float(np.mean([right_N[targets_N == target].mean() for target in (0, 1)]))


def roc_auc(scores_N: Array, targets_N: Array) -> float:
    """Return the probability that a fake scores above a bona fide clip; ties count one half.

    Raises:
        MetricUndefinedError: only one class is present, or a score isn't finite.
    """
    false_alarms, hits = _operating_points(scores_N, targets_N)
    return float(np.trapezoid(hits, false_alarms))


def equal_error_rate(scores_N: Array, targets_N: Array) -> float:
    """Return the rate at which misses equal false alarms, as a fraction in [0, 1].

    Interpolates linearly between the two thresholds around the crossing.

    Raises:
        MetricUndefinedError: only one class is present, or a score isn't finite.
    Source: ASVspoof 2019 evaluation plan, section 4.
    """
    false_alarms, hits = _operating_points(scores_N, targets_N)
    excess = false_alarms - (1 - hits)  # rises from -1 to 1
    after = int(np.argmax(excess >= 0))
    before = after - 1
    share = -excess[before] / (excess[after] - excess[before])
    step = false_alarms[after] - false_alarms[before]
    return float(false_alarms[before] + share * step)


def tpr_at_fpr(scores_N: Array, targets_N: Array, max_fpr: float = 1e-2) -> float:
    """Return the largest share of fakes caught by a threshold with at most `max_fpr` false alarms.

    Only thresholds that the scores have count, so with fewer than 1 / `max_fpr` bona fide clips
    this is the share caught without any false alarm.

    Raises:
        MetricUndefinedError: only one class is present, or a score isn't finite.
    """
    false_alarms, hits = _operating_points(scores_N, targets_N)
    return float(hits[false_alarms <= max_fpr].max())


def min_dcf(scores_N: Array, targets_N: Array) -> float:
    """Return the detection cost at its best threshold; 1 is what no information costs.

    The costs weigh a fake that passes ten times a bona fide clip that is refused, and expect
    one fake in twenty clips.

    Raises:
        MetricUndefinedError: only one class is present, or a score isn't finite.
    Source: ASVspoof 5 evaluation plan, track 1: C_miss 1, C_fa 10, prior of spoof 0.05.
    """
    false_alarms, hits = _operating_points(scores_N, targets_N)
    costs = COST_OF_ALL_REFUSED * false_alarms + COST_OF_ALL_PASSED * (1 - hits)
    return float(costs.min() / min(COST_OF_ALL_REFUSED, COST_OF_ALL_PASSED))


def log_loss(log_odds_N: Array, targets_N: Array) -> float:
    """Return the mean negative log-likelihood, in nats, of log-odds of fake.

    Log-odds, because a probability rounded to 0 or 1 has lost what this measures.

    Raises:
        MetricUndefinedError: there is no clip, or a value isn't finite.
    """
    log_odds_N, targets_N = _checked(log_odds_N, targets_N, num_classes=1)
    return float(np.mean(np.logaddexp(0, np.where(targets_N == 1, -log_odds_N, log_odds_N))))


def brier(probs_N: Array, targets_N: Array) -> float:
    """Return the mean squared difference of P(fake) and target.

    Raises:
        MetricUndefinedError: there is no clip, or a probability isn't finite.
    """
    probs_N, targets_N = _checked(probs_N, targets_N, num_classes=1)
    return float(np.mean((probs_N - targets_N) ** 2))


def cllr(ratios_N: Array, targets_N: Array) -> float:
    """Return the cost of log-likelihood ratios, in bits; 1 is what no information costs.

    A log-likelihood ratio is the log-odds of fake less the log-odds of the prior that the
    detector was trained on, whatever the share of fakes among these clips.

    Raises:
        MetricUndefinedError: only one class is present, or a value isn't finite.
    Source: Brümmer and du Preez 2006, Application-independent evaluation of speaker detection.
    """
    ratios_N, targets_N = _checked(ratios_N, targets_N, num_classes=2)
    fakes = np.logaddexp(0, -ratios_N[targets_N == 1]).mean()
    bona_fide = np.logaddexp(0, ratios_N[targets_N == 0]).mean()
    return float((fakes + bona_fide) / (2 * np.log(2)))


def expected_calibration_error(probs_N: Array, targets_N: Array, num_bins: int = 15) -> float:
    """Return the mean gap of confidence and accuracy, over bins of equal width of the confidence.

    The confidence is the probability of the class decided for, so at least 1/2.

    Raises:
        MetricUndefinedError: there is no clip, or a probability isn't finite.
    Source: Guo et al. 2017, On calibration of modern neural networks, section 2.
    """
    probs_N, targets_N = _checked(probs_N, targets_N, num_classes=1)
    confidence_N = np.maximum(probs_N, 1 - probs_N)
    right_N = (probs_N > 0.5) == (targets_N == 1)
    bin_N = np.clip(np.ceil(confidence_N * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    gaps = np.bincount(bin_N, weights=right_N - confidence_N, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(probs_N))


def _operating_points(scores_N: Array, targets_N: Array) -> tuple[FloatArray, FloatArray]:
    """Return the rates of false alarms and of hits at each distinct threshold, falling.

    Both rise from 0, at the threshold above all scores, to 1.
    """
    scores_N, targets_N = _checked(scores_N, targets_N, num_classes=2)
    order_N = np.argsort(-scores_N, kind="stable")
    fakes_N = targets_N[order_N] == 1
    last_of_ties = np.append(np.flatnonzero(np.diff(scores_N[order_N])), len(scores_N) - 1)
    hits = np.cumsum(fakes_N)[last_of_ties]
    false_alarms = last_of_ties + 1 - hits
    return _rates(false_alarms), _rates(hits)


def _rates(counts: NDArray[np.int64]) -> FloatArray:
    """Return rising counts as rates from 0 to 1."""
    return np.concatenate([[0.0], counts / counts[-1]])


def _checked(values_N: Array, targets_N: Array, *, num_classes: int) -> tuple[FloatArray, Array]:
    """Return both as arrays, values in float64.

    Raises:
        ValueError: the arrays don't fit together, or a target is neither 0 nor 1.
        MetricUndefinedError: fewer classes are present, or a value isn't finite.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    targets_N = np.asarray(targets_N)
    if values_N.ndim != 1 or values_N.shape != targets_N.shape:
        raise ValueError(
            f"values and targets must be of one length, got {values_N.shape} and {targets_N.shape}"
        )
    classes = np.unique(targets_N)
    if not np.isin(classes, (0, 1)).all():
        raise ValueError(f"targets must be 0 (bona fide) or 1 (fake), got {classes.tolist()}")
    if len(classes) < num_classes:
        raise MetricUndefinedError(
            f"the metric needs {num_classes} of the classes 0 and 1, got {classes.tolist()}"
        )
    if not np.isfinite(values_N).all():
        raise MetricUndefinedError("the metric needs finite scores, got nan or infinity")
    return values_N, targets_N
