"""Which caches lie under a cache root, whole or damaged. Reads their indexes alone."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.errors import CacheDamagedError, DataError
from trainer.index import Index, check_sizes, read_index

_NAME = re.compile(r"[0-9a-f]{32}")
"""Of a cache's folder, the digest of what it was made from."""


class CacheEntry(NamedTuple):
    """One finished cache under a cache root."""

    path: Path
    root: Path
    """The data folder it was made from."""
    data_fingerprint: str


class DamagedCache(NamedTuple):
    """One cache under a cache root that can't be used as it is."""

    path: Path
    data_fingerprint: str
    """Empty if its index can't be read."""
    fault: str
    """What is wrong, and how to mend it."""


def list_caches(cache_root: Path) -> Sequence[CacheEntry]:
    """Return the whole caches under a cache root, by path."""
    return [
        CacheEntry(path, Path(found.root), found.data_fingerprint)
        for path, found in _look_through(cache_root)
        if isinstance(found, Index)
    ]


def list_damaged(cache_root: Path) -> Sequence[DamagedCache]:
    """Return the caches under a cache root that aren't whole, as far as that shows unread."""
    return [found for _, found in _look_through(cache_root) if isinstance(found, DamagedCache)]


def find_cache(cache_root: Path, data_fingerprint: str) -> Path | None:
    """Return a cache of that data, the one that holds most, or None.

    Raises:
        CacheDamagedError: there is none that is whole, but a damaged one that is or may be of it.
    """
    found = dict(_look_through(cache_root))
    fitting = [
        (not index.codecs, not index.notebook_images, path)
        for path, index in found.items()
        if isinstance(index, Index) and index.data_fingerprint == data_fingerprint
    ]
    if fitting:
        return min(fitting)[-1]
    faults = [
        damaged.fault
        for damaged in found.values()
        if isinstance(damaged, DamagedCache) and damaged.data_fingerprint in ("", data_fingerprint)
    ]
    if faults:
        raise CacheDamagedError(
            "\n  ".join([f"no cache of the data {data_fingerprint} is whole:", *faults])
        )
    return None


def _look_through(cache_root: Path) -> Iterator[tuple[Path, Index | DamagedCache]]:
    """Yield all caches but those that are being built, by path; other folders are none."""
    for path in sorted(cache_root.glob("*/")):
        if _NAME.fullmatch(path.name):
            yield path, _look_at(path)


def _look_at(path: Path) -> Index | DamagedCache:
    data_fingerprint = ""
    try:
        index = read_index(path)
        data_fingerprint = index.data_fingerprint
        check_sizes(path, index)
    except DataError as error:
        return DamagedCache(path, data_fingerprint, str(error))
    return index
