"""The index of a waveform cache: which clip lies where, and the checksums. Opens without numpy."""

import math
import zlib
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from trainer.blocks import count_blocks
from trainer.dataset import Split
from trainer.errors import CacheDamagedError, DataError

FORMAT = 2
"""Rises whenever indexes of before can't be read."""
INDEX_FILE = "index.json"
WAVEFORM_FILE = "waveforms.i16"
IMAGE_FILE = "images.u8"
FRAME_FILE = "frames.u8"
COPY_FILE = "copies.i16"
SAMPLE_BYTES = 2
IMAGE_BYTES = 256 * 256
MOMENTS = 16
"""Of a clip's picture; moment i is at (i + 1/2) / MOMENTS of its length."""
CODECS = ("aac", "mp3", "opus", "g722")
"""Each makes a copy of a clip's sound, in this order, where copies are kept."""
FRAMES_PER_MOMENT = 2
"""One and the next, whose difference shows what moves and what jumps."""

Checksum = Annotated[int, Field(ge=0, lt=2**32)]


class Index(BaseModel, frozen=True, extra="forbid", strict=True):
    """What a finished cache holds, in columns; clip i has the i-th entry of each list."""

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)] = FORMAT
    root: str
    """The folder it was made from, for people to read."""
    data_fingerprint: str
    sample_rate: Annotated[int, Field(gt=0)]
    """Hz."""
    notebook_images: bool
    frame_size: Annotated[int, Field(ge=0)] = 0
    """Height and width in pixels of the frames; 0 for a cache without."""
    codecs: list[str] = []
    """Which copies of each sound there are, in their order."""
    splits: list[Split]
    names: list[str]
    targets: list[Annotated[int, Field(ge=0, le=1)]]
    num_samples: list[Annotated[int, Field(gt=0)]]
    source_digests: list[str] = []
    """Of each clip's file, short; none in a cache of an earlier version."""
    checksums: dict[str, list[Checksum]]
    """Of each data file, of all its blocks."""
    rejects: list[tuple[str, str, str]]
    """Split, name and reason of each clip that couldn't be decoded."""
    warnings: list[str]
    shared_sounds: list[tuple[str, str]] = []
    """Names of training and validation clips whose sound is the same."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        digests = self.source_digests or self.names
        columns = (self.splits, self.names, self.targets, self.num_samples, digests)
        if len({len(column) for column in columns}) > 1:
            raise ValueError("the columns must be equally long")
        blocks = {name: sum(map(count_blocks, x)) for name, x in self.sizes_bytes().items()}
        if blocks != {name: len(checksums) for name, checksums in self.checksums.items()}:
            raise ValueError("each block must have a checksum")
        return self

    @property
    def offsets(self) -> list[int]:
        """Where each clip starts in the waveform file, in samples."""
        return list(accumulate(self.num_samples, initial=0))[:-1]

    def sizes_bytes(self) -> dict[str, list[int]]:
        """Return how many bytes of each clip lie in each data file."""
        clips = [
            clip_bytes(count, self.notebook_images, self.frame_size, len(self.codecs))
            for count in self.num_samples
        ]
        names = clips[0] if clips else ()
        return {name: [clip[name] for clip in clips] for name in names}

    @property
    def fix(self) -> str:
        """What mends the cache if it is damaged, as the end of a message."""
        options = f"--verify --sample-rate {self.sample_rate}"
        if self.frame_size:
            options += f" --video --frame-size {self.frame_size}"
        if self.codecs:
            options += " --codecs"
        return f"run `melsearch prepare DATA {options}`, which mends it"

    def to_bytes(self) -> bytes:
        """Return the content of its file: a line of JSON, and a line with its checksum."""
        return seal(self.model_dump_json().encode())


def frame_shape(frame_size: int) -> tuple[int, int, int, int, int]:
    """Return the shape of a clip's frames: moments, frames of one, height, width, colours."""
    return MOMENTS, FRAMES_PER_MOMENT, frame_size, frame_size, 3


def clip_bytes(
    num_samples: int, has_image: bool, frame_size: int, num_copies: int
) -> dict[str, int]:
    """Return how many bytes of a clip lie in each data file of a cache."""
    sizes = {WAVEFORM_FILE: num_samples * SAMPLE_BYTES}
    if has_image:
        sizes[IMAGE_FILE] = IMAGE_BYTES
    if frame_size:
        sizes[FRAME_FILE] = math.prod(frame_shape(frame_size))
    if num_copies:
        sizes[COPY_FILE] = num_copies * num_samples * SAMPLE_BYTES
    return sizes


def short_digest(source_digest: str) -> str:
    """Return what is kept of a file's SHA-256, enough to know the file again: 64 bits in hex."""
    return source_digest[:16]


def seal(text: bytes) -> bytes:
    """Return a line and a second one with its CRC-32."""
    return b"%b\n%08x\n" % (text, zlib.crc32(text))


EXTRA = "extra_forbidden"
"""What pydantic calls a value that a model doesn't have."""


def read_index(cache: Path) -> Index:
    """Read a cache's index; whether the other files are there is told by `check_sizes`.

    Raises:
        DataError: there is no cache, or it is of another version.
        CacheDamagedError: the index isn't as it was written.
    """
    path = cache / INDEX_FILE
    try:
        content = path.read_bytes()
        text, _, _ = content.partition(b"\n")
        index = Index.model_validate_json(text)
    except OSError as error:
        raise DataError(
            f"no waveform cache in {cache}: {error.strerror}; make it with melsearch prepare"
        ) from error
    except ValidationError as error:
        formats = [fault["input"] for fault in error.errors() if fault["loc"] == ("format",)]
        if formats and isinstance(formats[0], int):
            raise DataError(
                f"{path} has format {formats[0]}, this version reads {FORMAT}; "
                "run melsearch prepare again"
            ) from error
        unknown = [fault["loc"][0] for fault in error.errors() if fault["type"] == EXTRA]
        if unknown and content == seal(text):
            raise DataError(
                f"{path} holds {', '.join(map(str, unknown))}, which this version of melsearch"
                " doesn't know; use the version that made it, or run melsearch prepare again"
            ) from error
        raise _damaged(path) from error
    if content != seal(text):
        raise _damaged(path)
    return index


def _damaged(path: Path) -> CacheDamagedError:
    return CacheDamagedError(f"{path} is damaged; run melsearch prepare again, which mends it")


def check_sizes(cache: Path, index: Index) -> None:
    """Check that the data files are as long as they must be; reads none of them.

    Raises:
        CacheDamagedError: one is missing, or longer or shorter than it was written.
    """
    for name, sizes in index.sizes_bytes().items():
        path, expected = cache / name, sum(sizes)
        try:
            found = f"{path.stat().st_size} bytes"
        except OSError as error:
            found = str(error.strerror)
        if found != f"{expected} bytes":
            raise CacheDamagedError(
                f"{path} is damaged: {found}, expected {expected} bytes; {index.fix}"
            )
