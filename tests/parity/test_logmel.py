"""The log-mel frontend against librosa: within 0.01 dB down to 60 dB below the peak."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.config import TrainConfig
from trainer.frontend import LogMelFrontend

CONFIGS = {
    "default": TrainConfig(),
    "notebook's": TrainConfig(sample_rate=22_050, n_fft=2048, hop_length=512),
    "band": TrainConfig(n_fft=512, hop_length=160, n_mels=64, f_min=60.0, f_max=7600.0),
    "telephone": TrainConfig(sample_rate=8000, n_fft=256, hop_length=80, n_mels=24),
    "studio": TrainConfig(sample_rate=48_000, n_fft=4096, hop_length=1000, n_mels=200),
}


def speech_like(sample_rate: int, seed: int) -> NDArray[np.float32]:
    """Return a second and a half of gliding harmonics, breath and silence."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(1.5 * sample_rate)) / sample_rate
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(3 * time)) / sample_rate
    voice = sum(np.sin(number * phase) / number for number in range(1, 20))
    sound = 0.2 * voice * (np.sin(5 * time) > 0) + 0.002 * rng.standard_normal(len(time))
    return sound.astype(np.float32)


def librosa_db(samples: NDArray[np.float32], config: TrainConfig) -> NDArray[np.float64]:
    import librosa
    from librosa.filters import mel

    spectrum = librosa.stft(
        samples.astype(np.float64),
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        pad_mode="reflect",
    )
    filters = mel(
        sr=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.n_mels,
        fmin=config.f_min,
        fmax=config.f_max,
        dtype=np.float64,
    )
    decibels: NDArray[np.float64] = librosa.power_to_db(
        filters @ np.abs(spectrum) ** 2, ref=1.0, top_db=None
    )
    return decibels


@pytest.mark.parametrize("name", CONFIGS)
def test_logmel_equals_librosa(name: str) -> None:
    """Each value above -60 dB of the peak differs by less than 0.01 dB, for a batch of two."""
    config = CONFIGS[name]
    batch = [speech_like(config.sample_rate, seed) for seed in range(2)]
    ours = LogMelFrontend(config).log_mel_db(torch.from_numpy(np.stack(batch))).double().numpy()
    reference = np.stack([librosa_db(samples, config) for samples in batch])
    assert ours.shape == reference.shape
    audible = reference > reference.max() - 60
    assert audible.mean() > 0.25
    assert np.abs(ours - reference)[audible].max() < 0.01
