"""Temperature scaling: one number that makes a detector's probabilities honest."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import ModelError

# Shape suffixes: N clips, K classes.

Array = NDArray[Any]
FloatArray = NDArray[np.float64]

START_TEMPERATURE = 1.5
"""Where the notebook starts; it stays where the logits favour no temperature."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits_NK: Array, targets_N: Array) -> float:
    """Return the temperature in [0.05, 20] that minimises the negative log-likelihood.

    The loss is convex in 1 / temperature, so its minimum is where its slope is 0. If every
    clip is on its side already, ever lower temperatures would be ever more likely; then targets
    are taken a little less than certain, by how few clips there are (Platt 1999).

    Raises:
        ModelError: there is no clip, or a logit isn't finite.
    Source: Guo et al. 2017, On calibration of modern neural networks, section 4.2.
    """
    logits_NK = np.asarray(logits_NK, dtype=np.float64)
    targets_N = np.asarray(targets_N, dtype=np.int64)
    if not len(logits_NK) or not np.isfinite(logits_NK).all():
        raise ModelError(
            "fitting the temperature needs at least one clip and finite logits, got shape"
            f" {logits_NK.shape}; did the training diverge? A lower lr or a grad_clip helps"
        )
    logits_NK = logits_NK - logits_NK.mean(axis=1, keepdims=True)  # equal logits become exact zeros
    targets_NK = _one_hot(targets_N, logits_NK.shape[1])
    if _is_separated(logits_NK, targets_NK):
        targets_NK = _soften(targets_NK)
    return _root_temperature(logits_NK, targets_NK)


def cross_calibrate(logits_NK: Array, targets_N: Array) -> FloatArray:
    """Return each clip's logits over a temperature that was fitted without it, (N, K).

    Of two folds with halves of each class, each is calibrated by the other, so that what is
    measured on the result doesn't flatter it.

    Raises:
        ModelError: a class has fewer than two clips, or a logit isn't finite.
    """
    logits_NK = np.asarray(logits_NK, dtype=np.float64)
    targets_N = np.asarray(targets_N, dtype=np.int64)
    fold_N = np.empty(len(targets_N), np.int64)
    for target in np.unique(targets_N):
        members = np.flatnonzero(targets_N == target)
        fold_N[members] = np.arange(len(members)) % 2
    calibrated_NK = np.empty_like(logits_NK)
    for fold in (0, 1):
        temperature = fit_temperature(logits_NK[fold_N != fold], targets_N[fold_N != fold])
        calibrated_NK[fold_N == fold] = logits_NK[fold_N == fold] / temperature
    return calibrated_NK


def apply_temperature(logits_NK: Array, temperature: float) -> FloatArray:
    """Return the softmax of logits divided by the temperature, (N, K) in float64."""
    scaled_NK: FloatArray = np.asarray(logits_NK, dtype=np.float64) / temperature
    odds_NK = np.exp(scaled_NK - scaled_NK.max(axis=1, keepdims=True))
    probs_NK: FloatArray = odds_NK / odds_NK.sum(axis=1, keepdims=True)
    return probs_NK


def _root_temperature(logits_NK: FloatArray, targets_NK: FloatArray) -> float:
    """Return the temperature at which the slope is 0, or the bound towards which it falls."""
    from scipy.optimize import brentq  # takes long to import

    def slope(temperature: float) -> float:
        """Return the loss's slope over 1 / temperature, which falls as temperature rises."""
        excess_NK = apply_temperature(logits_NK, temperature) - targets_NK
        return float(np.mean(np.sum(excess_NK * logits_NK, axis=1)))

    at_start = slope(START_TEMPERATURE)
    if at_start == 0:
        return START_TEMPERATURE
    bound = MAX_TEMPERATURE if at_start > 0 else MIN_TEMPERATURE
    if slope(bound) * at_start >= 0:
        return bound
    return float(brentq(slope, START_TEMPERATURE, bound, xtol=1e-9))


def _one_hot(targets_N: Array, num_classes: int) -> FloatArray:
    one_hot_NK: FloatArray = np.eye(num_classes)[targets_N]
    return one_hot_NK


def _is_separated(logits_NK: FloatArray, targets_NK: FloatArray) -> bool:
    """Return whether no clip's own logit is below another: the loss has no minimum then."""
    own_N = np.sum(logits_NK * targets_NK, axis=1)
    return bool((own_N >= logits_NK.max(axis=1)).all())


def _soften(targets_NK: FloatArray) -> FloatArray:
    """Return targets of 1 - 1 / (n + 2) for a class of n clips, the rest spread over the others."""
    num_classes = targets_NK.shape[1]
    doubt_K = 1 / (targets_NK.sum(axis=0) + 2)
    doubt_N1 = (targets_NK @ doubt_K)[:, None]
    others_NK = (1 - targets_NK) * doubt_N1 / (num_classes - 1)
    softened_NK: FloatArray = targets_NK * (1 - doubt_N1) + others_NK
    return softened_NK
