"""The waveform cache: decoded sound of all clips, in files that all workers of a host share."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from trainer.blocks import CheckedFile
from trainer.caches import CacheEntry, DamagedCache, find_cache, list_caches, list_damaged
from trainer.dataset import Split
from trainer.errors import CacheDamagedError, DataError
from trainer.images import IMAGE_SHAPE, StoredImages
from trainer.index import (
    COPY_FILE,
    FRAME_FILE,
    IMAGE_FILE,
    SAMPLE_BYTES,
    WAVEFORM_FILE,
    check_sizes,
    frame_shape,
    read_index,
)
from trainer.prepare import PrepareReport, Progress, SplitSummary, prepare

__all__ = [
    "IMAGE_SHAPE",
    "CacheEntry",
    "CachedClip",
    "ClipSet",
    "DamagedCache",
    "PrepareReport",
    "SplitSummary",
    "WaveformCache",
    "find_cache",
    "find_damage",
    "join",
    "list_caches",
    "list_damaged",
    "prepare",
]


Images = NDArray[np.uint8] | StoredImages | None


class CachedClip(NamedTuple):
    """One clip of a cache, and where its samples lie."""

    split: str
    name: str
    target: int
    """1 is fake."""
    offset: int
    """Samples before it in the waveform file."""
    num_samples: int
    source_digest: str = ""
    """Of its file, short; empty in a cache of an earlier version."""


# Shape suffixes: N clips, T samples, S samples of all clips one after the other.
@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips to train on or to evaluate; samples and images of a cache are read when asked for."""

    names: list[str]
    targets: NDArray[np.int64]
    """(N,), 1 is fake."""
    num_samples: NDArray[np.int64]
    """(N,)"""
    offsets: NDArray[np.int64]
    """(N,), where each clip starts in `samples_S`."""
    samples_S: NDArray[np.int16] | CheckedFile
    images: NDArray[np.uint8] | StoredImages | None
    """(N, 256, 256), the notebook's images, or None if the cache was made without."""
    data_fingerprint: str = ""
    """Of the cache that they are of; empty for clips of no cache."""
    frames: NDArray[np.uint8] | StoredImages | None = None
    """(N, P, D, S, S, C), the picture at moments, or None if the cache was made without."""
    copies_S: NDArray[np.int16] | CheckedFile | None = None
    """What codecs made of the sounds: of each clip all copies, then those of the next one."""
    num_copies: int = 0
    """Of each clip."""

    def __len__(self) -> int:
        return len(self.names)

    def select(self, indices: NDArray[np.int64]) -> "ClipSet":
        """Return some of the clips; copies no samples, and of a cache no images."""
        return replace(
            self,
            names=[self.names[index] for index in indices],
            targets=self.targets[indices],
            num_samples=self.num_samples[indices],
            offsets=self.offsets[indices],
            images=_select(self.images, indices),
            frames=_select(self.frames, indices),
        )

    def waveform(self, index: int, copy: int = 0) -> NDArray[np.int16]:
        """Return the samples of a clip or of a copy, (T,); 32,768 is full scale.

        Raises:
            CacheDamagedError: they aren't as they were written.
        """
        samples_T = np.empty(self.num_samples[index], np.int16)
        self.read_window(index, 0, samples_T, copy)
        return samples_T

    def read_window(self, index: int, start: int, out_T: NDArray[np.int16], copy: int = 0) -> None:
        """Fill `out_T` with a clip's samples from `start` on; of a copy, if one is counted from 1.

        Raises:
            CacheDamagedError: they aren't as they were written.
        """
        samples_S, begin = self.samples_S, int(self.offsets[index]) + start
        if copy and self.copies_S is not None:
            samples_S = self.copies_S
            before = int(self.offsets[index]) * self.num_copies
            begin = before + (copy - 1) * int(self.num_samples[index]) + start
        if isinstance(samples_S, CheckedFile):
            samples_S.read_into(begin * SAMPLE_BYTES, out_T.data)
        else:
            out_T[:] = samples_S[begin : begin + len(out_T)]


