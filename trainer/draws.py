"""Random numbers of an augmentation, all from the generator of the step."""

import torch
from torch import Tensor


def draw(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """Return uniform draws from [0, 1), (count, B), on the generator's device."""
    return torch.rand(count, batch, generator=generator, device=generator.device)
