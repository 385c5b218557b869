"""The repetition cue: it sees what comes again, and begins as if it weren't there."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tests.clips import make_clips, tiny_config
from trainer.batches import read_batch
from trainer.cache import ClipSet
from trainer.config import TrainConfig
from trainer.frontend import build_frontend
from trainer.model import build_model
from trainer.repetition import Repetition
from trainer.training import Training

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


def window_of(clip: np.ndarray, start: int = 0) -> tuple[Tensor, Tensor]:
    """Return the image of a clip's window from there on, and how much of it is its own."""
    clips = ClipSet(
        names=["clip"],
        targets=np.zeros(1, np.int64),
        num_samples=np.array([len(clip)]),
        offsets=np.zeros(1, np.int64),
        samples_S=(clip * 8000).astype(np.int16),
        images=None,
    )
    batch = read_batch(clips, config(), np.array([0]), np.array([start]))
    assert batch.own_samples is not None
    return image_of(batch.inputs[0] / 32768), torch.from_numpy(batch.own_samples)


@pytest.mark.parametrize("seconds", [1.0, 1.3, 1.7, 2.4])
@pytest.mark.parametrize("turned", [0.0, 0.4])
def test_clip_that_fills_the_window_by_coming_again_repeats_nothing(
    seconds: float, turned: float
) -> None:
    """It is no more alike to itself than what goes on for the whole window."""
    start = round(turned * seconds * RATE)
    highest = max(float(cue().features(image_of(babble(3.0, seed)))[0, 0]) for seed in range(10))
    for seed in range(5):
        image, own = window_of(babble(seconds, seed), start)
        assert float(cue().features(image)[0, 0]) > 0.9  # as the whole window looks
        assert float(cue().features(image, own)[0, 0]) <= highest < 0.9


@pytest.mark.parametrize(("turned", "lag"), [(0.0, 0.8), (0.4, 1.4)])
def test_clip_shorter_than_the_window_may_repeat_itself(turned: float, lag: float) -> None:
    """With the lag of its own passage, not of its length, 2.2; turned, the other way round."""
    for seed in range(5):
        first = babble(0.8, seed)
        clip = np.concatenate([first, first, babble(0.6, seed + 100)])
        image, own = window_of(clip, round(turned * len(clip)))
        profile = cue().profile(image, own)
        assert profile is not None
        assert float(profile.max()) > 0.9
        found = (int(profile.argmax()) + cue().shortest_lag) * 0.02
        assert found == pytest.approx(lag, abs=0.05)


def test_whole_window_is_looked_at_where_all_of_it_is_the_clips() -> None:
    """As if nothing had been said; the statistics are torch's over all lags."""
    image = image_of(babble(3.0, 2))
    features = cue().features(image)
    assert torch.equal(features, cue().features(image, torch.tensor([3 * RATE])))
    profile = cue().profile(image)
    assert profile is not None
    expected = [profile.mean(), profile.std(unbiased=False), profile.max() - profile.median()]
    torch.testing.assert_close(features[0, 2:], torch.stack(expected))


def test_clip_too_short_to_hold_a_passage_twice_says_nothing() -> None:
    """However often it comes again in its window."""
    image, own = window_of(babble(0.65, 0))
    assert not cue().features(image, own).any()


@pytest.mark.parametrize("modality", ["audio", "both"])
@pytest.mark.parametrize("windows", [1, 2])
def test_training_and_evaluation_tell_the_cue_how_long_clips_are(
    modality: str, windows: int
) -> None:
    """Of each window, at most its own length."""
    clips = make_clips(6, frame_size=32)
    values = {"modality": modality, "frame_size": 32, "video_backbone": "test_resnet"}
    small = tiny_config(repetition=True, train_windows=windows, batch_size=6, **values)
    training = Training(small, clips, clips, torch.device("cpu"))
    told: list[tuple[bool, list[int]]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(module, Repetition):
            told.append((module.training, sorted(set(inputs[1].tolist()))))

    hook = register_module_forward_hook(note)
    try:
        training.run_epoch(lambda: False)
    finally:
        hook.remove()
    lengths = sorted({min(2000, length) for length in clips.num_samples.tolist()})
    assert lengths[0] < 2000
    assert told == [(True, lengths), (False, lengths)]


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
