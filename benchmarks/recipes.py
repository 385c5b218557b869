"""The recipes that are measured against each other: the notebook's, then each step to ours.

Every row changes a few values of the row that it builds on: the one before, but for those that are
measured and not built on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainer.config import TrainConfig, notebook_recipe

SAMPLE_RATE = 16_000
"""Hz."""
FRAME_SIZE = 64


@dataclass(frozen=True)
class Step:
    """One row: what it changes of the row that it builds on."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    is_built_on: bool = True


STEPS = (
    Step("the notebook's recipe, from random weights", {"weights": "none", "precision": "bf16"}),
    Step(
        "windows of the waveform, not a stretched image",
        {
            "frontend": "logmel",
            "augmentation": "none",
            "window_seconds": 2.5,
            "n_fft": 512,
            "hop_length": 160,
            "n_mels": 80,
        },
    ),
    Step(
        "AdamW, a cosine with warm-up, an average of the weights",
        {
            "optimizer": "adamw",
            "weight_decay": 0.02,
            "schedule": "cosine",
            "ema_decay": 0.98,
            "batch_size": 32,
        },
    ),
    Step("a smaller backbone", {"backbone": "resnet10t"}),
    Step("masks, shifts and gain", {"augmentation": "spec", "strength": 0.5}),
    Step("how the phase runs on", {"phase": True, "precision": "fp32"}),
    Step(
        "fine high frequencies",
        {"frontend": "logstft", "n_fft": 320, "normalisation": "set"},
        is_built_on=False,
    ),
    Step("rooms, noise, bands and clipping", {"augmentation": "channel"}, is_built_on=False),
    Step("RawBoost, mixup and cutmix", {"augmentation": "full"}, is_built_on=False),
    Step("the picture alone", {"modality": "video"}, is_built_on=False),
    Step("picture and sound, side by side", {"modality": "both", "fusion": "concat"}),
    Step("a gate between them", {"fusion": "gated"}),
    Step("streams that are missing at times", {"modality_dropout": 0.2}),
    Step("the lag between them", {"synchrony": True}),
    Step("each cue judges alone: a noisy-or", {"fusion": "noisy-or"}),
)


@dataclass(frozen=True)
class Recipe:
    """A step as a training."""

    number: int
    """From 1."""
    on: int
    """The number of the recipe that it builds on; 0 for none."""
    name: str
    config: TrainConfig


def recipes(epochs: int) -> Iterator[Recipe]:
    """Yield what each step trains."""
    values = notebook_recipe().model_dump() | {
        "epochs": epochs, "sample_rate": SAMPLE_RATE, "frame_size": FRAME_SIZE,
    }  # fmt: skip
    on = 0
    for number, step in enumerate(STEPS, 1):
        changed = values | step.changes
        yield Recipe(number, on, step.name, TrainConfig.model_validate(changed))
        if step.is_built_on:
            on, values = number, changed
