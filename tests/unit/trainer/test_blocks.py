"""Files in blocks with checksums: what is read was written, and no descriptor stays open."""

import copy
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.waiting import wait_until
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


def test_file_system_may_give_less_than_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network's does; only where nothing comes, the file is cut off."""
    (tmp_path / "file").write_bytes(WHOLE)
    file = open_file(tmp_path / "file")
    preadv = os.preadv

    def read_less(descriptor: int, views: list[memoryview], begin: int) -> int:
        return preadv(descriptor, [views[0][:5000]], begin)

    monkeypatch.setattr(os, "preadv", read_less)
    assert read(file, 0, len(WHOLE)) == WHOLE
    os.truncate(tmp_path / "file", 7000)
    with pytest.raises(CacheDamagedError, match=r"bytes from 7000 to 65537 are missing, the file"):
        read(file, 5000, 8000)


def test_block_that_is_altered_after_it_was_read_is_noticed(tmp_path: Path) -> None:
    """By a program that writes into the file; what else it holds is read on."""
    path = tmp_path / "file"
    path.write_bytes(WHOLE)
    file, written_at = open_file(path), path.stat().st_mtime_ns
    assert read(file, 0, len(WHOLE)) == WHOLE

    def alter() -> bool:
        with path.open("r+b") as other:
            other.write(bytes([WHOLE[0] ^ 1]))
        return path.stat().st_mtime_ns > written_at  # clocks of files tick

    wait_until(alter)
    with pytest.raises(CacheDamagedError, match="clip a: the bytes from 0 to 1 have the checksum"):
        read(file, 0, len(WHOLE))
    assert read(file, 1, len(WHOLE)) == WHOLE[1:]


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_open_file_is_not_copied(duplicate: Callable[[object], object], tmp_path: Path) -> None:
    """Its descriptor would be closed, or another file's, in a process that is not forked."""
    (tmp_path / "file").write_bytes(WHOLE)
    with pytest.raises(TypeError, match="open the cache again by its path"):
        duplicate(open_file(tmp_path / "file"))
