"""The values of a training: which are refused, alone and together."""

import inspect
import math
import random
from typing import Any

import pytest
from pydantic import ValidationError

from tests.clips import tiny_config
from trainer.config import READ_TOGETHER, TrainConfig

FLOATS = [name for name, x in TrainConfig.model_fields.items() if "float" in str(x.annotation)]


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", FLOATS)
def test_infinite_and_undefined_values_are_refused(name: str, value: float) -> None:
    """Those without an upper bound too; the value is named."""
    assert {"warmup_epochs", "f_min", "f_max", "grad_clip"} <= set(FLOATS)
    with pytest.raises(ValidationError, match=name):
        tiny_config(**{name: value})


VALUES: dict[str, list[Any]] = {
    "frontend": ["logmel", "logstft", "lfcc", "notebook"],
    "modality": ["audio", "video", "both"],
    "pooling": ["mean", "attention"],
    "phase": [False, True],
    "repetition": [False, True],
    "synchrony": [False, True],
    "train_windows": [1, 2],
    "sample_rate": [4000, 48_000],
    "window_seconds": [0.1, 4.0],
    "n_fft": [64, 8192],
    "hop_length": [16, 8192],
    "n_mels": [8, 512],
    "n_lfcc": [8, 512],
    "f_min": [0.0, 3000.0],
    "f_max": [None, 2500.0, 20_000.0],
    "epochs": [1, 50],
    "frozen_epochs": [0, 20],
    "swa_epochs": [0, 20],
    "ema_decay": [0.0, 0.9],
    "augmentation": ["none", "full"],
    "optimizer": ["adam", "sgd"],
    "fusion": ["gated", "concat", "noisy-or"],
    "codec_share": [0.0, 1.0],
    "modality_dropout": [0.0, 1.0],
    "warmup_epochs": [0.0, 100.0],
    "batch_size": [2, 64],
    "eval_windows": [1, 64],
    "sampling": ["natural", "balanced"],
    "schedule": ["cosine", "step"],
}


def rules_broken_by(values: dict[str, Any]) -> set[str]:
    """Return the messages of the joint rules, without the values."""
    try:
        TrainConfig(**values)
    except ValidationError as error:
        [detail] = error.errors()
        messages = detail["msg"].removeprefix("Value error, ").split("; ")
        return {message.partition(", got ")[0].partition(", 2")[0] for message in messages}
    return set()


def test_each_joint_rule_reads_only_what_is_told_of_it() -> None:
    """A rule that others' values don't hide is found by varying what it reads."""
    draw = random.Random(0)  # noqa: S311

    def draw_values() -> dict[str, Any]:
        return {name: draw.choice(values) for name, values in VALUES.items()}

    unexplained = {}
    for _ in range(300):
        values = draw_values()
        groups = [{name: values[name] for name in names} for names in READ_TOGETHER]
        same = [[rules_broken_by(draw_values() | group) for _ in range(5)] for group in groups]
        for rule in rules_broken_by(values):
            if not any(all(rule in broken for broken in found) for found in same):
                unexplained[rule] = values
    assert unexplained == {}


def test_each_joint_rule_is_broken_by_some_values() -> None:
    """So that the rules above are all of them."""
    draw = random.Random(0)  # noqa: S311
    found = set()
    for _ in range(1000):
        found |= rules_broken_by({name: draw.choice(x) for name, x in VALUES.items()})
    rules = {rule.replace('"lfcc"', "?").replace('"notebook" has no phase', "? has no phase")
             for rule in found}  # fmt: skip
    assert len(rules) == inspect.getsource(TrainConfig).count("yield ")
