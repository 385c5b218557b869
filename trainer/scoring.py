"""Logits of files: decoded in processes of their own while the detector scores those before."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.cache import IMAGE_SHAPE, ClipSet
from trainer.config import TrainConfig
from trainer.decode import DecodedClip, DecodeSettings, decode_all
from trainer.folder import LoadedDetector
from trainer.index import frame_shape
from trainer.inference import predict_logits

# Shape suffixes: N clips, S samples of all clips one after the other, K classes.

CLIPS_AT_ONCE = 128
"""Decoded clips in memory; the processes go on decoding while the model scores them."""
MAX_WAITING_BYTES = 256 * 2**20

Logits = NDArray[np.float64]
"""Of one clip, (K,)."""


def score_files(
    detector: LoadedDetector,
    paths: Sequence[Path],
    *,
    tta: int,
    device: torch.device,
    num_processes: int | None = None,
) -> Iterator[dict[Path, Logits | str]]:
    """Yield the logits, not yet calibrated, of some files after the other, or why there are none.

    `tta` passes over shifted windows, at other levels, are averaged.
    """
    config = detector.config
    settings = decode_settings(config)
    num_processes = min(num_processes or len(os.sched_getaffinity(0)), max(1, len(paths)))
    waiting: dict[Path, DecodedClip] = {}
    failed: dict[Path, Logits | str] = {}
    size_bytes = 0
    with closing(decode_all(paths, settings, num_processes)) as outcomes:
        for path, outcome in zip(paths, outcomes, strict=True):
            if isinstance(outcome, str):
                failed[path] = outcome
            else:
                waiting[path] = outcome
                size_bytes += len(outcome.samples) + len(outcome.image) + len(outcome.frames)
            if len(waiting) == CLIPS_AT_ONCE or size_bytes >= MAX_WAITING_BYTES:
                yield failed | _score(detector, waiting, tta, device)
                waiting, failed, size_bytes = {}, {}, 0
    yield failed | _score(detector, waiting, tta, device)


def _score(
    detector: LoadedDetector, clips: dict[Path, DecodedClip], tta: int, device: torch.device
) -> dict[Path, Logits | str]:
    """Return the logits of decoded clips."""
    if not clips:
        return {}
    frame_size = decode_settings(detector.config).frame_size
    clip_set = gather(list(clips.values()), [path.name for path in clips], frame_size)
    passes = [
        predict_logits(
            detector.model, detector.frontend, clip_set, detector.config, device, test_pass=number
        )
        for number in range(tta)
    ]
    logits_NK: NDArray[Any] = np.mean([x for x in passes if x is not None], axis=0)
    return dict(zip(clips, logits_NK, strict=True))


def decode_settings(config: TrainConfig) -> DecodeSettings:
    """Return what a detector of this config reads of a file."""
    frame_size = 0 if config.modality == "audio" else config.frame_size
    return DecodeSettings(config.sample_rate, config.frontend == "notebook", frame_size)


def gather(clips: Sequence[DecodedClip], names: list[str], frame_size: int = 0) -> ClipSet:
    """Return decoded clips as a set that a model can score."""
    num_samples = [len(clip.samples) // 2 for clip in clips]
    images = np.frombuffer(b"".join(clip.image for clip in clips), np.uint8)
    frames = np.frombuffer(b"".join(clip.frames for clip in clips), np.uint8)
    return ClipSet(
        names=names,
        targets=np.zeros(len(clips), np.int64),
        num_samples=np.array(num_samples, np.int64),
        offsets=np.array(list(accumulate(num_samples, initial=0))[:-1], np.int64),
        samples_S=np.frombuffer(b"".join(clip.samples for clip in clips), "<i2"),
        images=images.reshape(-1, *IMAGE_SHAPE) if len(images) else None,
        frames=frames.reshape(-1, *frame_shape(frame_size)) if len(frames) else None,
    )
