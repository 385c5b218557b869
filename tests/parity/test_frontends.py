"""Frontends against librosa and SciPy: within 0.01 dB down to 60 dB below the peak."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.config import TrainConfig
from trainer.frontend import (
    LFCC_STD,
    LfccFrontend,
    SpectrumFrontend,
    build_frontend,
    num_bands,
)

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


def librosa_spectrum(samples: NDArray[np.float32], config: TrainConfig) -> NDArray[np.complex128]:
    """Return the complex number of each bin and frame."""
    import librosa

    spectrum: NDArray[np.complex128] = librosa.stft(
        samples.astype(np.float64),
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        pad_mode="reflect",
    )
    return spectrum


def librosa_power(samples: NDArray[np.float32], config: TrainConfig) -> NDArray[np.float64]:
    """Return the power of each bin and frame."""
    power: NDArray[np.float64] = np.abs(librosa_spectrum(samples, config)) ** 2
    return power


def librosa_filters(config: TrainConfig) -> NDArray[np.float64]:
    """Return librosa's mel filters."""
    from librosa.filters import mel

    filters: NDArray[np.float64] = mel(
        sr=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.n_mels,
        fmin=config.f_min,
        fmax=config.f_max,
        dtype=np.float64,
    )
    return filters


def librosa_mel(samples: NDArray[np.float32], config: TrainConfig) -> NDArray[np.float64]:
    """Return librosa's mel powers."""
    bands: NDArray[np.float64] = librosa_filters(config) @ librosa_power(samples, config)
    return bands


def librosa_bins(samples: NDArray[np.float32], config: TrainConfig) -> NDArray[np.float64]:
    """Return the powers of librosa's bins that lie from f_min to f_max."""
    import librosa

    hertz = librosa.fft_frequencies(sr=config.sample_rate, n_fft=config.n_fft)
    heard = (hertz >= config.f_min) & (hertz <= (config.f_max or config.sample_rate / 2))
    return librosa_power(samples, config)[heard]


def linear_bands(samples: NDArray[np.float32], config: TrainConfig) -> NDArray[np.float64]:
    """Return the powers of linear triangles, made one by one from SciPy's interpolation."""
    import librosa
    from scipy.interpolate import make_interp_spline

    hertz = librosa.fft_frequencies(sr=config.sample_rate, n_fft=config.n_fft)
    corners = np.linspace(config.f_min, config.f_max or config.sample_rate / 2, config.n_mels + 2)
    filters = []
    for number in range(config.n_mels):
        triangle = make_interp_spline(corners[number : number + 3], [0, 1, 0], k=1)
        inside = (hertz >= corners[number]) & (hertz <= corners[number + 2])
        filters.append(np.where(inside, triangle(hertz), 0))
    bands: NDArray[np.float64] = np.stack(filters) @ librosa_power(samples, config)
    return bands


REFERENCES = {"logmel": librosa_mel, "logstft": librosa_bins, "lfcc": linear_bands}


@pytest.mark.parametrize("frontend", REFERENCES)
@pytest.mark.parametrize("name", CONFIGS)
def test_decibels_equal_librosas(name: str, frontend: str) -> None:
    """Each value above -60 dB of the peak differs by less than 0.01 dB, for a batch of two."""
    import librosa

    config = CONFIGS[name].model_copy(update={"frontend": frontend, "n_lfcc": 20})
    batch = [speech_like(config.sample_rate, seed) for seed in range(2)]
    spectrum = build_frontend(config)
    assert isinstance(spectrum, SpectrumFrontend)
    transformed = spectrum.transform(torch.from_numpy(np.stack(batch)))
    ours = spectrum.decibels(transformed).double().numpy()
    powers = np.stack([REFERENCES[frontend](samples, config) for samples in batch])
    reference = librosa.power_to_db(powers, ref=1.0, top_db=None)
    assert ours.shape == reference.shape == (2, num_bands_of(config), reference.shape[2])
    audible = reference > reference.max() - 60
    assert audible.mean() > 0.05
    assert np.abs(ours - reference)[audible].max() < 0.01


def num_bands_of(config: TrainConfig) -> int:
    """Return the height of the spectrogram; of cepstra it is that before the transform."""
    return config.n_mels if config.frontend == "lfcc" else num_bands(config)


def test_cepstra_are_scipys_transform_of_the_spectrogram() -> None:
    """Taken back what makes them vary alike, they are the orthonormal DCT-II's first ones."""
    from scipy.fft import dct

    config = TrainConfig(frontend="lfcc", n_mels=70, n_lfcc=20)
    lfcc = build_frontend(config)
    assert isinstance(lfcc, LfccFrontend)
    waveform_BT = torch.from_numpy(speech_like(16_000, 0))[None]
    spectrogram = SpectrumFrontend.forward(lfcc, waveform_BT)[0, 0].double().numpy()
    std_C1 = (LFCC_STD * 70**0.5) / np.arange(1, 21)[:, None]
    cepstra = (lfcc(waveform_BT)[0, 0] + lfcc.offset_C1).double().numpy() * std_C1
    np.testing.assert_allclose(cepstra, dct(spectrogram, axis=0, norm="ortho")[:20], atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_phase_equals_that_of_librosas_transform(name: str) -> None:
    """Taken from its angles, in float64, change by change as the docstring has them."""
    config = CONFIGS[name].model_copy(update={"phase": True})
    samples = speech_like(config.sample_rate, 0)
    ours = build_frontend(config)(torch.from_numpy(samples)[None])[0, 1:].double().numpy()
    spectrum = librosa_spectrum(samples, config)
    size, angle = np.abs(spectrum), np.angle(spectrum)
    own = 2 * np.pi * np.arange(len(size))[:, None] * config.hop_length / config.n_fft
    in_time = np.diff(angle, axis=1) - own
    mean_in_time = np.sqrt(size[:, 1:] * size[:, :-1])
    changes = [
        (in_time, mean_in_time),
        (np.diff(angle, axis=0) + np.pi, np.sqrt(size[1:] * size[:-1])),
        (np.diff(in_time, axis=1), np.sqrt(mean_in_time[:, 1:] * mean_in_time[:, :-1])),
        (np.diff(in_time, axis=0), np.sqrt(mean_in_time[1:] * mean_in_time[:-1])),
    ]
    filters, peak = librosa_filters(config), config.n_fft / 4
    for number, (turned, weight) in enumerate(changes):
        rows, columns = (n - m for n, m in zip(size.shape, weight.shape, strict=True))
        places = ((rows, 0), (columns, 0))
        number_there = np.pad(weight * np.exp(1j * turned), places)
        expected = (filters @ number_there) / (filters @ (np.abs(number_there) + peak * 1e-5))
        found = 2 * ours[2 * number : 2 * number + 2] - 1
        audible = filters @ np.pad(weight, places) > 1e-3 * (filters @ size).max()
        assert audible.mean() > 0.05
        assert np.abs(found[0] - expected.real)[audible].max() < 0.01
        assert np.abs(found[1] - expected.imag)[audible].max() < 0.01
