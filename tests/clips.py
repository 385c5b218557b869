"""Clips that the tests make from numbers alone, and a training that is done in a second."""

from itertools import accumulate
from typing import Any

import numpy as np
import torch

from trainer.cache import ClipSet
from trainer.config import TrainConfig
from trainer.index import frame_shape

SAMPLE_RATE = 4000
"""Hz."""


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of the CPU."""
    return torch.Generator().manual_seed(seed)


def make_clips(
    num_clips: int, seed: int = 0, *, images: bool = False, frame_size: int = 0
) -> ClipSet:
    """Return clips of noise, 0.25 to 1.25 s long; every second one is fake and has a tone in it.

    With a frame size they have a picture, too, which is brighter for the fakes.
    """
    rng = np.random.default_rng(seed)
    num_samples = rng.integers(1000, 5000, num_clips)
    targets_N = np.arange(num_clips) % 2
    clips = []
    for length, target in zip(num_samples.tolist(), targets_N.tolist(), strict=True):
        tone_T = np.sin(2 * np.pi * 440 / SAMPLE_RATE * np.arange(length))
        clips.append((rng.normal(0, 300, length) + 3000 * target * tone_T).astype(np.int16))
    grey = rng.integers(0, 256, (num_clips, 256, 256), dtype=np.uint8)
    frames = rng.integers(1, 128, (num_clips, *frame_shape(frame_size)), dtype=np.uint8)
    frames += (100 * targets_N.astype(np.uint8)).reshape(-1, 1, 1, 1, 1, 1)
    return ClipSet(
        names=[f"clip-{seed}-{number}.mp4" for number in range(num_clips)],
        targets=targets_N.astype(np.int64),
        num_samples=num_samples.astype(np.int64),
        offsets=np.array(list(accumulate(num_samples.tolist(), initial=0))[:-1], np.int64),
        samples_S=np.concatenate(clips),
        images=grey if images else None,
        frames=frames if frame_size else None,
    )


def tiny_config(**changes: Any) -> TrainConfig:
    """Return a config that make_clips' clips train in a moment; `changes` are its other values."""
    values: dict[str, Any] = {
        "backbone": "test_resnet",
        "sample_rate": SAMPLE_RATE,
        "window_seconds": 0.5,
        "eval_windows": 2,
        "n_fft": 128,
        "hop_length": 64,
        "n_mels": 32,
        "batch_size": 4,
        "epochs": 2,
        "warmup_epochs": 0.5,
    }
    return TrainConfig.model_validate(values | changes)
