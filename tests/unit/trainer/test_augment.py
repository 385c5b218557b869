"""Augmentation: what each policy changes, how far, and that the generator alone decides."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.clips import seeded, tiny_config
from trainer.augment import Augment, build_augment
from trainer.config import Augmentation, TrainConfig
from trainer.frontend import build_frontend
from trainer.waveform_effects import MAX_GAIN_DB

POLICIES = get_args(Augmentation)


def make(policy: str, strength: float, **others: Any) -> Augment:
    values = {"augmentation": policy, "strength": strength, **others}
    return build_augment(TrainConfig.model_validate(values))


def waveforms(batch: int = 8, num_samples: int = 4000) -> Tensor:
    return torch.rand(batch, num_samples, generator=seeded(1)) - 0.5


def images(batch: int = 8, channels: int = 1, height: int = 40, width: int = 50) -> Tensor:
    grey = torch.rand(batch, 1, height, width, generator=seeded(2))
    return grey.expand(-1, channels, -1, -1)


def one_hot(batch: int = 8) -> Tensor:
    return torch.eye(2)[torch.arange(batch) % 2]


def sines(cycles: int, batch: int, num_samples: int) -> Tensor:
    phase = 2 * math.pi * cycles * torch.arange(num_samples) / num_samples
    return (0.1 * torch.sin(phase)).repeat(batch, 1)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("policy", POLICIES)
def test_same_generator_state_gives_the_same_batch(policy: str, strength: float) -> None:
    """Nothing but the batch and the generator decides, so a resumed training sees the same."""
    augment = make(policy, strength)

    def run() -> tuple[Tensor, ...]:
        generator = seeded(3)
        waveform = augment.waveform(waveforms(), generator)
        return waveform, *augment.image(images(), one_hot(), generator)

    assert all(torch.equal(*pair) for pair in zip(run(), run(), strict=True))


@pytest.mark.parametrize("policy", ["notebook", "spec", "strong", "channel", "rawboost", "full"])
def test_other_generator_state_gives_another_batch(policy: str) -> None:
    """Each step of a training is augmented anew."""
    augment = make(policy, 0.5)
    first, _ = augment.image(images(), one_hot(), seeded(1))
    second, _ = augment.image(images(), one_hot(), seeded(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("policy", POLICIES)
def test_batch_handed_in_is_left_alone(policy: str) -> None:
    """The caller's tensors hold the same numbers afterwards."""
    augment, generator = make(policy, 1.0), seeded()
    waveform, image, targets = waveforms(), images().clone(), one_hot()
    augment.waveform(waveform, generator)
    augment.image(image, targets, generator)
    assert torch.equal(waveform, waveforms())
    assert torch.equal(image, images())
    assert torch.equal(targets, one_hot())


@pytest.mark.parametrize("policy", POLICIES)
def test_augmented_images_stay_images(policy: str) -> None:
    """Shape, range, equal channels and a total of 1 in each target survive the strongest form."""
    image, targets = make(policy, 1.0).image(images(channels=3), one_hot(), seeded())
    assert image.shape == images(channels=3).shape
    assert image.min() >= 0
    assert image.max() <= 1
    assert torch.equal(image[:, 0], image[:, 2])
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))


@pytest.mark.parametrize("policy", POLICIES)
def test_cached_images_pass_the_waveform_stage_untouched(policy: str) -> None:
    """The notebook frontend's uint8 input has no waveform to change."""
    cached = torch.arange(256, dtype=torch.uint8).repeat(2, 256, 1)
    assert torch.equal(make(policy, 1.0).waveform(cached, seeded()), cached)


@pytest.mark.parametrize("policy", POLICIES)
def test_silence_stays_silent(policy: str) -> None:
    """No signal means no noise either, and no nan."""
    silence = torch.zeros(4, 3999)  # an odd length too
    assert torch.equal(make(policy, 1.0).waveform(silence, seeded()), silence)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_none_ignores_strength(strength: float) -> None:
    """The policy `none` returns what it is given."""
    augment = make("none", strength)
    assert torch.equal(augment.waveform(waveforms(), seeded()), waveforms())
    image, targets = augment.image(images(), one_hot(), seeded())
    assert torch.equal(image, images())
    assert torch.equal(targets, one_hot())


