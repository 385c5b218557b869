"""A waveform cache under construction: what was written stays written, whatever happens next."""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from trainer.blocks import checksum_blocks, count_blocks
from trainer.decode import Outcome
from trainer.durable import sync
from trainer.index import (
    INDEX_FILE,
    SAMPLE_BYTES,
    Checksum,
    Index,
)

JOURNAL_FILE = "journal.jsonl"
CLIPS_PER_COMMIT = 64
"""A killed `prepare` loses the work on at most so many clips."""


class Entry(BaseModel, frozen=True, extra="forbid", strict=True):
    """What became of one clip."""

    num_samples: Annotated[int, Field(ge=0)] = 0
    source_digest: str = ""
    sound_digest: str = ""
    checksums: dict[str, list[Checksum]] = {}
    """Of its blocks in each data file."""
    lacks: str = ""
    """Which stream of it is missing: `sound`, `picture` or none of them."""
    reason: str = ""
    """Why the clip was rejected, if it was."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        facts = (self.num_samples, self.source_digest, self.sound_digest)
        if {bool(fact) for fact in facts} != {not self.reason}:
            raise ValueError("a clip is either kept or rejected")
        return self


class PartialCache:
    """Appends clips to the data files, and to a journal only once their data is on the disk.

    Opened again after a crash it goes on behind the journal's last whole line.
    Only one process may have it open.
    """

    def __init__(
        self, folder: Path, num_clips: int, clip_bytes: Callable[[int], Mapping[str, int]]
    ) -> None:
        """Take what says how many bytes of a clip lie in each data file, by its samples."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._num_clips = num_clips
        self._clip_bytes = clip_bytes
        self._files = {name: _open_file(folder / name) for name in clip_bytes(0)}
        self._journal = _open_file(folder / JOURNAL_FILE)
        self.entries: list[Entry] = []
        """The fate of each clip so far, in order."""
        self._num_committed = 0
        self._journal_bytes = 0
        self._recover()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Keep what is whole, drop what isn't."""
        if exc_type is not None:
            with suppress(OSError):
                self._roll_back(len(self.entries))  # makes room for the journal on a full disk
                self._commit()
            with suppress(OSError):
                self._roll_back(self._num_committed)
        for file in (*self._files.values(), self._journal):
            file.close()

    def add(self, outcome: Outcome) -> None:
        """Append the next clip, or the reason why there is none."""
        if isinstance(outcome, str):
            self.entries.append(Entry(reason=outcome))
        else:
            parts = {name: outcome.parts[name] for name in self._files}
            for name, file in self._files.items():
                _write(file, parts[name])
            self.entries.append(
                Entry(
                    num_samples=len(outcome.samples) // SAMPLE_BYTES,
                    source_digest=outcome.source_digest,
                    sound_digest=outcome.sound_digest,
                    checksums={name: checksum_blocks(part) for name, part in parts.items()},
                    lacks=outcome.lacks,
                )
            )
        if len(self.entries) - self._num_committed >= CLIPS_PER_COMMIT:
            self._commit()

    def finish(self, index: Index, cache: Path) -> None:
        """Make it the finished cache, in one step, in the place of a damaged one if need be."""
        self._commit()
        with FileIO(self._folder / INDEX_FILE, "w") as file:
            _write(file, index.to_bytes())
            os.fsync(file.fileno())
        sync(self._folder)
        damaged = cache.with_suffix(".damaged")
        shutil.rmtree(damaged, ignore_errors=True)  # left behind by a kill
        if cache.exists():
            cache.rename(damaged)  # who reads it keeps its files
        self._folder.rename(cache)
        sync(cache.parent)
        shutil.rmtree(damaged, ignore_errors=True)
        (cache / JOURNAL_FILE).unlink()

    def _commit(self) -> None:
        for file in self._files.values():
            os.fsync(file.fileno())
        fresh = self.entries[self._num_committed :]
        lines = "".join(entry.model_dump_json() + "\n" for entry in fresh).encode()
        _write(self._journal, lines)
        os.fsync(self._journal.fileno())
        self._num_committed = len(self.entries)
        self._journal_bytes += len(lines)

    def _recover(self) -> None:
        """Take up the journal's whole lines whose data is there; cut off the rest."""
        left = {name: file.seek(0, os.SEEK_END) for name, file in self._files.items()}
        self._journal.seek(0)
        for line in self._journal.readall().splitlines(keepends=True)[: self._num_clips]:
            entry = _parse_entry(line)
            if entry is None:
                break
            sizes = self._sizes(entry)
            if {name: len(x) for name, x in entry.checksums.items() if x} != {
                name: count_blocks(size) for name, size in sizes.items() if size
            }:
                break
            left = {name: size - sizes[name] for name, size in left.items()}
            if min(left.values()) < 0:
                break
            self.entries.append(entry)
            self._journal_bytes += len(line)
        self._num_committed = len(self.entries)
        self._roll_back(self._num_committed)

    def _sizes(self, entry: Entry) -> Mapping[str, int]:
        """Return how many bytes of a clip, kept or not, lie in each data file."""
        return (
            dict.fromkeys(self._files, 0) if entry.reason else self._clip_bytes(entry.num_samples)
        )

    def _roll_back(self, num_entries: int) -> None:
        """Cut the data files to so many entries, and the journal to what is committed."""
        del self.entries[num_entries:]
        sizes = [self._sizes(entry) for entry in self.entries]
        for name, file in self._files.items():
            _cut(file, sum(size[name] for size in sizes))
        _cut(self._journal, self._journal_bytes)


def _parse_entry(line: bytes) -> Entry | None:
    try:
        return Entry.model_validate_json(line) if line.endswith(b"\n") else None
    except ValidationError:
        return None


def _open_file(path: Path) -> FileIO:
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")


def _write(file: FileIO, data: bytes) -> None:
    """Write all of the data, unbuffered, so that a full disk shows at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _cut(file: FileIO, size_bytes: int) -> None:
    file.truncate(size_bytes)
    file.seek(size_bytes)
