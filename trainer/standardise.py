"""Normalisation by the training clips' own values, which a model keeps as part of itself."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

SMALLEST_STD = 1e-2
"""One dB: a band that is always silent is not blown up to noise."""

# Shape suffixes: B batch, C channels, M bands, F frames, S all values of a band.


class Standardise(nn.Module):
    """Takes each band's mean over the training clips off, and divides by its deviation."""

    mean_M1: Tensor
    std_M1: Tensor

    def __init__(self, num_bands: int) -> None:
        super().__init__()
        self.register_buffer("mean_M1", torch.zeros(num_bands, 1))
        self.register_buffer("std_M1", torch.ones(num_bands, 1))

    def forward(self, image_BCMF: Tensor) -> Tensor:
        """Return the image of the same shape."""
        return (image_BCMF - self.mean_M1) / self.std_M1

    @torch.no_grad()
    def measure(self, images: Iterable[Tensor]) -> None:
        """Take mean and deviation from batches of images (B, C, M, F)."""
        total_M1 = torch.zeros_like(self.mean_M1, dtype=torch.float64)
        squares_M1 = torch.zeros_like(total_M1)
        count = 0
        for image_BCMF in images:
            values_MS = image_BCMF.double().transpose(0, 2).flatten(1)
            total_M1 += values_MS.sum(dim=1, keepdim=True)
            squares_M1 += values_MS.square().sum(dim=1, keepdim=True)
            count += values_MS.shape[1]
        mean_M1 = total_M1 / count
        self.mean_M1.copy_(mean_M1)
        variance_M1 = squares_M1 / count - mean_M1.square()
        self.std_M1.copy_(variance_M1.clamp(min=SMALLEST_STD**2).sqrt())
