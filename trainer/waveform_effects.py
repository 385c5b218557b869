"""What rooms, lines and recorders do to sound, batched on the waveforms' device.

Each function takes float waveforms (B, T), or their spectrum (B, N) of the real transform, and a
strength from 0, which changes nothing, to 1. Each waveform has draws of its own; what says so
changes a random half of the batch.
"""

import math

import torch
from torch import Tensor

from trainer.draws import draw

# Shape suffixes: B batch, T samples, N frequency bins, S draws of a sample, R samples of a room.

MAX_GAIN_DB = 12.0
MAX_SHIFT = 0.5
"""Of the window's length, either way."""
MAX_PADDING = 0.15
"""Of the window's length, at each end."""
SNR_RANGE_DB = (10.0, 40.0)
LOWEST_PINK_HZ = 20.0
"""Pink noise is flat below, or most of its power would be inaudible."""
LOWEST_CUTOFF_HZ = 3400.0
HIGHEST_BASS_CUT_HZ = 300.0
"""The telephone's band is from the one to the other."""
ROLL_OFF = 0.05
"""Of half the sample rate: the width of the low-pass's slope."""
REVERBERATION_SECONDS = (0.1, 0.8)
"""Until a room is 60 dB quieter."""
MAX_TAIL = 1.0
"""Energy of a room's tail beside that of the direct sound."""
LOWEST_LIMIT = 0.15
"""Of the peak, where clipping begins at most."""
NUM_NOTCHES = 5
NOTCH_WIDTH = (0.01, 0.12)
"""Of half the sample rate."""
ORDER_GAINS_DB = (0.0, -8.0, -16.0)
"""Of a device's linear, square and cubic part."""
MAX_IMPULSES = 0.1
"""Share of the samples that impulses hit."""


def vary_level_and_place(
    waveform_BT: Tensor,
    strength: float,
    generator: torch.Generator,
    periods_B: Tensor | None = None,
) -> Tensor:
    """Roll each waveform and change its level; nothing is clipped at full scale.

    Where waveforms come again after so many samples, they still do, without a seam.
    """
    draws_SB = 2 * draw(2, len(waveform_BT), generator) - 1
    num_samples = waveform_BT.shape[1]
    shift_B = (draws_SB[0] * MAX_SHIFT * strength * num_samples).long() % num_samples
    gain_db_B1 = draws_SB[1, :, None] * MAX_GAIN_DB * strength
    if periods_B is None:
        rolled_BT = _roll(waveform_BT, shift_B)
    else:
        place_T = torch.arange(num_samples, device=shift_B.device)
        rolled_BT = waveform_BT.gather(1, (place_T - shift_B[:, None]) % periods_B[:, None])
    return rolled_BT * torch.pow(10, gain_db_B1 / 20)


