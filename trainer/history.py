"""How far a training is, what its epochs came to, and which of them was the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.objectives import sign_of


@dataclass
class Progress:
    """How far a training is."""

    micro_batch: int
    """Most images that go through the model at once; halved when they don't fit into memory."""
    epoch: int = 1
    """The epoch that is going on; they count from 1."""
    step: int = 0
    """Steps done in it."""
    loss_sum: float = 0.0
    """Over the clips seen in it."""
    num_seen: int = 0
    train_seconds: float = 0.0
    """Spent on its steps."""
    eval_seconds: float = 0.0


@dataclass(frozen=True)
class EpochResult:
    """The metrics of one epoch; epochs count from 1."""

    epoch: int
    metrics: dict[str, float]


def best_of(history: Sequence[EpochResult], objective: str) -> EpochResult | None:
    """Return the best epoch by the objective, the earlier of equals.

    An undefined objective (nan) loses against every number. Without the objective, which is a
    training without validation clips, the best epoch is the last.
    """
    best: EpochResult | None = None
    for result in history:
        if best is None or _goodness(result, objective) > _goodness(best, objective):
            best = result
    if best is not None and objective not in best.metrics:
        return history[-1]
    return best


def _goodness(result: EpochResult, objective: str) -> float:
    value = result.metrics.get(objective, math.nan)
    return -math.inf if math.isnan(value) else sign_of(objective) * value
