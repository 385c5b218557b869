"""Temperature scaling: the minimum it finds, its bounds, and degenerate logits."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    START_TEMPERATURE,
    apply_temperature,
    cross_calibrate,
    fit_temperature,
)
from trainer.errors import ModelError

Logits = NDArray[np.float64]
Targets = NDArray[np.int64]


def honest(num_clips: int = 4000, seed: int = 0) -> tuple[Logits, Targets]:
    """Return logits whose softmax is the true probability of each target."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0, 2, num_clips)
    targets = (rng.random(num_clips) < 1 / (1 + np.exp(-log_odds))).astype(np.int64)
    return np.stack([-log_odds / 2, log_odds / 2], axis=1), targets


def nll(logits: Logits, targets: Targets, temperature: float) -> float:
    probs = apply_temperature(logits, temperature)
    return float(-np.log(probs[np.arange(len(targets)), targets]).mean())


@pytest.mark.parametrize("factor", [0.2, 1.0, 4.0])
def test_fit_recovers_by_how_much_logits_were_scaled(factor: float) -> None:
    """Logits too large or too small by a factor need that factor as temperature."""
    logits, targets = honest()
    assert fit_temperature(factor * logits, targets) == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize("factor", [0.2, 1.0, 4.0])
def test_no_other_temperature_is_more_likely(factor: float) -> None:
    """The negative log-likelihood is higher on both sides of the fit."""
    logits, targets = honest()
    logits = factor * logits
    fitted = fit_temperature(logits, targets)
    least = nll(logits, targets, fitted)
    assert all(nll(logits, targets, fitted * other) > least for other in (0.5, 0.99, 1.01, 2))


def test_logits_shifted_together_have_the_same_temperature() -> None:
    """What softmax can't see, the fit can't see."""
    logits, targets = honest()
    assert fit_temperature(logits + 300, targets) == pytest.approx(fit_temperature(logits, targets))


def test_misleading_logits_end_at_the_upper_bound() -> None:
    """A detector that is always wrong is best made as unsure as allowed."""
    logits, targets = honest()
    assert fit_temperature(logits, 1 - targets) == MAX_TEMPERATURE


def test_tiny_logits_end_at_the_lower_bound() -> None:
    """Sharper than 1/0.05 is never made."""
    logits, targets = honest()
    assert fit_temperature(logits / 1000, targets) == MIN_TEMPERATURE


def test_separated_clips_do_not_become_certain() -> None:
    """Twenty clips that are all right leave about one in twelve open, not one in e^100."""
    targets = np.arange(20) % 2
    logits = np.where(targets[:, None] == [0, 1], 5.0, -5.0)
    temperature = fit_temperature(logits, targets)
    assert apply_temperature(logits, temperature).max() == pytest.approx(11 / 12, abs=1e-6)


def test_huge_separated_logits_stay_finite() -> None:
    """Logits of a million neither overflow nor warn."""
    targets = np.array([0, 1])
    logits = np.array([[1e6, -1e6], [-1e6, 1e6]])
    assert fit_temperature(logits, targets) == MAX_TEMPERATURE


def test_logits_without_a_difference_keep_the_start() -> None:
    """Where every temperature is equally likely the first one stays."""
    assert fit_temperature(np.full((4, 2), 3.3), np.array([0, 1, 1, 0])) == START_TEMPERATURE


@pytest.mark.parametrize(
    "logits", [np.empty((0, 2)), np.array([[math.nan, 0.0]]), np.array([[0.0, math.inf]])]
)
def test_logits_that_cannot_be_fitted_are_refused(logits: Logits) -> None:
    """Nothing, nan and infinity have no temperature; the message says what may have happened."""
    with pytest.raises(ModelError, match="finite logits"):
        fit_temperature(logits, np.zeros(len(logits), dtype=np.int64))


def test_temperature_keeps_decisions_and_sums_to_one() -> None:
    """Only the certainty changes, from the same order of classes."""
    logits, _ = honest(100)
    probs = apply_temperature(logits, 7.0)
    assert np.array_equal(probs.argmax(axis=1), logits.argmax(axis=1))
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert np.all(probs.max(axis=1) <= apply_temperature(logits, 1.0).max(axis=1))


def test_probabilities_of_huge_logits_are_exact() -> None:
    """A difference of two thousand is a certainty, without overflow."""
    probs = apply_temperature(np.array([[1000.0, -1000.0]], dtype=np.float32), 1.0)
    np.testing.assert_array_equal(probs, [[1.0, 0.0]])


def test_each_clip_is_calibrated_without_itself() -> None:
    """To change a clip's label changes the temperature of the other fold, never its own."""
    rng = np.random.default_rng(0)
    targets = np.arange(40) % 2
    logits = rng.normal(0, 2, (40, 2)) + np.eye(2)[targets]
    before = cross_calibrate(logits, targets)
    ratio = (logits / before)[:, 0]
    assert len(set(np.round(ratio, 9))) == 2
    logits[0] *= 3.0
    after = cross_calibrate(logits, targets)
    own = np.isclose(ratio, ratio[0])
    assert np.allclose((logits / after)[own, 0], ratio[0])
    assert not np.isclose((logits / after)[~own, 0], ratio[~own]).any()
