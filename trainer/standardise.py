"""Normalisation by the training clips' own values, which a model keeps as part of itself."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

SMALLEST_STD = 1e-2
"""One dB: a band that is always silent is not blown up to noise."""

# Shape suffixes: B batch, C channels, M bands, F frames, S all values of a band.


class Standardise(nn.Module):
    """Takes each band's mean over the training clips off, and divides by its deviation."""

    mean_CM1: Tensor
    std_CM1: Tensor

    def __init__(self, num_channels: int, num_bands: int) -> None:
        super().__init__()
        self.register_buffer("mean_CM1", torch.zeros(num_channels, num_bands, 1))
        self.register_buffer("std_CM1", torch.ones(num_channels, num_bands, 1))

    def forward(self, image_BCMF: Tensor) -> Tensor:
        """Return the image of the same shape."""
        return (image_BCMF - self.mean_CM1) / self.std_CM1

    @torch.no_grad()
    def measure(self, images: Iterable[Tensor]) -> None:
        """Take mean and deviation from batches of images (B, C, M, F)."""
        total_CM1 = torch.zeros_like(self.mean_CM1, dtype=torch.float64)
        squares_CM1 = torch.zeros_like(total_CM1)
        count = 0
        for image_BCMF in images:
            values_CMS = image_BCMF.double().movedim(0, 2).flatten(2)
            total_CM1 += values_CMS.sum(dim=2, keepdim=True)
            squares_CM1 += values_CMS.square().sum(dim=2, keepdim=True)
            count += values_CMS.shape[2]
        mean_CM1 = total_CM1 / count
        self.mean_CM1.copy_(mean_CM1)
        variance_CM1 = squares_CM1 / count - mean_CM1.square()
        self.std_CM1.copy_(variance_CM1.clamp(min=SMALLEST_STD**2).sqrt())
