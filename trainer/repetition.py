"""A cue for utterances that come again: stripes in the self-similarity of a spectrogram."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import TrainConfig

# Shape suffixes: B batch, C channels, M bands, F frames, D lags, U places of a stripe, X features.

FRAME_SECONDS = 0.025
SHORTEST_LAG_SECONDS = 0.3
"""Neighbouring frames are alike anyway."""
STRIPE_SECONDS = 0.4
"""So long a passage must come again."""
NUM_BANDS = 24
NUM_FEATURES = 5
NUM_HIDDEN = 16
SMALLEST_NORM = 0.05


class Repetition(nn.Module):
    """Adds to what a backbone answers what repetition in its image says; nothing at first.

    Source: Foote 1999, Visualizing music and audio using self-similarity.
    """

    def __init__(self, config: TrainConfig, num_answers: int) -> None:
        super().__init__()
        frames_per_second = config.sample_rate / config.hop_length
        self.stride = max(1, round(FRAME_SECONDS * frames_per_second))
        per_second = frames_per_second / self.stride
        self.shortest_lag = max(1, round(SHORTEST_LAG_SECONDS * per_second))
        self.stripe = max(1, round(STRIPE_SECONDS * per_second))
        self.read = nn.Sequential(
            nn.Linear(NUM_FEATURES, NUM_HIDDEN), nn.GELU(), nn.Linear(NUM_HIDDEN, num_answers)
        )
        last = cast(nn.Linear, self.read[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, image_BCMF: Tensor) -> Tensor:
        """Return what to add to the answers (B, X) to images."""
        return cast(Tensor, self.read(self.features(image_BCMF)))

    def features(self, image_BCMF: Tensor) -> Tensor:
        """Return the strongest stripe, its lag as a share of all, and the profile's statistics.

        (B, NUM_FEATURES); zeros for windows too short to hold a passage twice.
        """
        profile_BD = self.profile(image_BCMF)
        if profile_BD is None:
            return image_BCMF.new_zeros(len(image_BCMF), NUM_FEATURES)
        strongest_B, lag_B = profile_BD.max(dim=1)
        return torch.stack(
            [
                strongest_B,
                lag_B.to(profile_BD.dtype) / profile_BD.shape[1],
                profile_BD.mean(dim=1),
                profile_BD.std(dim=1, unbiased=False),
                strongest_B - profile_BD.median(dim=1).values,
            ],
            dim=1,
        )

    def profile(self, image_BCMF: Tensor) -> Tensor | None:
        """Return how alike the most alike passages at each lag are, (B, D), from -1 to 1.

        None for windows too short to hold a passage twice.
        """
        grey_BMF = image_BCMF[:, 0].float()  # other channels are copies, or tell of the phase
        size = (min(NUM_BANDS, grey_BMF.shape[1]), grey_BMF.shape[2] // self.stride)
        num_lags = size[1] - self.stripe - self.shortest_lag + 1
        if num_lags < 2:
            return None
        coarse_BMF = functional.adaptive_avg_pool2d(grey_BMF, size)
        centred_BMF = coarse_BMF - coarse_BMF.mean(dim=2, keepdim=True)
        norm_B1F = centred_BMF.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)
        unit_BMF = centred_BMF / norm_B1F
        stripes = [
            self._strongest(unit_BMF, self.shortest_lag + number) for number in range(num_lags)
        ]
        return torch.stack(stripes, dim=1)

    def _strongest(self, unit_BMF: Tensor, lag: int) -> Tensor:
        """Return the highest mean similarity of a passage with the one a lag later (B,)."""
        alike_BU = (unit_BMF[:, :, :-lag] * unit_BMF[:, :, lag:]).sum(dim=1)
        return functional.avg_pool1d(alike_BU, self.stripe, stride=1).amax(dim=1)
