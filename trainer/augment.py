"""Augmentation of waveforms and images, batched on their device: what each policy does.

Every random number comes from the generator that the caller hands in, which must live on the
batch's device: same generator state, same batch, same result.
"""

import math

import torch
from torch import Tensor

from trainer import image_effects as on_image
from trainer import waveform_effects as on_waveform
from trainer.config import Augmentation, TrainConfig
from trainer.draws import draw

# Shape suffixes: B batch, T samples, N frequency bins, C channels, M mel bands (height),
# F frames (width), K classes, S draws of a sample (axes of an image: frequency, time).

MAX_CROP = 0.2
"""Of the image's area."""
MAX_MARGIN = 1 / 8
"""Of the image's sides, both margins of the centre crop together: 256 pixels to 224."""
MAX_JITTER = 0.2


class Augment:
    """The policy `none`, and what every policy can do: change waveforms, images and targets."""

    may_mix = False
    """Whether the policy mixes images."""

    def __init__(self, config: TrainConfig) -> None:
        self.strength = config.strength
        self.differing = slice(1 if config.frontend == "notebook" else None)
        """The channels that aren't copies of others."""
        self.limits = (-math.inf, math.inf) if config.frontend == "lfcc" else (0.0, 1.0)
        """Of what the frontend's images hold: coefficients have none."""
        self.nyquist = config.sample_rate / 2
        self.mixes = self.may_mix and config.modality == "audio" and config.train_windows == 1
        """Two windows can be mixed, two clips' pictures or all their windows can't."""

    def waveform(
        self,
        waveform_BT: Tensor,
        generator: torch.Generator,
        own_samples_B: Tensor | None = None,
    ) -> Tensor:
        """Return augmented waveforms; the notebook frontend's uint8 images come back untouched.

        With `own_samples_B` a clip comes again no earlier in the augmented window than before.
        """
        if not waveform_BT.is_floating_point():
            return waveform_BT
        return self.sound(waveform_BT, generator, own_samples_B)

    def own_samples(self, own_samples_B: Tensor) -> Tensor:
        """Return after how many samples a clip comes again in each augmented image."""
        if not self.mixes:
            return own_samples_B
        return torch.minimum(own_samples_B, own_samples_B.roll(1, dims=0))

    def image(
        self, image_BCMF: Tensor, targets_BK: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return augmented images, not yet normalised, and their soft targets."""
        changed_BCMF, targets_BK = self.spectrogram(
            image_BCMF[:, self.differing], targets_BK, generator
        )
        return changed_BCMF.expand_as(image_BCMF), targets_BK

    def sound(
        self, waveform_BT: Tensor, generator: torch.Generator, own_samples_B: Tensor | None
    ) -> Tensor:
        """Return augmented float waveforms."""
        return waveform_BT

    def spectrogram(
        self, image_BCMF: Tensor, targets_BK: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return augmented images without copied channels, and their soft targets."""
        return image_BCMF, targets_BK

    def evaluation_image(self, image_BCMF: Tensor) -> Tensor:
        """Return what an evaluation sees of images, not yet normalised."""
        return image_BCMF


class NotebookAugment(Augment):
    """The notebook's policy: flips; with strength also its crops and its jitter.

    Its jitter of saturation and hue changes nothing on grey, so there is none here.
    """

    def spectrogram(
        self, image_BCMF: Tensor, targets_BK: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Flip each image with probability 1/2 along each axis, crop and jitter by strength."""
        flips_SB = draw(2, len(image_BCMF), generator) < 0.5
        if self.strength == 0:
            image_BCMF = on_image.flip(image_BCMF, flips_SB)
        else:
            crop = MAX_CROP * self.strength
            image_BCMF = on_image.crop(
                image_BCMF, flips_SB, draw(4, len(image_BCMF), generator), crop
            )
            jitter = MAX_JITTER * self.strength
            draws_SB = draw(2, len(image_BCMF), generator)
            image_BCMF = on_image.jitter(image_BCMF, draws_SB, jitter, self.limits)
        return image_BCMF, targets_BK

    def evaluation_image(self, image_BCMF: Tensor) -> Tensor:
        """Return the centre crop, resized to the image's size; the whole image at strength 0."""
        if self.strength == 0:
            return image_BCMF
        differing_BCMF = image_BCMF[:, self.differing]
        size = 2, differing_BCMF.shape[0]  # len() would be a constant of an exported graph
        scales_SB = differing_BCMF.new_full(size, 1 - MAX_MARGIN * self.strength)
        return on_image.sample(differing_BCMF, scales_SB, torch.zeros_like(scales_SB)).expand_as(
            image_BCMF
        )


class SpecAugment(Augment):
    """The policy `spec`: time shift and gain of the waveform, masks in the image."""

    def sound(
        self, waveform_BT: Tensor, generator: torch.Generator, own_samples_B: Tensor | None
    ) -> Tensor:
        """Roll each waveform and change its level."""
        return on_waveform.vary_level_and_place(
            waveform_BT, self.strength, generator, own_samples_B
        )

    def spectrogram(
        self, image_BCMF: Tensor, targets_BK: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cover bands of time and of frequency."""
        return on_image.mask(image_BCMF, self.strength, generator), targets_BK


class StrongAugment(SpecAugment):
    """The policy `strong`: `spec`, and noise, a narrower band and mixup."""

    may_mix = True

    def sound(
        self, waveform_BT: Tensor, generator: torch.Generator, own_samples_B: Tensor | None
    ) -> Tensor:
        """Roll and change the level, then add coloured noise and cut high frequencies."""
        waveform_BT = super().sound(waveform_BT, generator, own_samples_B)
        how = self.strength, self.nyquist, generator
        spectrum_BN = torch.fft.rfft(waveform_BT)
        spectrum_BN += on_waveform.noise_spectrum(spectrum_BN, *how)
        spectrum_BN *= on_waveform.low_pass(spectrum_BN, *how)
        degraded_BT: Tensor = torch.fft.irfft(spectrum_BN, n=waveform_BT.shape[1])
        return degraded_BT

    def spectrogram(
        self, image_BCMF: Tensor, targets_BK: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cover bands, then mix each image and its target with another."""
        image_BCMF, targets_BK = super().spectrogram(image_BCMF, targets_BK, generator)
        if not self.mixes:
            return image_BCMF, targets_BK
        return on_image.mixup(image_BCMF, targets_BK, self.strength, generator)


class ChannelAugment(SpecAugment):
    """The policy `channel`: `spec`, and what lies between a mouth and a file."""

    def sound(
        self, waveform_BT: Tensor, generator: torch.Generator, own_samples_B: Tensor | None
    ) -> Tensor:
        """Put sounds into rooms, add noise, narrow the band, overdrive, silence the ends."""
        waveform_BT = super().sound(waveform_BT, generator, own_samples_B)
        sample_rate = round(2 * self.nyquist)
        waveform_BT = on_waveform.reverberate(waveform_BT, self.strength, sample_rate, generator)
        how = self.strength, self.nyquist, generator
        spectrum_BN = torch.fft.rfft(waveform_BT)
        spectrum_BN += on_waveform.noise_spectrum(spectrum_BN, *how)
        spectrum_BN *= on_waveform.low_pass(spectrum_BN, *how)
        spectrum_BN *= on_waveform.high_pass(spectrum_BN, *how)
        waveform_BT = torch.fft.irfft(spectrum_BN, n=waveform_BT.shape[1])
        waveform_BT = on_waveform.clip_peaks(waveform_BT, self.strength, generator)
        return on_waveform.pad_ends(waveform_BT, self.strength, generator)


class RawBoostAugment(SpecAugment):
    """The policy `rawboost`: `spec`, and distortion, impulses and noise as RawBoost adds them.

    Source: Tak et al. 2022, RawBoost.
    """

    def sound(
        self, waveform_BT: Tensor, generator: torch.Generator, own_samples_B: Tensor | None
    ) -> Tensor:
        """Distort, add impulses, then noise through a filter of notches."""
        waveform_BT = super().sound(waveform_BT, generator, own_samples_B)
        waveform_BT = on_waveform.distort(waveform_BT, self.strength, generator)
        waveform_BT = on_waveform.add_impulses(waveform_BT, self.strength, generator)
        spectrum_BN = torch.fft.rfft(waveform_BT)
        noise_BN = on_waveform.noise_spectrum(spectrum_BN, self.strength, self.nyquist, generator)
        spectrum_BN += noise_BN * on_waveform.notches(spectrum_BN, generator)
        boosted_BT: Tensor = torch.fft.irfft(spectrum_BN, n=waveform_BT.shape[1])
        return boosted_BT


class FullAugment(ChannelAugment):
    """The policy `full`: `channel`, distortion and impulses, and mixup or cutmix."""

    may_mix = True

    def sound(
        self, waveform_BT: Tensor, generator: torch.Generator, own_samples_B: Tensor | None
    ) -> Tensor:
        """Distort and add impulses before the channel."""
        waveform_BT = on_waveform.distort(waveform_BT, self.strength, generator)
        waveform_BT = on_waveform.add_impulses(waveform_BT, self.strength, generator)
        return super().sound(waveform_BT, generator, own_samples_B)

    def spectrogram(
        self, image_BCMF: Tensor, targets_BK: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cover bands, then mix each image and its target with another, one way or the other."""
        image_BCMF, targets_BK = super().spectrogram(image_BCMF, targets_BK, generator)
        if not self.mixes:
            return image_BCMF, targets_BK
        is_mixed_B = draw(1, len(targets_BK), generator)[0] < 0.5
        mixed = on_image.mixup(image_BCMF, targets_BK, self.strength, generator)
        cut = on_image.cutmix(image_BCMF, targets_BK, self.strength, generator)
        return (
            torch.where(is_mixed_B[:, None, None, None], mixed[0], cut[0]),
            torch.where(is_mixed_B[:, None], mixed[1], cut[1]),
        )


POLICIES: dict[Augmentation, type[Augment]] = {
    "none": Augment,
    "notebook": NotebookAugment,
    "spec": SpecAugment,
    "strong": StrongAugment,
    "channel": ChannelAugment,
    "rawboost": RawBoostAugment,
    "full": FullAugment,
}


def build_augment(config: TrainConfig) -> Augment:
    """Return the policy that the configuration names, at its strength."""
    return POLICIES[config.augmentation](config)