@dataclass(frozen=True, eq=False)
class WaveformCache:
    """A finished cache, open for reading."""

    path: Path
    root: Path
    """The data folder it was made from."""
    sample_rate: int
    """Hz."""
    data_fingerprint: str
    clips: tuple[CachedClip, ...]
    samples_S: NDArray[np.int16] | CheckedFile
    images: CheckedFile | None
    """The notebook's, or None if the cache was made without."""
    frames: CheckedFile | None = None
    """Of the picture, or None likewise."""
    frame_size: int = 0
    """Their height and width in pixels; 0 without."""
    copies_S: CheckedFile | None = None
    """What codecs made of the sounds, or None likewise."""
    num_copies: int = 0
    """Of each clip."""

    @classmethod
    def open(cls, path: Path, *, data_fingerprint: str | None = None) -> Self:
        """Open a cache; given a fingerprint, only if it was made from that very data.

        Raises:
            DataError: there is none, or it was made from other data.
            CacheDamagedError: it isn't whole, as far as that shows without reading it.
        """
        index = read_index(path)
        check_sizes(path, index)
        if data_fingerprint not in (None, index.data_fingerprint):
            raise DataError(
                f"the cache {path} was made from other data: its fingerprint is "
                f"{index.data_fingerprint}, expected {data_fingerprint}; "
                "run melsearch prepare on the data that is meant"
            )
        digests = index.source_digests or [""] * len(index.names)
        lengths = (index.offsets, index.num_samples)
        columns = (index.splits, index.names, index.targets, *lengths, digests)
        clips = tuple(map(CachedClip._make, zip(*columns, strict=True)))
        labels = [f"{clip.split} {clip.name!r}" for clip in clips]
        files = {
            name: CheckedFile(path / name, labels, sizes, index.checksums[name], index.fix)
            for name, sizes in index.sizes_bytes().items()
        }
        return cls(
            path,
            Path(index.root),
            index.sample_rate,
            index.data_fingerprint,
            clips,
            files[WAVEFORM_FILE],
            files.get(IMAGE_FILE),
            files.get(FRAME_FILE),
            index.frame_size,
            files.get(COPY_FILE),
            len(index.codecs),
        )

    def split(self, split: Split) -> ClipSet:
        """Return the clips of one split, in the order of their names."""
        rows = [row for row, clip in enumerate(self.clips) if clip.split == split]
        clips = [self.clips[row] for row in rows]
        rows_N = np.array(rows, np.int64)
        return ClipSet(
            names=[clip.name for clip in clips],
            targets=np.array([clip.target for clip in clips], np.int64),
            num_samples=np.array([clip.num_samples for clip in clips], np.int64),
            offsets=np.array([clip.offset for clip in clips], np.int64),
            samples_S=self.samples_S,
            images=_stored(self.images, rows_N, IMAGE_SHAPE),
            frames=_stored(self.frames, rows_N, frame_shape(self.frame_size)),
            data_fingerprint=self.data_fingerprint,
            copies_S=self.copies_S,
            num_copies=self.num_copies,
        )

    def all_clips(self) -> ClipSet:
        """Return train and val as one set."""
        return join(self.split("train"), self.split("val"))


def join(first: ClipSet, second: ClipSet) -> ClipSet:
    """Return the clips of both sets, which must be of one cache; copies no samples, no images.

    Raises:
        ValueError: the sets are of two caches.
    """
    if first.samples_S is not second.samples_S:
        raise ValueError("only clips of one cache can be joined")
    return replace(
        first,
        names=first.names + second.names,
        targets=np.concatenate([first.targets, second.targets]),
        num_samples=np.concatenate([first.num_samples, second.num_samples]),
        offsets=np.concatenate([first.offsets, second.offsets]),
        images=_join(first.images, second.images),
        frames=_join(first.frames, second.frames),
    )


def _stored(file: CheckedFile | None, rows_N: NDArray[np.int64], shape: tuple[int, ...]) -> Images:
    return None if file is None else StoredImages(file, rows_N, shape)


def _select(images: Images, indices: NDArray[np.int64]) -> Images:
    if isinstance(images, StoredImages):
        return images.select(indices)
    return None if images is None else images[indices]


def _join(first: Images, second: Images) -> Images:
    if isinstance(first, StoredImages) and isinstance(second, StoredImages):
        return replace(first, rows_N=np.concatenate([first.rows_N, second.rows_N]))
    return None


def find_damage(path: Path, progress: Progress | None = None) -> list[CacheDamagedError]:
    """Read a whole cache and return what is wrong with it, one fault for each damaged clip."""
    clips = WaveformCache.open(path).all_clips()
    faults = []
    for index in range(len(clips)):
        try:
            for copy in range(clips.num_copies + 1):
                clips.waveform(index, copy)
            for images in (clips.images, clips.frames):
                if images is not None:
                    images[np.array([index])]
        except CacheDamagedError as error:
            faults.append(error)
        if progress is not None:
            progress(index + 1, len(clips))
    return faults
