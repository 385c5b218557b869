"""Logits of files: decoded in processes of their own while the detector scores those before."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import accumulate
from pathlib import Path

import numpy as np
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
    num_processes: int | None = None,
    on_decoded: Callable[[Path, DecodedClip], None] = lambda path, clip: None,
) -> Iterator[dict[Path, Logits | str]]:
    """Yield the logits, not yet calibrated, of some files after the other, or why there are none.

    `tta` passes over shifted windows, at other levels, are averaged. By default it decodes on all
    cores, with 0 processes in this one. `on_decoded` is told each clip that could be read.
    """
    settings = decode_settings([member.config for member in detector.members])
    if num_processes is None:
        num_processes = len(os.sched_getaffinity(0))
    num_processes = min(num_processes, max(1, len(paths)))
    waiting: dict[Path, DecodedClip] = {}
    failed: dict[Path, Logits | str] = {}
    size_bytes = 0
    with closing(decode_all(paths, settings, num_processes)) as outcomes:
        for path, outcome in zip(paths, outcomes, strict=True):
            if isinstance(outcome, str):
                failed[path] = outcome
            else:
                on_decoded(path, outcome)
                waiting[path] = outcome
                size_bytes += len(outcome.samples) + len(outcome.image) + len(outcome.frames)
            if len(waiting) == CLIPS_AT_ONCE or size_bytes >= MAX_WAITING_BYTES:
                yield failed | _score(detector, waiting, tta)
                waiting, failed, size_bytes = {}, {}, 0
    yield failed | _score(detector, waiting, tta)


def _score(
    detector: LoadedDetector, clips: dict[Path, DecodedClip], tta: int
) -> dict[Path, Logits | str]:
    """Return the logits of decoded clips."""
    if not clips:
        return {}
    frame_size = decode_settings([member.config for member in detector.members]).frame_size
    clip_set = gather(list(clips.values()), [path.name for path in clips], frame_size)
    logits_NK = score_clips(detector, clip_set, tta=tta)
    return dict(zip(clips, logits_NK, strict=True))


def score_clips(detector: LoadedDetector, clips: ClipSet, *, tta: int = 1) -> NDArray[np.float64]:
    """Return the logits (N, K) of clips, not yet calibrated: means over members and passes."""
    passes = [
        predict_logits(
            member.model, member.frontend, clips, member.config, detector.device, test_pass=number
        )
        for member in detector.members
        for number in range(tta)
    ]
    logits_NK: NDArray[np.float64] = np.mean([x for x in passes if x is not None], axis=0)
    return logits_NK


def decode_settings(configs: Sequence[TrainConfig]) -> DecodeSettings:
    """Return what models of these configs, which share a cache, read of a file."""
    frame_size = max(0 if x.modality == "audio" else x.frame_size for x in configs)
    has_images = any(x.frontend == "notebook" for x in configs)
    return DecodeSettings(configs[0].sample_rate, has_images, frame_size)


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
