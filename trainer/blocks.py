"""Blocks of a cache's data files: each gets a checksum when written, and is checked when read."""

import os
import weakref
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NoReturn

from trainer.errors import CacheDamagedError

BLOCK_BYTES = 64 * 1024
"""A clip's last block may be shorter; none holds bytes of two clips."""


def count_blocks(size_bytes: int) -> int:
    """Return in how many blocks a clip of that size lies."""
    return -(-size_bytes // BLOCK_BYTES)


def checksum_blocks(data: bytes) -> list[int]:
    """Return the CRC-32 of each block of a clip's bytes."""
    view = memoryview(data)
    begins = range(0, len(data), BLOCK_BYTES)
    return [zlib.crc32(view[begin : begin + BLOCK_BYTES]) for begin in begins]


class CheckedFile:
    """A data file of a finished cache, open for reading; its blocks are checked when first read.

    Not mapped into memory: where a file was cut off, a map ends its reader by a signal. Threads
    and forked processes may share it, and the page cache holds it once for all.
    """

    def __init__(
        self,
        path: Path,
        clips: Sequence[str],
        sizes_bytes: Sequence[int],
        checksums: Sequence[int],
        fix: str,
    ) -> None:
        """Open a file in which so many bytes of each of the clips lie one behind the other.

        Raises:
            CacheDamagedError: it can't be opened.
        """
        self._path, self._clips, self._fix = path, clips, fix
        self._clip_begins = array("q", accumulate(sizes_bytes, initial=0))
        self._begins = array("q", _cut_at(self._clip_begins))
        """Of each block, and the file's end."""
        self._checksums = array("Q", checksums)
        self._seen = bytearray(len(checksums))
        """1 for each block that this process found whole."""
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CacheDamagedError(f"{path} can't be read: {error.strerror}; {fix}") from error
        weakref.finalize(self, os.close, self._descriptor)
        self._written = self._look()

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied: the number of a descriptor means another file elsewhere."""
        raise TypeError("open the cache again by its path, its files can't be pickled or copied")

    def read_into(self, begin: int, out: memoryview) -> None:
        """Fill `out`, one stretch of memory, from `begin` on; reads no block that isn't touched.

        What was written since the last reading is checked again, by the file's time and size.

        Raises:
            CacheDamagedError: the file is too short, a block isn't as written, or the disk failed.
        """
        end = begin + out.nbytes
        written = self._look()
        if written != self._written:
            self._seen, self._written = bytearray(len(self._seen)), written
        first, last = bisect_right(self._begins, begin) - 1, bisect_left(self._begins, end)
        seen = self._seen
        if 0 in seen[first:last]:
            for block in range(first, last):
                if not seen[block]:
                    self._check(block)
                    seen[block] = 1
        self._read(begin, out)

    def _check(self, block: int) -> None:
        begin, end = self._begins[block : block + 2]
        data = memoryview(bytearray(end - begin))
        self._read(begin, data)
        checksum, expected = zlib.crc32(data), self._checksums[block]
        if checksum != expected:
            raise self._damage(
                begin,
                f"the bytes from {begin} to {end} have the checksum {checksum:08x}, "
                f"expected {expected:08x}",
            )

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_mtime_ns, status.st_size

    def _read(self, begin: int, out: memoryview) -> None:
        found, end = begin, begin + out.nbytes
        while found < end:
            try:  # a network's file system may give less than was asked for
                rest = out.cast("B")[found - begin :]
                size_bytes = os.preadv(self._descriptor, [rest], found)
            except OSError as error:
                raise self._damage(found, f"can't be read, {error.strerror}") from error
            if size_bytes == 0:
                raise self._damage(
                    found, f"the bytes from {found} to {end} are missing, the file is cut off"
                )
            found += size_bytes

    def _damage(self, position: int, fault: str) -> CacheDamagedError:
        clip = self._clips[bisect_right(self._clip_begins, position) - 1]
        return CacheDamagedError(
            f"{self._path} is damaged, clip {clip}: {fault}; {self._fix}", clip
        )


def _cut_at(clip_begins: Sequence[int]) -> Iterable[int]:
    """Yield where each block begins, and the end of the last."""
    for begin, end in pairwise(clip_begins):
        yield from range(begin, end, BLOCK_BYTES)
    yield clip_begins[-1]
