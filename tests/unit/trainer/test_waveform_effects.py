"""Effects on waveforms: identity without strength, what changes with it, and what stays."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.clips import seeded
from trainer import waveform_effects as effects

SAMPLE_RATE = 16_000
Effect = Callable[[Tensor, float, torch.Generator], Tensor]


def through(
    response: Callable[[Tensor, float, float, torch.Generator], Tensor],
) -> Effect:
    """Return the effect that multiplies spectra by a response."""

    def apply(waveform_BT: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        spectrum_BN = torch.fft.rfft(waveform_BT)
        spectrum_BN *= response(spectrum_BN, strength, SAMPLE_RATE / 2, generator)
        return torch.fft.irfft(spectrum_BN, n=waveform_BT.shape[1])

    return apply


def reverberate(waveform_BT: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    return effects.reverberate(waveform_BT, strength, SAMPLE_RATE, generator)


EFFECTS: dict[str, Effect] = {
    "level and place": effects.vary_level_and_place,
    "pad": effects.pad_ends,
    "room": reverberate,
    "clip": effects.clip_peaks,
    "impulses": effects.add_impulses,
    "distort": effects.distort,
    "low-pass": through(effects.low_pass),
    "high-pass": through(effects.high_pass),
}
KEEP_HALF = sorted(EFFECTS.keys() - {"level and place"})


def bursts(batch: int = 64, num_samples: int = 8000) -> Tensor:
    """Return noise of a level that rises and falls, as speech does."""
    noise_BT = torch.randn(batch, num_samples, generator=seeded(1))
    return 0.1 * noise_BT * torch.sin(torch.arange(num_samples) / 300).clamp(min=0)


def changed(before_BT: Tensor, after_BT: Tensor) -> Tensor:
    """Tell of each waveform whether it was changed beyond rounding, (B,)."""
    return ((before_BT - after_BT).abs() > 1e-4).any(dim=1)


@pytest.mark.parametrize("name", EFFECTS)
def test_without_strength_nothing_changes(name: str) -> None:
    """Strength 0 is the identity, up to the rounding of a transform."""
    torch.testing.assert_close(EFFECTS[name](bursts(), 0.0, seeded(3)), bursts(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", EFFECTS)
def test_shape_stays_and_all_is_finite(name: str) -> None:
    """Also of silence, of a click and of a constant."""
    odd = torch.zeros(3, 8000)
    odd[1, 4000], odd[2] = 1.0, 0.5
    for waveform_BT in (bursts(), odd):
        after_BT = EFFECTS[name](waveform_BT, 1.0, seeded(3))
        assert after_BT.shape == waveform_BT.shape
        assert torch.isfinite(after_BT).all()
        assert after_BT.abs().max() < 16 * waveform_BT.abs().max()
    assert EFFECTS[name](odd, 1.0, seeded(3))[0].abs().max() == 0


@pytest.mark.parametrize("name", KEEP_HALF)
def test_about_half_of_the_batch_is_changed(name: str) -> None:
    """Of 64 between 20 and 44, the others not at all; another generator takes others."""
    first, second = (changed(bursts(), EFFECTS[name](bursts(), 1.0, seeded(n))) for n in (3, 4))
    assert 20 <= first.sum() <= 44
    assert (first != second).any()


@pytest.mark.parametrize("name", ["room", "distort"])
def test_level_is_kept(name: str) -> None:
    """What a room or a device adds is taken off again, to a tenth of a decibel or two."""
    before, after = bursts(), EFFECTS[name](bursts(), 1.0, seeded(3))
    ratio_B = after.square().mean(dim=1) / before.square().mean(dim=1)
    mixed_low = 0.25 if name == "distort" else 0.99
    assert mixed_low <= ratio_B.min() <= ratio_B.max() <= 1.01


def test_room_sounds_after_the_direct_sound_and_dies_away() -> None:
    """A click keeps its place, and each tenth of a second later there is less of it."""
    click_BT = torch.zeros(64, 16_000)
    click_BT[:, 1000] = 0.5
    room_BT = reverberate(click_BT, 1.0, seeded(3))
    is_wet_B = changed(click_BT, room_BT)
    wet_BT = room_BT[is_wet_B]
    assert (wet_BT.abs().argmax(dim=1) == 1000).all()
    assert wet_BT[:, :1000].abs().max() < 1e-6
    energy = wet_BT[:, 1001:].square().unfold(1, 1600, 1600).sum(dim=(0, 2))
    assert (energy[1:] < energy[:-1]).all()


def test_ends_are_silenced_by_at_most_their_share() -> None:
    """The middle is left as it was, and what is silenced lies at the ends."""
    waveform_BT = torch.ones(64, 1000)
    padded_BT = effects.pad_ends(waveform_BT, 1.0, seeded(3))
    most = round(1000 * effects.MAX_PADDING)
    assert (padded_BT[:, most:-most] == 1).all()
    is_silent_BT = padded_BT == 0
    assert is_silent_BT[:, 0].any()
    assert is_silent_BT[:, -1].any()
    assert ((padded_BT == 0) | (padded_BT == 1)).all()


def test_clipping_never_raises_the_peak() -> None:
    """The peak falls to no less than the lowest limit."""
    before, after = bursts(), effects.clip_peaks(bursts(), 1.0, seeded(3))
    ratio_B = after.abs().amax(dim=1) / before.abs().amax(dim=1)
    assert ratio_B.max() <= 1
    assert ratio_B.min() >= effects.LOWEST_LIMIT * 0.999
    assert ratio_B.min() < 0.6


def test_impulses_hit_a_tenth_of_the_samples_at_most() -> None:
    """Each at most doubles its sample or silences it."""
    before, after = bursts(), effects.add_impulses(bursts(), 1.0, seeded(3))
    hit_BT = before != after
    assert 0 < hit_BT.float().mean(dim=1).max() <= effects.MAX_IMPULSES + 0.01
    assert (after.abs() <= 2.0001 * before.abs()).all()


@pytest.mark.parametrize(("name", "kept", "lost"), [("low-pass", 0.1, 0.9), ("high-pass", 0.5, 0)])
def test_band_is_narrowed_at_its_end(name: str, kept: float, lost: float) -> None:
    """Frequencies, as shares of half the sample rate, that pass and that some no longer hear."""
    impulse_BT = torch.zeros(64, 2000)
    impulse_BT[:, 0] = 1.0
    response_BN = torch.fft.rfft(EFFECTS[name](impulse_BT, 1.0, seeded(3))).abs()
    last = response_BN.shape[1] - 1
    assert response_BN[:, round(kept * last)].min() > 0.95
    assert response_BN[:, round(lost * last)].min() < 0.1


def test_distortion_makes_harmonics() -> None:
    """A sine of 400 Hz gets a square part at 800 Hz and a cubic one at 1200 Hz."""
    sine_BT = torch.sin(torch.arange(8000) * 2 * torch.pi * 400 / SAMPLE_RATE).repeat(64, 1) / 4
    after = EFFECTS["distort"](sine_BT, 1.0, seeded(3))
    power_N = torch.fft.rfft(after[changed(sine_BT, after)]).abs().mean(dim=0)
    assert power_N[[400, 600]].min() > 20 * power_N[[300, 500, 700]].max()


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_notches_are_seeded_and_only_take_away(strength: float) -> None:
    """Equal generators make equal filters, whose gain is in [0, 1]."""
    spectrum_BN = torch.fft.rfft(bursts() * strength)
    make = partial(effects.notches, spectrum_BN)
    response_BN = make(seeded(5))
    assert torch.equal(response_BN, make(seeded(5)))
    assert response_BN.min() >= 0
    assert response_BN.max() <= 1
    assert response_BN.min() < 0.3
