"""The index of a waveform cache: which clip lies where. Opens fast, without numpy."""

import json
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from trainer.errors import DataError

FORMAT = 1
"""Rises whenever caches of before can't be read, or would hold something else."""
INDEX_FILE = "index.json"
WAVEFORM_FILE = "waveforms.i16"
IMAGE_FILE = "images.u8"
SAMPLE_BYTES = 2
IMAGE_BYTES = 256 * 256


@dataclass(frozen=True)
class Index:
    """What a finished cache holds, in columns; clip i has the i-th entry of each list."""

    format: int
    root: str
    """The folder it was made from."""
    data_fingerprint: str
    sample_rate: int
    """Hz."""
    notebook_images: bool
    splits: list[str]
    names: list[str]
    targets: list[int]
    num_samples: list[int]
    rejects: list[tuple[str, str, str]]
    """Split, name and reason of each clip that couldn't be decoded."""
    warnings: list[str]

    @property
    def offsets(self) -> list[int]:
        """Where each clip starts in the waveform file, in samples."""
        return list(accumulate(self.num_samples, initial=0))[:-1]

    def sizes_bytes(self) -> dict[str, int]:
        """Return how long each data file must be."""
        sizes = {WAVEFORM_FILE: sum(self.num_samples) * SAMPLE_BYTES}
        if self.notebook_images:
            sizes[IMAGE_FILE] = len(self.names) * IMAGE_BYTES
        return sizes

    def to_json(self) -> str:
        """Return the index as the text of its file."""
        return json.dumps(asdict(self), separators=(",", ":"))


def read_index(cache: Path) -> Index:
    """Read a cache's index and check that the cache is whole.

    Raises:
        DataError: there is no cache, or it is damaged or of another version.
    """
    path = cache / INDEX_FILE
    try:
        fields: dict[str, Any] = json.loads(path.read_bytes())
        if fields["format"] != FORMAT:
            raise DataError(
                f"{path} has format {fields['format']}, this version reads {FORMAT}; "
                "run melsearch prepare again"
            )
        fields["rejects"] = [tuple(reject) for reject in fields["rejects"]]
        index = Index(**fields)
    except OSError as error:
        raise DataError(
            f"no waveform cache in {cache}: {error.strerror}; make it with melsearch prepare"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged; delete {cache} and run melsearch prepare again"
        ) from error
    _check_sizes(cache, index)
    return index


def _check_sizes(cache: Path, index: Index) -> None:
    for name, expected in index.sizes_bytes().items():
        try:
            size = (cache / name).stat().st_size
        except OSError:
            size = 0
        if size != expected:
            raise DataError(
                f"{cache / name} is truncated or damaged: {size} bytes, expected {expected}; "
                "run melsearch prepare again"
            )
