"""Files in blocks with checksums: what is read was written, and no descriptor stays open."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainer.blocks import BLOCK_BYTES, CheckedFile, checksum_blocks
from trainer.errors import CacheDamagedError

CLIPS = [os.urandom(size) for size in (1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES - 1)]
WHOLE = b"".join(CLIPS)


def open_file(path: Path) -> CheckedFile:
    """Open a file as one that holds CLIPS."""
    checksums = [checksum for clip in CLIPS for checksum in checksum_blocks(clip)]
    assert len(checksums) == 1 + 1 + 2 + 3
    return CheckedFile(path, ["a", "b", "c", "d"], [len(clip) for clip in CLIPS], checksums, "fix")


def read(file: CheckedFile, begin: int, end: int) -> bytes:
    data = bytearray(end - begin)
    file.read_into(begin, memoryview(data))
    return bytes(data)


def test_every_stretch_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Within a block, over borders of blocks and clips, by many threads at once."""
    (tmp_path / "file").write_bytes(WHOLE)
    file = open_file(tmp_path / "file")
    borders = [*range(0, len(WHOLE), BLOCK_BYTES // 2), 1, 2, len(WHOLE) - 1, len(WHOLE)]
    stretches = [(begin, end) for begin in borders for end in borders if begin < end]
    with ThreadPoolExecutor(4) as pool:
        got = pool.map(lambda stretch: read(file, *stretch), stretches)
    assert all(data == WHOLE[begin:end] for data, (begin, end) in zip(got, stretches, strict=True))


def test_file_that_cannot_be_opened_or_read_is_told(tmp_path: Path) -> None:
    """What the system says comes with the file and the fix."""
    with pytest.raises(CacheDamagedError, match=r"nowhere can't be read: No such file.*; fix$"):
        open_file(tmp_path / "nowhere")
    folder = open_file(tmp_path)  # opens, and can't be read
    with pytest.raises(CacheDamagedError, match=r"clip a: can't be read, Is a directory; fix$"):
        read(folder, 0, 1)


def test_file_is_closed_with_its_last_reader(tmp_path: Path) -> None:
    """A worker that opens cache after cache runs out of no descriptors."""
    (tmp_path / "file").write_bytes(WHOLE)

    def is_open() -> bool:
        links = Path("/proc/self/fd").iterdir()
        return (tmp_path / "file").resolve() in {link.resolve() for link in links}

    file = open_file(tmp_path / "file")
    assert is_open()
    del file
    assert not is_open()
