"""From the answers to a clip's windows to the clip's logits."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import TrainConfig

# Shape suffixes: B batch of clips, W windows (of each clip, or of all), N clips, K classes,
# X answers to a window: its logits, and with attention a score.

NUM_CLASSES = 2


def count_answers(config: TrainConfig) -> int:
    """Return how many numbers a model answers to a window with."""
    return NUM_CLASSES + (config.pooling == "attention")


def pool_windows(answers_WX: Tensor, num_windows: int) -> Tensor:
    """Return the logits (B, K) of clips of so many windows each, one clip's behind the other's.

    They are the mean of the windows' logits, weighed by a softmax of their scores if they have one.

    Source: Kong et al. 2018, Audio Set classification with attention model, decision-level.
    """
    if num_windows == 1:
        return answers_WX[:, :NUM_CLASSES]
    answers_BWX = answers_WX.view(-1, num_windows, answers_WX.shape[1])
    logits_BWK = answers_BWX[..., :NUM_CLASSES]
    if answers_BWX.shape[-1] == NUM_CLASSES:
        return logits_BWK.mean(dim=1)
    weight_BW1 = answers_BWX[..., NUM_CLASSES:].softmax(dim=1)
    return (weight_BW1 * logits_BWK).sum(dim=1)


def pool_clips(
    answers_WX: NDArray[np.float64], indices_W: NDArray[np.int64], num_clips: int
) -> NDArray[np.float64]:
    """Return the logits (N, K) of clips of any number of windows, likewise."""
    logits_WK, scores_WX = answers_WX[:, :NUM_CLASSES], answers_WX[:, NUM_CLASSES:]
    weight_W = np.ones(len(answers_WX))
    if scores_WX.shape[1]:
        score_W = scores_WX[:, 0]
        highest_N = np.full(num_clips, -np.inf)
        np.maximum.at(highest_N, indices_W, score_W)
        weight_W = np.exp(score_W - highest_N[indices_W])
    logits_NK = np.zeros((num_clips, NUM_CLASSES))
    np.add.at(logits_NK, indices_W, weight_W[:, None] * logits_WK)
    return logits_NK / np.bincount(indices_W, weight_W, minlength=num_clips)[:, None]
