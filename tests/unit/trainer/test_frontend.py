"""Frontends: shapes, the fixed range, and that nothing but the input decides an image."""

import logging
import math

import pytest
import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.frontend import IMAGENET_MEAN, IMAGENET_STD, RANGE_DB, build_frontend, num_bands


def sine(hertz: float, sample_rate: int = 16_000, seconds: float = 1.0) -> Tensor:
    time = torch.arange(int(sample_rate * seconds)) / sample_rate
    return torch.sin(2 * math.pi * hertz * time)


def test_logmel_image_has_one_channel_of_mel_bands_and_centred_frames() -> None:
    """A batch of waveforms becomes (B, 1, M, 1 + T // hop_length)."""
    frontend = build_frontend(TrainConfig(n_mels=80, hop_length=200))
    image = frontend(torch.zeros(3, 16_000))
    assert image.shape == (3, frontend.num_channels, 80, 81)
    assert image.dtype == torch.float32


def test_silence_is_black_and_full_scale_nearly_white() -> None:
    """The range ends at a sine at full scale, which no sine exceeds."""
    frontend = build_frontend(TrainConfig())
    image = frontend(torch.stack([torch.zeros(16_000), sine(500)]))
    assert image[0].max() == 0
    assert 0.9 < image[1].max() <= 1


@pytest.mark.parametrize("n_fft", [512, 1024, 2048])
def test_full_scale_does_not_depend_on_the_transform(n_fft: int) -> None:
    """The same sound has about the same brightness whatever n_fft a study tries."""
    image = build_frontend(TrainConfig(n_fft=n_fft, n_mels=40))(sine(440)[None])
    assert image.max() == pytest.approx(0.98, abs=0.03)


def test_level_is_kept_on_a_scale_of_decibels() -> None:
    """Ten dB less is a tenth of the range darker, because no image is rescaled by its own peak."""
    frontend = build_frontend(TrainConfig())
    loud, soft = frontend(torch.stack([sine(500), sine(500) / math.sqrt(10)])).amax(dim=(1, 2, 3))
    assert (loud - soft).item() == pytest.approx(10 / RANGE_DB, abs=1e-4)


def test_image_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    """A clip alone and in company gives the same image."""
    frontend = build_frontend(TrainConfig())
    waveform = torch.rand(4, 16_000, generator=torch.Generator().manual_seed(0)) - 0.5
    torch.testing.assert_close(frontend(waveform)[2:3], frontend(waveform[2:3]))


def test_autocast_does_not_blur_the_spectrogram() -> None:
    """Mixed precision begins behind the frontend."""
    frontend = build_frontend(TrainConfig())
    waveform = torch.rand(2, 16_000, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = frontend(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(frontend(waveform), expected)


def test_notebook_image_is_the_cached_grey_as_rgb() -> None:
    """Each of the three channels is the uint8 image divided by 255."""
    frontend = build_frontend(TrainConfig(frontend="notebook"))
    cached = torch.arange(256, dtype=torch.uint8).repeat(2, 256, 1)
    image = frontend(cached)
    assert image.shape == (2, frontend.num_channels, 256, 256)
    assert all(torch.equal(image[:, channel], cached / 255) for channel in range(3))


def test_notebook_images_are_normalised_by_imagenet() -> None:
    """Mean and deviation are those that ImageNet weights were trained with, channel by channel."""
    frontend = build_frontend(TrainConfig(frontend="notebook"))
    normalised = frontend.normalise(frontend(torch.full((1, 256, 256), 255, dtype=torch.uint8)))
    expected = [(1 - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    torch.testing.assert_close(normalised[0, :, 7, 9], torch.tensor(expected))


def test_logmel_normalisation_brings_mid_grey_near_zero() -> None:
    """A typical brightness of speech lands within one deviation of zero, shape unchanged."""
    frontend = build_frontend(TrainConfig())
    normalised = frontend.normalise(torch.full((2, 1, 128, 63), 0.4))
    assert normalised.shape == (2, 1, 128, 63)
    assert normalised.abs().max() < 1


@pytest.mark.parametrize("name", ["logmel", "logstft", "lfcc"])
def test_images_are_as_high_as_the_frontend_says(name: str) -> None:
    """A model that keeps each band's mean knows their number before it sees an image."""
    config = TrainConfig.model_validate({"frontend": name, "f_min": 100.0, "f_max": 7000.0})
    image = build_frontend(config)(torch.zeros(1, 16_000))
    assert image.shape == (1, 1, num_bands(config), 63)


def test_bins_from_f_min_to_f_max_are_heard() -> None:
    """Of 16 bins, 1000 Hz apart, those at 2000 to 4000 Hz, both ends included."""
    config = TrainConfig(frontend="logstft", n_fft=64, hop_length=32, sample_rate=64_000)
    heard = config.model_copy(update={"f_min": 2000.0, "f_max": 4000.0})
    assert (num_bands(config), num_bands(heard)) == (33, 3)
    image = build_frontend(heard)(sine(3000, 64_000)[None])
    assert image.mean(dim=3).argmax() == 1


@pytest.mark.parametrize("name", ["logmel", "logstft", "lfcc"])
def test_window_normalised_by_itself_forgets_its_level(name: str) -> None:
    """Noise and the same noise at a tenth give the same image, of mean 0 and deviation 1."""
    config = TrainConfig.model_validate({"frontend": name, "normalisation": "clip"})
    frontend = build_frontend(config)
    noise = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)) / 4
    loud, soft = (frontend.normalise(frontend(noise / level)) for level in (1, 10))
    if name != "lfcc":  # there the level is one coefficient of many
        assert ((loud - soft).abs() > 0.02).double().mean() < 1e-3  # but for bins at the floor
    assert abs(loud.mean()) < 1e-4
    assert abs(loud.std() - 1) < 1e-3


def test_silence_normalised_by_itself_stays_quiet() -> None:
    """What is nothing is not blown up to noise."""
    frontend = build_frontend(TrainConfig(normalisation="clip"))
    assert frontend.normalise(frontend(torch.zeros(2, 16_000))).abs().max() == 0


@pytest.mark.parametrize("normalisation", ["fixed", "set"])
def test_one_click_rescales_nothing_else(normalisation: str) -> None:
    """A sample at full scale changes the frames that hear it and no other."""
    config = TrainConfig.model_validate({"normalisation": normalisation})
    frontend = build_frontend(config)
    calm = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0)) / 100
    click = calm.clone()
    click[0, 8000] = 1.0
    images = [frontend.normalise(frontend(waveform)) for waveform in (calm, click)]
    changed = (images[0] != images[1]).any(dim=2).flatten().nonzero().flatten()
    assert 29 <= changed.min() <= changed.max() <= 33


@pytest.mark.parametrize("name", ["logmel", "logstft", "lfcc", "notebook"])
def test_frontend_adds_nothing_to_a_state_dict(name: str) -> None:
    """A frontend follows from the configuration, so no checkpoint holds it."""
    frontend = build_frontend(TrainConfig.model_validate({"frontend": name}))
    assert not frontend.state_dict()
    assert not list(frontend.parameters())


def test_mel_bands_too_narrow_for_the_transform_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Bands that no frequency bin falls into are reported instead of staying black unnoticed."""
    with caplog.at_level(logging.WARNING, logger="trainer.filterbanks"):
        frontend = build_frontend(TrainConfig(n_fft=256, n_mels=128))
    assert "empty_mel_bands" in caplog.messages
    assert torch.isfinite(frontend(torch.zeros(1, 16_000))).all()
