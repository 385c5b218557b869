"""A training that was stopped and resumed equals one that never was, bit for bit on the CPU."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.clips import make_clips, tiny_config
from trainer.checkpoint import load_checkpoint
from trainer.config import TrainConfig
from trainer.loop import Ending, EpochResult, FitResult, fit
from trainer.snapshots import list_checkpoints

CPU = torch.device("cpu")
CLOCKS = {"seconds", "samples_per_second"}
DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: data[: len(data) // 2],
    lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],  # one bit
    lambda data: b"",
]
RECIPES: dict[str, dict[str, Any]] = {
    "adamw": {"weight_decay": 0.05, "grad_clip": 1.0, "label_smoothing": 0.1},
    "sgd-ema-mixup-dropout": {
        "optimizer": "sgd",
        "lr": 0.02,
        "ema_decay": 0.9,
        "augmentation": "strong",
        "strength": 1.0,
        "dropout": 0.3,
        "schedule": "step",
        "step_epochs": 2,
    },
    "swa": {"swa_epochs": 2, "schedule": "constant", "weight_decay": 0.05},
    "attention-repetition": {
        "pooling": "attention",
        "train_windows": 3,
        "window_seconds": 0.2,
        "repetition": True,
        "augmentation": "full",
    },
    "drop-path": {"backbone": "test_convnext", "drop_path": 0.4, "augmentation": "spec"},
    "lfcc-set-ema": {
        "frontend": "lfcc",
        "n_lfcc": 24,
        "augmentation": "full",
        "normalisation": "set",
        "ema_decay": 0.9,
    },
    "frozen-layers-balanced-focal": {
        "frozen_epochs": 1,
        "layer_decay": 0.7,
        "sampling": "balanced",
        "focal_gamma": 2.0,
        "weight_decay": 0.05,
    },
    "both-streams": {
        "modality": "both",
        "video_backbone": "test_convnext",
        "frame_size": 32,
        "modality_dropout": 0.5,
        "synchrony": True,
        "augmentation": "full",
    },
    "notebook": {"frontend": "notebook", "augmentation": "notebook", "optimizer": "adam"},
}


def train(
    config: TrainConfig,
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[Sequence[EpochResult]], bool] = lambda history: False,
) -> FitResult:
    """Train on 14 clips, evaluate on 6: 4 steps an epoch, as the last batch has 2."""
    images = config.frontend == "notebook"
    frame_size = 0 if config.modality == "audio" else config.frame_size
    return fit(
        config,
        make_clips(14, seed=1, images=images, frame_size=frame_size),
        make_clips(6, seed=2, images=images, frame_size=frame_size),
        folder=folder,
        device=CPU,
        should_stop=should_stop,
        on_epoch=on_epoch,
    )


def stop_after(num_questions: int) -> Callable[[], bool]:
    """Return a should_stop that says True from its `num_questions`-th question on."""
    asked = iter(range(1, 10_000))
    return lambda: next(asked) >= num_questions


def raise_after(num_questions: int) -> Callable[[], bool]:
    """Return a should_stop that stands for a kill: nothing is written any more."""
    stop = stop_after(num_questions)

    def die() -> bool:
        if stop():
            raise KeyboardInterrupt
        return False

    return die


def metrics_of(result: FitResult) -> list[dict[str, float]]:
    """Return the history without what clocks say."""
    return [
        {key: value for key, value in epoch.metrics.items() if key not in CLOCKS}
        for epoch in result.history
    ]


def assert_same_files(one: Path, other: Path) -> None:
    """Compare the tensors of the newest checkpoints and of the best weights, bit for bit."""
    names = [list_checkpoints(one)[-1].name, sorted(one.glob("best-*"))[-1].name]
    for name in names:
        expected, _ = load_checkpoint(one / name)
        found, _ = load_checkpoint(other / name)
        assert expected.keys() == found.keys()
        different = [key for key, value in expected.items() if not torch.equal(value, found[key])]
        assert different == [], name


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_stopped_in_mid_epoch_equals_an_uninterrupted_one(
    recipe: str, tmp_path: Path
) -> None:
    """Stopped three times, in the first epoch, in an evaluation and in the second epoch."""
    config = tiny_config(**RECIPES[recipe])
    whole = train(config, tmp_path / "whole")
    endings = [
        train(config, tmp_path / "stopped", stop_after(questions)).ending
        for questions in (3, 3, 3)  # after 2 steps; in the evaluation; after 1 step
    ]
    assert endings == [Ending.STOPPED] * 3
    resumed = train(config, tmp_path / "stopped")
    assert resumed.ending is Ending.FINISHED
    assert metrics_of(resumed) == metrics_of(whole)
    assert_same_files(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_killed_after_an_epoch_equals_an_uninterrupted_one(
    recipe: str, tmp_path: Path
) -> None:
    """An exception right after the first epoch stands for the kill; nothing is written any more."""
    config = tiny_config(**RECIPES[recipe])
    whole = train(config, tmp_path / "whole")

    def fail(history: Sequence[EpochResult]) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "killed", on_epoch=fail)
    resumed = train(config, tmp_path / "killed")
    assert metrics_of(resumed) == metrics_of(whole)
    assert_same_files(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_that_loses_its_newest_checkpoints_equals_an_uninterrupted_one(
    recipe: str, tmp_path: Path
) -> None:
    """Stopped or killed eight times at random steps; each time the newest checkpoint is damaged."""
    config = tiny_config(epochs=3, **RECIPES[recipe])
    whole = train(config, tmp_path / "whole")
    rng = random.Random(recipe)  # noqa: S311
    for _ in range(8):
        die = raise_after if rng.random() < 0.5 else stop_after
        with suppress(KeyboardInterrupt):
            train(config, tmp_path / "killed", die(rng.randint(2, 14)))
        for path in list_checkpoints(tmp_path / "killed")[-1:]:
            path.write_bytes(rng.choice(DAMAGES)(path.read_bytes()))
    resumed = train(config, tmp_path / "killed")
    assert metrics_of(resumed) == metrics_of(whole)
    assert_same_files(tmp_path / "whole", tmp_path / "killed")


def test_same_seed_gives_the_same_training_and_another_seed_another(tmp_path: Path) -> None:
    """Two trainings of one config agree bit for bit; the seed is what tells trainings apart."""
    config = tiny_config(augmentation="strong", dropout=0.2)
    first = train(config, tmp_path / "first")
    torch.rand(7)  # whatever else draws random numbers in between
    again = train(config, tmp_path / "again")
    other = train(config.model_copy(update={"seed": 1}), tmp_path / "other")
    assert metrics_of(first) == metrics_of(again)
    assert_same_files(tmp_path / "first", tmp_path / "again")
    assert metrics_of(first) != metrics_of(other)
