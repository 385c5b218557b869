"""A cue for utterances that come again: stripes in the self-similarity of a spectrogram."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.batches import window_samples
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
NO_LAG = -2.0
"""Less than any similarity."""


class Repetition(nn.Module):
    """Adds to what a backbone answers what repetition in its image says; nothing at first.

    Source: Foote 1999, Visualizing music and audio using self-similarity.
    """

    def __init__(self, config: TrainConfig, num_answers: int) -> None:
        super().__init__()
        frames_per_second = config.sample_rate / config.hop_length
        self.window_samples = window_samples(config)
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

    def forward(self, image_BCMF: Tensor, own_samples_B: Tensor | None = None) -> Tensor:
        """Return what to add to the answers (B, X) to images.

        A clip that is shorter than the window comes again in it after `own_samples_B`; what is
        there, or further on, is not compared. Without them the whole window is.
        """
        return cast(Tensor, self.read(self.features(image_BCMF, own_samples_B)))

    def features(self, image_BCMF: Tensor, own_samples_B: Tensor | None = None) -> Tensor:
        """Return the strongest stripe, its lag as a share of all, and the profile's statistics.

        (B, NUM_FEATURES); zeros for what is too short to hold a passage twice.
        """
        profile_BD = self.profile(image_BCMF, own_samples_B)
        if profile_BD is None:
            return image_BCMF.new_zeros(image_BCMF.shape[0], NUM_FEATURES)
        is_lag_BD = profile_BD > NO_LAG
        num_lags_B = is_lag_BD.sum(dim=1)
        strongest_B, lag_B = profile_BD.max(dim=1)
        mean_B = _mean(profile_BD, is_lag_BD)
        variance_B = _mean((profile_BD - mean_B[:, None]).square(), is_lag_BD)
        features_BX = torch.stack(
            [
                strongest_B,
                lag_B.to(profile_BD.dtype) / profile_BD.shape[1],
                mean_B,
                variance_B.sqrt(),
                strongest_B - _median(profile_BD, num_lags_B),
            ],
            dim=1,
        )
        return torch.where(num_lags_B[:, None] < 2, 0.0, features_BX)

    def profile(self, image_BCMF: Tensor, own_samples_B: Tensor | None = None) -> Tensor | None:
        """Return how alike the most alike passages at each lag are, (B, D), from -1 to 1.

        NO_LAG where a clip is too short for the lag. None for windows too short to hold a passage
        twice.
        """
        grey_BMF = image_BCMF[:, 0].float()  # other channels are copies, or tell of the phase
        size = (min(NUM_BANDS, grey_BMF.shape[1]), grey_BMF.shape[2] // self.stride)
        num_lags = size[1] - self.stripe - self.shortest_lag + 1
        if num_lags < 2:
            return None
        frame_F = torch.arange(size[1], device=grey_BMF.device)
        if own_samples_B is None:
            own_B1 = torch.full_like(grey_BMF[:, 0, :1], size[1], dtype=torch.long)
        else:
            own_B1 = (own_samples_B * size[1] // self.window_samples)[:, None]
        coarse_BMF = functional.adaptive_avg_pool2d(grey_BMF, size)
        mean_BM = _mean(coarse_BMF, (frame_F < own_B1)[:, None])
        centred_BMF = coarse_BMF - mean_BM[..., None]
        norm_B1F = centred_BMF.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)
        unit_BMF = centred_BMF / norm_B1F
        stripes = [
            self._strongest(unit_BMF, own_B1, self.shortest_lag + number)
            for number in range(num_lags)
        ]
        return torch.stack(stripes, dim=1)

    def _strongest(self, unit_BMF: Tensor, own_B1: Tensor, lag: int) -> Tensor:
        """Return the highest mean similarity of a passage with the one a lag later (B,)."""
        alike_BU = (unit_BMF[:, :, :-lag] * unit_BMF[:, :, lag:]).sum(dim=1)
        alike_BU = functional.avg_pool1d(alike_BU, self.stripe, stride=1)
        end_F = torch.arange(alike_BU.shape[1], device=own_B1.device) + lag + self.stripe
        return torch.where(end_F <= own_B1, alike_BU, NO_LAG).amax(dim=1)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean over the last dimension of those that count, 0 of none."""
    return torch.where(counts, values, 0.0).sum(dim=-1) / counts.sum(dim=-1).clamp(min=1)


def _median(profile_BD: Tensor, num_lags_B: Tensor) -> Tensor:
    """Return the lower median over the lags that there are (B,)."""
    falling_BD = profile_BD.sort(dim=1, descending=True).values
    return falling_BD.gather(1, (num_lags_B[:, None] // 2)).squeeze(1)