def test_notebook_without_strength_is_exactly_the_four_flips() -> None:
    """Every pixel is a pixel of the input, and each combination of flips occurs."""
    before = images(batch=64)
    after, targets = make("notebook", 0.0).image(before, one_hot(64), seeded())
    flips = [before, before.flip(-1), before.flip(-2), before.flip(-1, -2)]
    matches = torch.stack([(after == flip).all(dim=(1, 2, 3)) for flip in flips])
    assert (matches.sum(dim=0) == 1).all()
    assert (matches.sum(dim=1) >= 6).all()
    assert torch.equal(targets, one_hot(64))


def test_notebook_with_little_strength_is_close_to_the_flips() -> None:
    """The crop and the jitter start from nothing."""
    ramp = torch.linspace(0, 0.9, 50).expand(16, 1, 40, 50)
    after, _ = make("notebook", 0.01).image(ramp, one_hot(16), seeded())
    nearest = torch.minimum(
        (after - ramp).abs().amax(dim=(1, 2, 3)), (after - ramp.flip(-1)).abs().amax(dim=(1, 2, 3))
    )
    assert nearest.max() < 0.01


def test_notebook_crop_keeps_at_least_four_fifths_of_a_side() -> None:
    """Of 40 stripes, 32 to 40 remain visible at full strength, and not always as many."""
    phase = 2 * math.pi * 40 * (torch.arange(400) + 0.5) / 400
    stripes = (0.5 + 0.3 * torch.cos(phase)).expand(64, 1, 8, 400)
    after, _ = make("notebook", 1.0).image(stripes, one_hot(64), seeded())
    row = after[:, 0, 4]
    above = row > (row.amax(dim=1, keepdim=True) + row.amin(dim=1, keepdim=True)) / 2
    num_stripes = (above[:, 1:] != above[:, :-1]).sum(dim=1) / 2
    assert num_stripes.min() >= 31
    assert num_stripes.max() <= 41
    assert num_stripes.max() - num_stripes.min() >= 4


def test_clip_that_fills_its_window_is_rolled_without_a_seam() -> None:
    """No part of it comes again earlier than its length after itself."""
    periods_B = torch.tensor([700, 1100, 1999, 2000] * 4)
    tiled_BT = 1.0 + torch.arange(2000) % periods_B[:, None]
    rolled_BT = make("spec", 1.0).waveform(tiled_BT, seeded(), periods_B)
    assert not torch.equal(rolled_BT.argmax(dim=1), tiled_BT.argmax(dim=1))
    for row_T, period in zip(rolled_BT, periods_B.tolist(), strict=True):
        assert torch.equal(row_T[period:], row_T[:-period])
        assert len(row_T[:period].unique()) == period


@pytest.mark.parametrize("policy", POLICIES)
def test_mixture_comes_again_as_early_as_the_shorter_of_two(policy: str) -> None:
    """Where a policy mixes; else each clip's own length stays."""
    own_B = torch.tensor([700, 1100, 1999, 2000])
    mixed_B = torch.tensor([700, 700, 1100, 1999])
    found_B = make(policy, 1.0).own_samples(own_B)
    assert torch.equal(found_B, mixed_B if policy in ("strong", "full") else own_B)
    several = make(policy, 1.0, train_windows=2)
    assert torch.equal(several.own_samples(own_B), own_B)


def made_by(frontend: str, **others: Any) -> Tensor:
    """Return a frontend's images of noise that gets louder."""
    config = tiny_config(frontend=frontend, **others)
    noise_BT = torch.rand(64, 2000, generator=seeded(3)) - 0.5
    image: Tensor = build_frontend(config)(noise_BT * torch.linspace(0, 1, 2000) ** 4)
    return image


