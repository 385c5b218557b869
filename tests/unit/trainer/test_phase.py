"""Images of the phase: what they say of tones, clicks, silence and noise."""

import math

import pytest
import torch
from torch import Tensor

from tests.clips import tiny_config
from trainer.augment import build_augment
from trainer.config import TrainConfig
from trainer.frontend import build_frontend

SAMPLE_RATE = 4000
SECONDS = torch.arange(SAMPLE_RATE, dtype=torch.float64) / SAMPLE_RATE


def phases(waveform_T: Tensor, **values: object) -> Tensor:
    """Return the complex numbers of the four changes, (4, M, F)."""
    config = TrainConfig(
        sample_rate=SAMPLE_RATE, frontend="logstft", n_fft=128, hop_length=32, phase=True
    ).model_copy(update=values)
    image_CMF = build_frontend(config)(waveform_T[None].float())[0]
    assert len(image_CMF) == 9
    parts_CMF = 2 * image_CMF[1:] - 1
    return torch.complex(parts_CMF[0::2], parts_CMF[1::2])


def test_tone_turns_by_what_it_differs_from_its_bin() -> None:
    """From frame to frame; what that changes by, in time, is nothing."""
    hertz = 1010.0
    turns = phases((2 * math.pi * hertz * SECONDS).sin())
    row = round(hertz / SAMPLE_RATE * 128)
    expected = 2 * math.pi * (hertz - row / 128 * SAMPLE_RATE) * 32 / SAMPLE_RATE
    inside = slice(8, -8)
    torch.testing.assert_close(
        turns[0, row, inside].angle(), torch.full((110,), expected), atol=1e-3, rtol=0
    )
    assert turns[2, row, inside].real.min() > 0.999


def test_click_turns_from_bin_to_bin_by_its_place() -> None:
    """In the middle of a frame by nothing; a sample later by one N-th of a turn backwards."""
    waveform_T = torch.zeros(SAMPLE_RATE)
    waveform_T[32 * 50 + 3] = 1.0
    angle_M = phases(waveform_T)[1, 1:, 50].angle()
    torch.testing.assert_close(
        angle_M, torch.full((64,), -2 * math.pi * 3 / 128), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("frontend", ["logmel", "logstft"])
def test_silence_and_what_no_image_shows_have_no_phase(frontend: str) -> None:
    """All numbers are 0; a noise 120 dB below full scale is as good as silent."""
    noise_T = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    for waveform_T in (torch.zeros(SAMPLE_RATE), 1e-6 * noise_T):
        assert phases(waveform_T, frontend=frontend, n_mels=20).abs().max() < 0.3


def test_band_between_two_bins_has_no_phase() -> None:
    """More bands than a transform has bins: those that hear none are 0, and nothing is nan."""
    generator = torch.Generator().manual_seed(0)
    found = phases(
        torch.randn(SAMPLE_RATE, generator=generator) / 10, frontend="logmel", n_mels=200
    )
    assert found.real.isfinite().all()
    assert (found.abs().amax(dim=(0, 2)) == 0).any()


def test_band_is_sure_of_a_tone_and_unsure_of_noise() -> None:
    """A number's length says whether the band's bins agree."""
    tone_T = (2 * math.pi * 1010.0 * SECONDS).sin()
    generator = torch.Generator().manual_seed(0)
    noise_T = torch.randn(SAMPLE_RATE, generator=generator) / 10
    how = {"frontend": "logmel", "n_mels": 10, "n_fft": 512, "hop_length": 256}
    sure, unsure = (phases(x, **how)[2, :, 3:-3].abs() for x in (tone_T, noise_T))
    assert sure.amax(dim=0).min() > 0.95
    assert unsure.mean() < 0.7


def test_loudness_changes_no_phase() -> None:
    """Twelve decibels less: the same images, but where next to nothing is heard."""
    generator = torch.Generator().manual_seed(0)
    waveform_T = torch.randn(SAMPLE_RATE, generator=generator) / 10
    difference = (phases(waveform_T) - phases(waveform_T / 4)).abs()
    assert difference.quantile(0.99) < 0.02


def test_masks_cover_the_phase_with_the_power() -> None:
    """The same places, each channel by its own mean."""
    config = tiny_config(phase=True, augmentation="spec", strength=1.0)
    generator = torch.Generator().manual_seed(0)
    image_BCMF = torch.rand(4, 9, 40, 50, generator=generator)
    changed_BCMF, _ = build_augment(config).image(image_BCMF, torch.eye(2)[[0, 1, 0, 1]], generator)
    covered_BCMF = changed_BCMF != image_BCMF
    assert covered_BCMF.any()
    assert torch.equal(covered_BCMF, covered_BCMF[:, :1].expand_as(covered_BCMF))
    mean_BCMF = image_BCMF.mean(dim=(2, 3), keepdim=True).expand_as(image_BCMF)
    torch.testing.assert_close(changed_BCMF[covered_BCMF], mean_BCMF[covered_BCMF])


@pytest.mark.parametrize("frontend", ["lfcc", "notebook"])
def test_frontends_without_phase_say_so(frontend: str) -> None:
    """Nothing is ignored in silence."""
    with pytest.raises(ValueError, match=f'frontend "{frontend}" has no phase'):
        TrainConfig.model_validate({"frontend": frontend, "phase": True})
