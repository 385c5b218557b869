"""Trainings whose numbers run away: a loss of nan, and an objective that is none."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.clips import make_clips, tiny_config
from trainer.cache import ClipSet
from trainer.config import TrainConfig
from trainer.errors import TrainingDivergedError
from trainer.loop import Ending, FitResult, fit
from trainer.model import build_model

DIVERGING = tiny_config(optimizer="sgd", lr=10.0, schedule="constant", epochs=50, momentum=0.99)


def train(
    config: TrainConfig,
    folder: Path,
    val: ClipSet,
    *,
    objective: str = "accuracy",
    should_stop: Callable[[], bool] = lambda: False,
) -> FitResult:
    """Train on 9 clips, in batches of 4."""
    return fit(
        config,
        make_clips(9, seed=1),
        val,
        folder=folder,
        device=torch.device("cpu"),
        objective=objective,
        should_stop=should_stop,
    )


def test_training_that_diverges_at_once_says_where(tmp_path: Path) -> None:
    """Weights of nan make the very first loss nan; there is no epoch to report."""
    state = {
        name: value * math.nan for name, value in build_model(tiny_config(), 1).state_dict().items()
    }
    save_file(state, tmp_path / "start.safetensors")
    config = tiny_config(weights=str(tmp_path / "start.safetensors"))
    with pytest.raises(TrainingDivergedError, match=r"nan in epoch 1, step 1 .*lower lr"):
        train(config, tmp_path / "trial", make_clips(4))


def test_training_that_diverges_later_keeps_its_epochs(tmp_path: Path) -> None:
    """Weights that overflow end it, with the best epoch before; resumed it ends the same way."""
    first = train(DIVERGING, tmp_path, make_clips(4))
    assert first.ending is Ending.DIVERGED
    assert first.reason is not None
    assert re.search(rf"(in|after) epoch {len(first.history) + 1}\b.*lower lr", first.reason)
    assert first.best in first.history
    assert all(math.isfinite(epoch.metrics["loss"]) for epoch in first.history)
    assert train(DIVERGING, tmp_path, make_clips(4)) == first


def test_weights_that_overflow_in_the_last_step_are_not_kept(tmp_path: Path) -> None:
    """Without validation clips nobody else looks at them after it."""

    def overflow(optimizer: Optimizer, args: object, options: object) -> None:
        optimizer.param_groups[0]["params"][0].data.fill_(math.inf)

    config = tiny_config(batch_size=9, epochs=1)
    hook = register_optimizer_step_post_hook(overflow)
    try:
        with pytest.raises(TrainingDivergedError, match="the weights after epoch 1 are not finite"):
            fit(config, make_clips(9, seed=1), None, folder=tmp_path, device=torch.device("cpu"))
    finally:
        hook.remove()
    assert list(tmp_path.iterdir()) == []


def test_undefined_objective_breaks_nothing(tmp_path: Path) -> None:
    """One class has no AUC: the first epoch is the best, also of a resumed training."""
    clips = make_clips(4)
    val = replace(clips, targets=np.ones_like(clips.targets))
    questions = iter(range(100))
    stopped = train(
        tiny_config(), tmp_path, val, objective="auc", should_stop=lambda: next(questions) > 4
    )
    assert stopped.ending is Ending.STOPPED
    result = train(tiny_config(), tmp_path, val, objective="auc")
    assert result.ending is Ending.FINISHED
    assert result.best is not None
    assert result.best.epoch == 1
    assert math.isnan(result.best.metrics["auc"])
