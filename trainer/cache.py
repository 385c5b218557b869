"""The waveform cache: decoded sound of all clips, memory-mapped, so that all workers share it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from trainer.dataset import Split
from trainer.errors import DataError
from trainer.index import IMAGE_FILE, INDEX_FILE, WAVEFORM_FILE, read_index
from trainer.prepare import PrepareReport, SplitSummary, prepare

__all__ = [
    "CacheEntry",
    "CachedClip",
    "ClipSet",
    "PrepareReport",
    "SplitSummary",
    "WaveformCache",
    "find_cache",
    "join",
    "list_caches",
    "prepare",
]

IMAGE_SHAPE = (256, 256)


class CachedClip(NamedTuple):
    """One clip of a cache, and where its samples lie."""

    split: str
    name: str
    target: int
    """1 is fake."""
    offset: int
    """Samples before it in the waveform file."""
    num_samples: int


class CacheEntry(NamedTuple):
    """One finished cache under a cache root."""

    path: Path
    root: Path
    """The data folder it was made from."""
    data_fingerprint: str


# Shape suffixes: N clips, T samples, S samples of all clips one after the other.
@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips to train on or to evaluate; the arrays are views into the cache's files."""

    names: list[str]
    targets: NDArray[np.int64]
    """(N,), 1 is fake."""
    num_samples: NDArray[np.int64]
    """(N,)"""
    offsets: NDArray[np.int64]
    """(N,), where each clip starts in `samples_S`."""
    samples_S: NDArray[np.int16]
    images: NDArray[np.uint8] | None
    """(N, 256, 256), the notebook's images, or None if the cache was made without."""
    data_fingerprint: str = ""
    """Of the cache that they are of; empty for clips of no cache."""

    def __len__(self) -> int:
        return len(self.names)

    def waveform(self, index: int) -> NDArray[np.int16]:
        """Return a clip's samples, (T,); 32,768 is full scale. A view, read-only."""
        start = self.offsets[index]
        return self.samples_S[start : start + self.num_samples[index]]


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
    samples_S: NDArray[np.int16]
    images: NDArray[np.uint8] | None

    @classmethod
    def open(cls, path: Path, *, data_fingerprint: str | None = None) -> Self:
        """Open a cache; given a fingerprint, only if it was made from that very data.

        Raises:
            DataError: there is none, it is damaged, or it was made from other data.
        """
        index = read_index(path)
        if data_fingerprint not in (None, index.data_fingerprint):
            raise DataError(
                f"the cache {path} was made from other data: its fingerprint is "
                f"{index.data_fingerprint}, expected {data_fingerprint}; "
                "run melsearch prepare on the data that is meant"
            )
        columns = (index.splits, index.names, index.targets, index.offsets, index.num_samples)
        images = None
        if index.notebook_images:
            images = np.asarray(np.memmap(path / IMAGE_FILE, np.uint8, "r"))
            images = images.reshape(-1, *IMAGE_SHAPE)
        return cls(
            path,
            Path(index.root),
            index.sample_rate,
            index.data_fingerprint,
            tuple(map(CachedClip._make, zip(*columns, strict=True))),
            np.asarray(np.memmap(path / WAVEFORM_FILE, "<i2", "r")),
            images,
        )

    def split(self, split: Split) -> ClipSet:
        """Return the clips of one split, in the order of their names."""
        rows = [row for row, clip in enumerate(self.clips) if clip.split == split]
        first, last = (rows[0], rows[-1] + 1) if rows else (0, 0)
        clips = self.clips[first:last]  # a split's clips lie side by side
        return ClipSet(
            names=[clip.name for clip in clips],
            targets=np.array([clip.target for clip in clips], np.int64),
            num_samples=np.array([clip.num_samples for clip in clips], np.int64),
            offsets=np.array([clip.offset for clip in clips], np.int64),
            samples_S=self.samples_S,
            images=None if self.images is None else self.images[first:last],
            data_fingerprint=self.data_fingerprint,
        )

    def all_clips(self) -> ClipSet:
        """Return train and val as one set."""
        return join(self.split("train"), self.split("val"))


def join(first: ClipSet, second: ClipSet) -> ClipSet:
    """Return the clips of both sets, which must be of one cache.

    Copies no samples, and no images if the second set's lie right behind the first's.

    Raises:
        ValueError: the sets are of two caches.
    """
    if first.samples_S is not second.samples_S:
        raise ValueError("only clips of one cache can be joined")
    return ClipSet(
        names=first.names + second.names,
        targets=np.concatenate([first.targets, second.targets]),
        num_samples=np.concatenate([first.num_samples, second.num_samples]),
        offsets=np.concatenate([first.offsets, second.offsets]),
        samples_S=first.samples_S,
        images=_join_images(first.images, second.images),
        data_fingerprint=first.data_fingerprint,
    )


def _join_images(
    first: NDArray[np.uint8] | None, second: NDArray[np.uint8] | None
) -> NDArray[np.uint8] | None:
    if first is None or second is None:
        return None
    if first.base is not second.base or byte_bounds(first)[1] != byte_bounds(second)[0]:
        return np.concatenate([first, second])
    shape = (len(first) + len(second), *IMAGE_SHAPE)
    return np.lib.stride_tricks.as_strided(first, shape, writeable=False)


def list_caches(cache_root: Path) -> Sequence[CacheEntry]:
    """Return the whole caches under a cache root, by path; damaged ones are left out."""
    entries = []
    for index_file in sorted(cache_root.glob(f"*/{INDEX_FILE}")):
        if index_file.parent.suffix:
            continue  # still being built
        try:
            index = read_index(index_file.parent)
        except DataError:
            continue
        entries.append(CacheEntry(index_file.parent, Path(index.root), index.data_fingerprint))
    return entries


def find_cache(cache_root: Path, data_fingerprint: str) -> Path | None:
    """Return a cache of that data, one with the notebook's images before one without, or None."""
    fitting = [e.path for e in list_caches(cache_root) if e.data_fingerprint == data_fingerprint]
    with_images = [path for path in fitting if (path / IMAGE_FILE).exists()]
    return next(iter(with_images + fitting), None)
