"""Augmentation of waveforms and images, batched on their device.

Every random number comes from the generator that the caller hands in, which must live on the
batch's device: same generator state, same batch, same result.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import TrainConfig

# Shape suffixes: B batch, T samples, N frequency bins, C channels, M mel bands (height),
# F frames (width), K classes, S draws of a sample (axes of an image: frequency, time).

MAX_GAIN_DB = 12.0
MAX_SHIFT = 0.5
"""Of the window's length, either way."""
NUM_MASKS = 2
"""Along time, and as many along frequency."""
MAX_MASK = 0.2
"""Of the axis, each mask."""
SNR_RANGE_DB = (10.0, 40.0)
LOWEST_PINK_HZ = 20.0
"""Pink noise is flat below, or most of its power would be inaudible."""
LOWEST_CUTOFF_HZ = 3400.0
"""The telephone's band."""
ROLL_OFF = 0.05
"""Of half the sample rate: the width of the low-pass's slope."""
MAX_MIX = 0.5
MAX_CROP = 0.2
"""Of the image's area."""
MAX_MARGIN = 1 / 8
"""Of the image's sides, both margins of the centre crop together: 256 pixels to 224."""
MAX_JITTER = 0.2


class Augment:
    """The policy `none`, and what every policy can do: change waveforms, images and targets.

    A policy relies on equal channels, as each frontend's images have them.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.strength = config.strength
        self.nyquist = config.sample_rate / 2

    def waveform(self, waveform_BT: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented waveforms; the notebook frontend's uint8 images come back untouched."""
        return waveform_BT

    def image(
        self, image_BCMF: Tensor, targets_BK: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return augmented images in [0, 1], not yet normalised, and their soft targets."""
        return image_BCMF, targets_BK

    def evaluation_image(self, image_BCMF: Tensor) -> Tensor:
        """Return what an evaluation sees of images in [0, 1], not yet normalised."""
        return image_BCMF


class NotebookAugment(Augment):
    """The notebook's policy: flips; with strength also its crops and its jitter.

    Its jitter of saturation and hue changes nothing on grey, so there is none here.
    """

    def image(
        self, image_BCMF: Tensor, targets_BK: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Flip each image with probability 1/2 along each axis, crop and jitter by strength."""
        grey_B1MF = image_BCMF[:, :1]
        flips_SB = _draw(2, len(grey_B1MF), generator) < 0.5
        if self.strength == 0:
            grey_B1MF = _flip(grey_B1MF, flips_SB)
        else:
            crop = MAX_CROP * self.strength
            grey_B1MF = _crop(grey_B1MF, flips_SB, _draw(4, len(grey_B1MF), generator), crop)
            jitter = MAX_JITTER * self.strength
            grey_B1MF = _jitter(grey_B1MF, _draw(2, len(grey_B1MF), generator), jitter)
        return grey_B1MF.expand_as(image_BCMF), targets_BK

    def evaluation_image(self, image_BCMF: Tensor) -> Tensor:
        """Return the centre crop, resized to the image's size; the whole image at strength 0."""
        if self.strength == 0:
            return image_BCMF
        grey_B1MF = image_BCMF[:, :1]
        scales_SB = grey_B1MF.new_full((2, len(grey_B1MF)), 1 - MAX_MARGIN * self.strength)
        return _sample(grey_B1MF, scales_SB, torch.zeros_like(scales_SB)).expand_as(image_BCMF)


class SpecAugment(Augment):
    """The policy `spec`: time shift and gain of the waveform, masks in the image."""

    def waveform(self, waveform_BT: Tensor, generator: torch.Generator) -> Tensor:
        """Roll each waveform and change its level; nothing is clipped at full scale."""
        if not waveform_BT.is_floating_point():
            return waveform_BT
        draws_SB = 2 * _draw(2, len(waveform_BT), generator) - 1
        num_samples = waveform_BT.shape[1]
        shift_B = (draws_SB[0] * MAX_SHIFT * self.strength * num_samples).long() % num_samples
        gain_db_B1 = draws_SB[1, :, None] * MAX_GAIN_DB * self.strength
        return _roll(waveform_BT, shift_B) * torch.pow(10, gain_db_B1 / 20)

    def image(
        self, image_BCMF: Tensor, targets_BK: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cover bands of time and of frequency with the image's mean.

        Source: Park et al. 2019, SpecAugment, section 2, without the warp.
        """
        batch, _, height, width = image_BCMF.shape
        largest = MAX_MASK * self.strength
        covered_BM = _bands(_draw(2 * NUM_MASKS, batch, generator), height, largest)
        covered_BF = _bands(_draw(2 * NUM_MASKS, batch, generator), width, largest)
        covered_B1MF = (covered_BM[:, :, None] | covered_BF[:, None, :]).unsqueeze(1)
        grey_B1MF = image_BCMF[:, :1]
        mean_B111 = grey_B1MF.mean(dim=(1, 2, 3), keepdim=True)
        grey_B1MF = torch.where(covered_B1MF, mean_B111, grey_B1MF)
        return grey_B1MF.expand_as(image_BCMF), targets_BK


class StrongAugment(SpecAugment):
    """The policy `strong`: `spec`, and noise, a narrower band and mixup."""

    def waveform(self, waveform_BT: Tensor, generator: torch.Generator) -> Tensor:
        """Roll and change the level, then add coloured noise and cut high frequencies."""
        waveform_BT = super().waveform(waveform_BT, generator)
        if not waveform_BT.is_floating_point():
            return waveform_BT
        spectrum_BN = torch.fft.rfft(waveform_BT)
        spectrum_BN += self._noise(spectrum_BN, generator)
        spectrum_BN *= self._low_pass(spectrum_BN, generator)
        degraded_BT: Tensor = torch.fft.irfft(spectrum_BN, n=waveform_BT.shape[1])
        return degraded_BT

    def image(
        self, image_BCMF: Tensor, targets_BK: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cover bands, then mix each image and its target with the one before it in the batch.

        The share of the other is uniform in [0, strength / 2], not from a Beta distribution:
        torch's Beta takes no generator, and so an image stays the larger part of its mixture.
        A batch is shuffled, so its neighbours are as random as any pair.

        Source: Zhang et al. 2018, mixup: beyond empirical risk minimization.
        """
        image_BCMF, targets_BK = super().image(image_BCMF, targets_BK, generator)
        share_B = _draw(1, len(targets_BK), generator)[0] * MAX_MIX * self.strength
        grey_B1MF = image_BCMF[:, :1]
        share_B111 = share_B[:, None, None, None]
        grey_B1MF = torch.lerp(grey_B1MF, grey_B1MF.roll(1, dims=0), share_B111)
        targets_BK = torch.lerp(targets_BK, targets_BK.roll(1, dims=0), share_B[:, None])
        return grey_B1MF.expand_as(image_BCMF), targets_BK

    def _noise(self, spectrum_BN: Tensor, generator: torch.Generator) -> Tensor:
        """Return the spectrum of noise between white and pink, for half of the samples.

        At strength 1 the signal-to-noise ratio is uniform over SNR_RANGE_DB; the noise's
        amplitude is proportional to strength.
        """
        batch, num_bins = spectrum_BN.shape
        on_B, colour_B, ratio_B = _draw(3, batch, generator)
        hertz_N = torch.linspace(0, self.nyquist, num_bins, device=spectrum_BN.device)
        octaves_N = (hertz_N / LOWEST_PINK_HZ).clamp(min=1).log2()
        shape_BN = torch.exp2(-0.5 * colour_B[:, None] * octaves_N)
        low, high = SNR_RANGE_DB
        snr_B = torch.pow(10, (low + (high - low) * ratio_B) / 10)
        power_B = (spectrum_BN.real.square() + spectrum_BN.imag.square()).sum(dim=1)
        level_B = (power_B / (snr_B * 2 * shape_BN.square().sum(dim=1))).sqrt()
        level_B = level_B * self.strength * (on_B < 0.5)
        parts_BN2 = torch.randn(batch, num_bins, 2, generator=generator, device=spectrum_BN.device)
        return torch.view_as_complex(parts_BN2).mul_(shape_BN.mul_(level_B[:, None]))

    def _low_pass(self, spectrum_BN: Tensor, generator: torch.Generator) -> Tensor:
        """Return the response of a low-pass for half of the samples, 1 everywhere for the others.

        The cut-off is log-uniform from half the sample rate down to LOWEST_CUTOFF_HZ at strength 1.
        """
        on_B, depth_B = _draw(2, len(spectrum_BN), generator)
        octaves = max(0.0, math.log2(self.nyquist / LOWEST_CUTOFF_HZ)) * self.strength
        cutoff_B = torch.exp2(-octaves * depth_B * (on_B < 0.5))
        position_N = torch.linspace(0, 1, spectrum_BN.shape[1], device=spectrum_BN.device)
        excess_BN = (position_N - cutoff_B[:, None]) / ROLL_OFF
        return torch.sub(1, excess_BN).clamp_(0, 1)


def build_augment(config: TrainConfig) -> Augment:
    """Return the policy that the configuration names, at its strength."""
    policies = {
        "none": Augment,
        "notebook": NotebookAugment,
        "spec": SpecAugment,
        "strong": StrongAugment,
    }
    return policies[config.augmentation](config)


def _draw(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """Return uniform draws from [0, 1), (count, B), on the generator's device."""
    return torch.rand(count, batch, generator=generator, device=generator.device)


def _roll(waveform_BT: Tensor, shift_B: Tensor) -> Tensor:
    """Return each waveform moved later by its own shift in [0, T), its end coming first."""
    batch, num_samples = waveform_BT.shape
    turns = torch.cat([waveform_BT, waveform_BT], dim=1).unfold(1, num_samples, 1)
    return turns[torch.arange(batch, device=shift_B.device), num_samples - shift_B]


def _bands(draws_SB: Tensor, length: int, largest: float) -> Tensor:
    """Return which of `length` places are covered, (B, length), by bands of random width and start.

    Half of the draws are widths as fractions of `largest`, which is a fraction of the length.
    """
    widths, places = draws_SB.T.unsqueeze(-1).chunk(2, dim=1)
    widths = widths * largest * length
    starts = places * (length - widths)
    position = torch.arange(length, device=draws_SB.device) + 0.5
    return ((position >= starts) & (position < starts + widths)).any(dim=1)


def _flip(image_BCMF: Tensor, flips_SB: Tensor) -> Tensor:
    """Return images flipped along frequency and along time where told, exact to the pixel."""
    for axis, flip_B in zip((-2, -1), flips_SB, strict=True):
        flip_B111 = flip_B[:, None, None, None]
        image_BCMF = torch.where(flip_B111, image_BCMF.flip(axis), image_BCMF)
    return image_BCMF


def _crop(image_BCMF: Tensor, flips_SB: Tensor, draws_SB: Tensor, largest: float) -> Tensor:
    """Return flipped random crops, resized to the image's size, in one bilinear sampling.

    A crop keeps at least 1 - `largest` of the area; its aspect is log-uniform among those that fit.
    """
    log_area_B = torch.log1p(-largest * draws_SB[0])
    log_aspect_B = log_area_B * (2 * draws_SB[1] - 1)
    sides_SB = torch.stack([log_area_B + log_aspect_B, log_area_B - log_aspect_B]).mul(0.5).exp()
    centres_SB = (2 * draws_SB[2:] - 1) * (1 - sides_SB)
    return _sample(image_BCMF, torch.where(flips_SB, -sides_SB, sides_SB), centres_SB)


def _sample(image_BCMF: Tensor, scales_SB: Tensor, centres_SB: Tensor) -> Tensor:
    """Return a section of each image at the image's size, bilinear.

    Sides are 1 for the whole image, negative ones flip; centres are in [-1, 1], 0 in the middle.
    """
    theta_B23 = image_BCMF.new_zeros(len(image_BCMF), 2, 3)
    theta_B23[:, 1, 1], theta_B23[:, 0, 0] = scales_SB
    theta_B23[:, 1, 2], theta_B23[:, 0, 2] = centres_SB
    grid = functional.affine_grid(theta_B23, list(image_BCMF.shape), align_corners=False)
    return functional.grid_sample(image_BCMF, grid, padding_mode="border", align_corners=False)


def _jitter(image_BCMF: Tensor, draws_SB: Tensor, largest: float) -> Tensor:
    """Return images with brightness, then contrast, scaled by factors in 1 ± `largest`."""
    brightness, contrast = (1 + largest * (2 * draws_SB - 1))[:, :, None, None, None]
    image_BCMF = (image_BCMF * brightness).clamp(0, 1)
    mean_B111 = image_BCMF.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(mean_B111, image_BCMF, contrast).clamp(0, 1)