def test_notebook_jitter_leaves_coefficients_their_sign() -> None:
    """Cepstral coefficients are no pixels: as many stay below 0, or above 1, as were there."""
    before = made_by("lfcc", n_lfcc=24)
    after, _ = make("notebook", 0.1, frontend="lfcc").image(before, one_hot(64), seeded())
    for beyond_before, beyond_after in ((before < 0, after < 0), (before > 1, after > 1)):
        share = float(beyond_before.float().mean())
        assert share > 0.05
        assert float(beyond_after.float().mean()) == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize("frontend", ["logmel", "logstft"])
def test_what_the_notebook_jitters_else_is_pixels(frontend: str) -> None:
    """All normalisation comes after it, so spectrograms and phases are in [0, 1] there."""
    before = made_by(frontend, phase=True)
    after, _ = make("notebook", 1.0, frontend=frontend).image(before, one_hot(64), seeded())
    assert 0 <= before.min() < before.max() <= 1
    assert 0 <= after.min() < after.max() <= 1


def test_notebook_jitter_changes_brightness_by_at_most_a_fifth() -> None:
    """A plain image, on which contrast and crop do nothing, shows the brightness factors."""
    plain = torch.full((64, 1, 8, 8), 0.5)
    after, _ = make("notebook", 1.0).image(plain, one_hot(64), seeded())
    factors = after[:, 0, 4, 4] / 0.5
    assert 0.8 - 1e-5 <= factors.min() < 0.9
    assert 1.1 < factors.max() <= 1.2 + 1e-5


def test_spec_without_strength_changes_nothing() -> None:
    """Strength 0 of `spec` is the identity, to the bit."""
    augment = make("spec", 0.0)
    assert torch.equal(augment.waveform(waveforms(), seeded()), waveforms())
    assert torch.equal(augment.image(images(), one_hot(), seeded())[0], images())


def test_spec_rolls_and_scales_each_waveform_by_its_own_amount() -> None:
    """The samples are the same ones, turned round and scaled by one gain within its limits."""
    impulses = torch.zeros(64, 1000)
    impulses[:, 100], impulses[:, 101] = 1.0, -0.5
    after = make("spec", 1.0).waveform(impulses, seeded())
    gains, places = after.max(dim=1)
    assert torch.equal((after != 0).sum(dim=1), torch.full((64,), 2))
    following = after[torch.arange(64), (places + 1) % 1000]
    torch.testing.assert_close(following, -0.5 * gains)
    assert (20 * gains.log10()).abs().max() <= MAX_GAIN_DB + 1e-4
    assert len(set(places.tolist())) > 50
    assert len(set(gains.tolist())) > 50


def test_spec_shifts_in_proportion_to_strength() -> None:
    """At strength 0.2 nothing moves by more than a tenth of the window."""
    impulses = torch.zeros(64, 1000)
    impulses[:, 500] = 1.0
    places = make("spec", 0.2).waveform(impulses, seeded()).argmax(dim=1)
    assert 390 < places.min() < 450
    assert 550 < places.max() < 610


def test_spec_covers_whole_rows_and_columns_with_the_mean() -> None:
    """What isn't an input's pixel is that image's mean, over full bands of time or frequency."""
    before = images(batch=32)
    after, targets = make("spec", 1.0).image(before, one_hot(32), seeded())
    covered = (after != before)[:, 0]
    rows, columns = covered.all(dim=2), covered.all(dim=1)
    assert torch.equal(covered, rows[:, :, None] | columns[:, None, :])
    means = before.mean(dim=(1, 2, 3), keepdim=True).expand_as(after)
    assert torch.equal(after[:, 0][covered], means[:, 0][covered])
    assert torch.equal(targets, one_hot(32))


@pytest.mark.parametrize(("strength", "most"), [(1.0, 0.4), (0.25, 0.1)])
def test_spec_covers_more_with_more_strength(strength: float, most: float) -> None:
    """Two masks of a fifth of an axis each, at most, times strength."""
    before = images(batch=64, height=100, width=100)
    after, _ = make("spec", strength).image(before, one_hot(64), seeded())
    share = (after != before)[:, 0].all(dim=2).float().mean(dim=1)
    assert most / 2 < share.max() <= most + 0.02


