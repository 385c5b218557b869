"""The repetition cue: it sees what comes again, and begins as if it weren't there."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.clips import tiny_config
from trainer.config import TrainConfig
from trainer.frontend import build_frontend
from trainer.model import build_model
from trainer.repetition import Repetition

RATE = 16_000


def config() -> TrainConfig:
    return tiny_config(
        sample_rate=RATE, n_fft=512, hop_length=160, n_mels=64, window_seconds=3.0, repetition=True
    )


def babble(seconds: float, seed: int) -> np.ndarray:
    """Return noise whose colour and level change from syllable to syllable."""
    rng = np.random.default_rng(seed)
    parts = []
    while sum(map(len, parts)) < seconds * RATE:
        size = int(rng.integers(1200, 3000))
        spectrum = np.fft.rfft(rng.normal(size=size))
        centre, width = rng.uniform(0.05, 0.6), rng.uniform(0.03, 0.2)
        spectrum *= np.exp(-(((np.linspace(0, 1, len(spectrum)) - centre) / width) ** 2))
        part = np.fft.irfft(spectrum, size)
        parts.append(rng.uniform(0.02, 0.2) * part / part.std() * np.hanning(size))
    return np.concatenate(parts)[: round(seconds * RATE)]


def image_of(waveform: np.ndarray) -> Tensor:
    frontend = build_frontend(config())
    return frontend.normalise(frontend(torch.from_numpy(waveform).float()[None]))


def cue() -> Repetition:
    torch.manual_seed(0)
    return Repetition(config(), 2)


@pytest.mark.parametrize("lag", [0.9, 1.4])
def test_repeated_utterance_is_seen_with_its_lag(lag: float) -> None:
    """It scores far above one that never comes again, at the frame where it does."""
    for seed in range(5):
        first = babble(lag, seed)
        again = np.concatenate([first, first, babble(3.0, seed + 100)])[: 3 * RATE]
        repeated, other = cue().profile(image_of(again)), cue().profile(image_of(babble(3, seed)))
        assert repeated is not None
        assert other is not None
        assert float(repeated.max()) > 0.9
        assert float(repeated.max()) > float(other.max()) + 0.1
        found = (int(repeated.argmax()) + cue().shortest_lag) * 0.02
        assert found == pytest.approx(lag, abs=0.05)


def test_level_changes_nothing() -> None:
    """Twice as loud is as alike."""
    sound = babble(3.0, 0)
    quiet, loud = cue().features(image_of(sound)), cue().features(image_of(2 * sound))
    assert torch.allclose(quiet, loud, atol=0.05)


def test_silence_and_short_windows_are_finite() -> None:
    """Nothing to compare is no repetition."""
    silent = cue().features(image_of(np.zeros(3 * RATE)))
    assert silent.isfinite().all()
    assert float(silent[0, 0]) < 0.1
    assert not cue().features(image_of(babble(0.4, 0))).any()


def test_cue_begins_as_if_it_were_off_and_learns() -> None:
    """The same weights and answers at first; then its own layers get gradients."""
    plain = config().model_copy(update={"repetition": False})
    torch.manual_seed(3)
    without = build_model(plain, 1).eval()
    torch.manual_seed(3)
    with_cue = build_model(config(), 1).eval()
    image = image_of(babble(3.0, 1))
    assert torch.equal(without(image), with_cue(image))
    with_cue(image)[0, 1].backward()
    assert with_cue.repetition is not None
    last = list(with_cue.repetition.read.parameters())[-2]
    assert last.grad is not None
    assert last.grad.abs().sum() > 0
