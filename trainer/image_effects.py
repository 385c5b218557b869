"""What is done to images, batched on their device; all channels of one alike."""

import torch
from torch import Tensor
from torch.nn import functional

from trainer.draws import draw

# Shape suffixes: B batch, C channels, M mel bands (height), F frames (width), K classes, S draws
# of a sample (axes of an image: frequency, time).

NUM_MASKS = 2
"""Along time, and as many along frequency."""
MAX_MASK = 0.2
"""Of the axis, each mask."""
MAX_MIX = 0.5


def mask(image_BCMF: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Cover bands of time and of frequency with each channel's mean.

    Source: Park et al. 2019, SpecAugment, section 2, without the warp.
    """
    batch, _, height, width = image_BCMF.shape
    largest = MAX_MASK * strength
    covered_BM = bands(draw(2 * NUM_MASKS, batch, generator), height, largest)
    covered_BF = bands(draw(2 * NUM_MASKS, batch, generator), width, largest)
    covered_B1MF = (covered_BM[:, :, None] | covered_BF[:, None, :]).unsqueeze(1)
    mean_BC11 = image_BCMF.mean(dim=(2, 3), keepdim=True)
    return torch.where(covered_B1MF, mean_BC11, image_BCMF)


def mixup(
    image_BCMF: Tensor, targets_BK: Tensor, strength: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image and its target with the one before it in the batch.

    The share of the other is uniform in [0, strength / 2], not from a Beta distribution:
    torch's Beta takes no generator, and so an image stays the larger part of its mixture.
    A batch is shuffled, so its neighbours are as random as any pair.

    Source: Zhang et al. 2018, mixup: beyond empirical risk minimization.
    """
    share_B = draw(1, len(targets_BK), generator)[0] * MAX_MIX * strength
    share_B111 = share_B[:, None, None, None]
    image_BCMF = torch.lerp(image_BCMF, image_BCMF.roll(1, dims=0), share_B111)
    targets_BK = torch.lerp(targets_BK, targets_BK.roll(1, dims=0), share_B[:, None])
    return image_BCMF, targets_BK


def cutmix(
    image_BCMF: Tensor, targets_BK: Tensor, strength: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Put a box of the image before it in the batch over each image, and mix targets by its area.

    The box has the image's proportions and an area uniform in [0, strength / 2].

    Source: Yun et al. 2019, CutMix.
    """
    area_B, *places_SB = draw(3, len(targets_BK), generator)
    side_B = (area_B * MAX_MIX * strength).sqrt()
    inside = [
        _within(place_B * (1 - side_B), side_B, length)
        for place_B, length in zip(places_SB, image_BCMF.shape[2:], strict=True)
    ]
    box_B1MF = (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1)
    share_B1 = box_B1MF.float().mean(dim=(2, 3))
    image_BCMF = torch.where(box_B1MF, image_BCMF.roll(1, dims=0), image_BCMF)
    return image_BCMF, torch.lerp(targets_BK, targets_BK.roll(1, dims=0), share_B1)


def _within(start_B: Tensor, side_B: Tensor, length: int) -> Tensor:
    """Return which of `length` places are in a range of fractions, (B, length)."""
    place = (torch.arange(length, device=start_B.device) + 0.5) / length
    return (place >= start_B[:, None]) & (place < (start_B + side_B)[:, None])


def bands(draws_SB: Tensor, length: int, largest: float) -> Tensor:
    """Return which of `length` places are covered, (B, length), by bands of random width and start.

    Half of the draws are widths as fractions of `largest`, which is a fraction of the length.
    """
    widths, places = draws_SB.T.unsqueeze(-1).chunk(2, dim=1)
    widths = widths * largest * length
    starts = places * (length - widths)
    position = torch.arange(length, device=draws_SB.device) + 0.5
    return ((position >= starts) & (position < starts + widths)).any(dim=1)


def flip(image_BCMF: Tensor, flips_SB: Tensor) -> Tensor:
    """Return images flipped along frequency and along time where told, exact to the pixel."""
    for axis, flip_B in zip((-2, -1), flips_SB, strict=True):
        flip_B111 = flip_B[:, None, None, None]
        image_BCMF = torch.where(flip_B111, image_BCMF.flip(axis), image_BCMF)
    return image_BCMF


def crop(image_BCMF: Tensor, flips_SB: Tensor, draws_SB: Tensor, largest: float) -> Tensor:
    """Return flipped random crops, resized to the image's size, in one bilinear sampling.

    A crop keeps at least 1 - `largest` of the area; its aspect is log-uniform among those that fit.
    """
    log_area_B = torch.log1p(-largest * draws_SB[0])
    log_aspect_B = log_area_B * (2 * draws_SB[1] - 1)
    sides_SB = torch.stack([log_area_B + log_aspect_B, log_area_B - log_aspect_B]).mul(0.5).exp()
    centres_SB = (2 * draws_SB[2:] - 1) * (1 - sides_SB)
    return sample(image_BCMF, torch.where(flips_SB, -sides_SB, sides_SB), centres_SB)


def sample(image_BCMF: Tensor, scales_SB: Tensor, centres_SB: Tensor) -> Tensor:
    """Return a section of each image at the image's size, bilinear.

    Sides are 1 for the whole image, negative ones flip; centres are in [-1, 1], 0 in the middle.
    """
    theta_B23 = image_BCMF.new_zeros(image_BCMF.shape[0], 2, 3)
    theta_B23[:, 1, 1], theta_B23[:, 0, 0] = scales_SB
    theta_B23[:, 1, 2], theta_B23[:, 0, 2] = centres_SB
    grid = functional.affine_grid(theta_B23, list(image_BCMF.shape), align_corners=False)
    return functional.grid_sample(image_BCMF, grid, padding_mode="border", align_corners=False)


def jitter(
    image_BCMF: Tensor, draws_SB: Tensor, largest: float, limits: tuple[float, float]
) -> Tensor:
    """Return images with brightness, then contrast, scaled by factors in 1 ± `largest`.

    What goes beyond the limits is cut off there, after each.
    """
    brightness, contrast = (1 + largest * (2 * draws_SB - 1))[:, :, None, None, None]
    image_BCMF = (image_BCMF * brightness).clamp(*limits)
    mean_BC11 = image_BCMF.mean(dim=(2, 3), keepdim=True)
    return torch.lerp(mean_BC11, image_BCMF, contrast).clamp(*limits)