@pytest.mark.parametrize("policy", ["strong", "channel", "rawboost", "full"])
def test_without_strength_a_policy_is_the_identity_up_to_rounding(policy: str) -> None:
    """Strength 0 adds no noise, cuts nothing and mixes nothing."""
    augment = make(policy, 0.0)
    torch.testing.assert_close(
        augment.waveform(waveforms(), seeded()), waveforms(), atol=1e-6, rtol=0
    )
    image, targets = augment.image(images(), one_hot(), seeded())
    assert torch.equal(image, images())
    assert torch.equal(targets, one_hot())


def test_strong_adds_noise_to_half_of_the_batch_at_ten_to_forty_decibels() -> None:
    """At a sample rate below the telephone's band, noise is the one thing beside the sine."""
    before = sines(cycles=200, batch=128, num_samples=8000)
    after = make("strong", 1.0, sample_rate=6800).waveform(before, seeded())
    power = torch.fft.rfft(after.double()).abs().square()
    snr = 10 * (power[:, 200] / (power.sum(dim=1) - power[:, 200])).log10()
    noisy = snr < 80
    assert 40 < noisy.sum() < 88
    assert 9 < snr[noisy].min() < 15
    assert 35 < snr[noisy].max() < 41


def test_strong_noise_is_weaker_with_less_strength() -> None:
    """A tenth of the strength is 20 dB less noise from the same draws."""
    before = sines(cycles=200, batch=16, num_samples=8000)

    def noise_power(strength: float) -> Tensor:
        after = make("strong", strength, sample_rate=6800).waveform(before, seeded())
        power = torch.fft.rfft(after.double()).abs().square()
        share: Tensor = (power.sum(dim=1) - power[:, 200]) / power[:, 200]
        return torch.where(share > 1e-7, share, 0.0)  # a sine in float32 has 1e-9 of its own

    torch.testing.assert_close(noise_power(1.0), 100 * noise_power(0.1), rtol=0.05, atol=0)


def test_strong_narrows_the_band_of_some_down_to_the_telephone() -> None:
    """Half of the impulses keep their high frequencies, others lose them, none below 3.4 kHz."""
    impulses = torch.zeros(64, 4800)
    impulses[:, 0] = 1.0
    after = make("strong", 1.0, sample_rate=48_000).waveform(impulses, seeded())
    power = torch.fft.rfft(after).abs().square()  # 10 Hz a bin
    reference = power[:, 250:330].mean(dim=1)
    relative = power[:, 1800:2300].mean(dim=1) / reference
    assert (relative < 0.01).sum() > 10
    assert (relative > 0.5).sum() > 20
    assert (power[:, 250:330].amin(dim=1) / reference > 0.01).all()


def test_strong_mixes_images_and_targets_in_the_same_shares() -> None:
    """A mixture of two plain images is as bright as its soft target says; one's own part leads."""
    values = torch.linspace(0, 1, 16)
    plain = values[:, None, None, None].expand(16, 1, 8, 8)
    after, targets = make("strong", 1.0).image(plain, torch.eye(16), seeded())
    torch.testing.assert_close(after[:, 0, 3, 3], targets @ values)
    assert (targets.diagonal() >= 0.5).all()
    assert targets.diagonal().min() < 0.7
    assert ((targets > 0).sum(dim=1) == 2).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_evaluation_at_strength_zero_sees_the_exact_image(policy: str) -> None:
    """Only the notebook's policy crops at all."""
    assert torch.equal(make(policy, 0.0).evaluation_image(images()), images())
    is_cropped = not torch.equal(make(policy, 1.0).evaluation_image(images()), images())
    assert is_cropped == (policy == "notebook")


def test_centre_crop_is_224_of_256_resized_back() -> None:
    """As the notebook's Resize 256 and CenterCrop 224, at the image's own size."""
    whole = images(channels=3, height=256, width=256)
    seen = make("notebook", 1.0).evaluation_image(whole)
    crop = functional.interpolate(whole[..., 16:240, 16:240], (256, 256), mode="bilinear")
    inside = (..., slice(2, -2), slice(2, -2))  # at the rim the sampling sees one pixel more
    assert torch.allclose(seen[inside], crop[inside], atol=1e-4)