def pad_ends(waveform_BT: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Silence a random length at each end, for half of the batch, so that it says nothing."""
    on_B, before_B, after_B = draw(3, len(waveform_BT), generator)
    largest_B = MAX_PADDING * strength * (on_B < 0.5)
    place_T = (torch.arange(waveform_BT.shape[1], device=waveform_BT.device) + 0.5) / (
        waveform_BT.shape[1]
    )
    heard_BT = (place_T >= (before_B * largest_B)[:, None]) & (
        place_T < 1 - (after_B * largest_B)[:, None]
    )
    return torch.where(heard_BT, waveform_BT, 0.0)


def reverberate(
    waveform_BT: Tensor, strength: float, sample_rate: int, generator: torch.Generator
) -> Tensor:
    """Put half of the batch into a room: noise that dies away after the direct sound.

    The level stays, and so does the place of the direct sound.

    Source: Polack 1988: a diffuse room's response is Gaussian noise that decays exponentially.
    """
    batch, num_samples = waveform_BT.shape
    on_B, seconds_B, tail_B = draw(3, batch, generator)
    shortest, longest = REVERBERATION_SECONDS
    seconds_B1 = (shortest + (longest - shortest) * seconds_B)[:, None]
    length = round(longest * sample_rate)
    noise_BR = torch.randn(batch, length, generator=generator, device=generator.device)
    age = torch.arange(length, device=generator.device) / sample_rate
    room_BR = noise_BR * torch.exp(-math.log(1000) / seconds_B1 * age)
    energy_B1 = (MAX_TAIL * strength * tail_B * (on_B < 0.5))[:, None]
    room_BR *= (energy_B1 / room_BR.square().sum(dim=1, keepdim=True)).sqrt()
    room_BR[:, 0] = 1.0
    size = num_samples + length
    spectrum_BN = torch.fft.rfft(waveform_BT, n=size) * torch.fft.rfft(room_BR, n=size)
    return _at_level_of(waveform_BT, torch.fft.irfft(spectrum_BN, n=size)[:, :num_samples])


def clip_peaks(waveform_BT: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Overdrive half of the batch: a quarter is cut off hard, a quarter is bent."""
    kind_B1, depth_B1 = draw(2, len(waveform_BT), generator)[:, :, None]
    peak_B1 = waveform_BT.abs().amax(dim=1, keepdim=True)
    limit_B1 = peak_B1 * (1 - (1 - LOWEST_LIMIT) * strength * depth_B1)
    hard_BT = waveform_BT.clamp(-limit_B1, limit_B1)
    bent_BT = limit_B1 * torch.tanh(waveform_BT / limit_B1.clamp(min=1e-9))
    bent_BT = torch.lerp(waveform_BT, bent_BT, strength * depth_B1)
    return torch.where(kind_B1 < 0.25, hard_BT, torch.where(kind_B1 < 0.5, bent_BT, waveform_BT))


def add_impulses(waveform_BT: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Add impulses in proportion to the signal to a share of samples, for half of the batch.

    Source: Tak et al. 2022, RawBoost, section 3.2, impulsive signal-dependent additive noise.
    """
    on_B, share_B = draw(2, len(waveform_BT), generator)
    hits_BT, height_BT = torch.rand(
        2, *waveform_BT.shape, generator=generator, device=generator.device
    )
    hit_BT = hits_BT < (MAX_IMPULSES * share_B * (on_B < 0.5))[:, None]
    return torch.addcmul(waveform_BT, waveform_BT, hit_BT * (2 * height_BT - 1), value=strength)


def distort(waveform_BT: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Pass half of the batch through a device of notches and harmonics, at its level.

    Source: Tak et al. 2022, RawBoost, section 3.1, linear and non-linear convolutive noise.
    """
    batch, num_samples = waveform_BT.shape
    on_B1 = draw(1, batch, generator)[0, :, None]
    peak_B1 = waveform_BT.abs().amax(dim=1, keepdim=True).clamp(min=1e-9)
    through_BT = torch.zeros_like(waveform_BT)
    for order, gain_db in enumerate(ORDER_GAINS_DB, 1):
        power_BT = (waveform_BT / peak_B1).pow(order) * peak_B1
        spectrum_BN = torch.fft.rfft(power_BT)
        spectrum_BN *= notches(spectrum_BN, generator)
        through_BT += torch.fft.irfft(spectrum_BN, n=num_samples) * 10 ** (gain_db / 20)
    through_BT = _at_level_of(waveform_BT, through_BT - through_BT.mean(dim=1, keepdim=True))
    return torch.lerp(waveform_BT, through_BT, strength * (on_B1 < 0.5).float())


def notches(spectrum_BN: Tensor, generator: torch.Generator) -> Tensor:
    """Return the response (B, N) of a filter with a few notches, for the whole batch."""
    batch, num_bins = spectrum_BN.shape
    place_N = torch.linspace(0, 1, num_bins, device=generator.device)
    narrowest, widest = NOTCH_WIDTH
    response_BN = torch.ones(batch, num_bins, device=generator.device)
    for _ in range(NUM_NOTCHES):
        centre_B1, width_B1, depth_B1 = draw(3, batch, generator)[:, :, None]
        width_B1 = narrowest + (widest - narrowest) * width_B1
        response_BN *= 1 - depth_B1 * torch.exp(-((place_N - centre_B1) / width_B1).square())
    return response_BN


def noise_spectrum(
    spectrum_BN: Tensor, strength: float, nyquist: float, generator: torch.Generator
) -> Tensor:
    """Return the spectrum of noise between white and pink, for half of the batch.

    At strength 1 the signal-to-noise ratio is uniform over SNR_RANGE_DB; the noise's amplitude
    is proportional to strength.
    """
    batch, num_bins = spectrum_BN.shape
    on_B, colour_B, ratio_B = draw(3, batch, generator)
    hertz_N = torch.linspace(0, nyquist, num_bins, device=spectrum_BN.device)
    octaves_N = (hertz_N / LOWEST_PINK_HZ).clamp(min=1).log2()
    shape_BN = torch.exp2(-0.5 * colour_B[:, None] * octaves_N)
    low, high = SNR_RANGE_DB
    snr_B = torch.pow(10, (low + (high - low) * ratio_B) / 10)
    power_B = (spectrum_BN.real.square() + spectrum_BN.imag.square()).sum(dim=1)
    level_B = (power_B / (snr_B * 2 * shape_BN.square().sum(dim=1))).sqrt()
    level_B = level_B * strength * (on_B < 0.5)
    parts_BN2 = torch.randn(batch, num_bins, 2, generator=generator, device=spectrum_BN.device)
    return torch.view_as_complex(parts_BN2).mul_(shape_BN.mul_(level_B[:, None]))


def low_pass(
    spectrum_BN: Tensor, strength: float, nyquist: float, generator: torch.Generator
) -> Tensor:
    """Return the response of a low-pass for half of the batch, 1 everywhere for the others.

    The cut-off is log-uniform from half the sample rate down to LOWEST_CUTOFF_HZ at strength 1.
    """
    on_B, depth_B = draw(2, len(spectrum_BN), generator)
    octaves = max(0.0, math.log2(nyquist / LOWEST_CUTOFF_HZ)) * strength
    cutoff_B = torch.exp2(-octaves * depth_B * (on_B < 0.5))
    position_N = torch.linspace(0, 1, spectrum_BN.shape[1], device=spectrum_BN.device)
    excess_BN = (position_N - cutoff_B[:, None]) / ROLL_OFF
    return torch.sub(1, excess_BN).clamp_(0, 1)


def high_pass(
    spectrum_BN: Tensor, strength: float, nyquist: float, generator: torch.Generator
) -> Tensor:
    """Return the response of a second-order high-pass for half of the batch, 1 for the others.

    The cut-off is uniform from 0 to HIGHEST_BASS_CUT_HZ at strength 1.
    """
    on_B, height_B = draw(2, len(spectrum_BN), generator)
    cutoff_B1 = (HIGHEST_BASS_CUT_HZ * strength * height_B * (on_B < 0.5))[:, None]
    hertz_N = torch.linspace(0, nyquist, spectrum_BN.shape[1], device=spectrum_BN.device)
    ratio_BN = hertz_N.clamp(min=1e-3) / cutoff_B1.clamp(min=1e-6)
    return torch.sigmoid(4 * ratio_BN.log()).sqrt()


def _at_level_of(waveform_BT: Tensor, changed_BT: Tensor) -> Tensor:
    """Return what was changed at the level that it had."""
    was_B1, is_B1 = (x.square().mean(dim=1, keepdim=True) for x in (waveform_BT, changed_BT))
    return changed_BT * (was_B1 / is_B1.clamp(min=1e-20)).sqrt()


def _roll(waveform_BT: Tensor, shift_B: Tensor) -> Tensor:
    """Return each waveform moved later by its own shift in [0, T), its end coming first."""
    batch, num_samples = waveform_BT.shape
    turns = torch.cat([waveform_BT, waveform_BT], dim=1).unfold(1, num_samples, 1)
    return turns[torch.arange(batch, device=shift_B.device), num_samples - shift_B]
