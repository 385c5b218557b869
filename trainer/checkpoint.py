"""Files of tensors that are whole or not there: atomic, checksummed safetensors."""

import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from trainer.durable import make_folder, replacing, sync
from trainer.errors import TrainerError

METADATA_KEY = "melsearch"
"""The one key of the metadata: several would be written in a random order."""
_MAX_HEADER_BYTES = 100_000_000
"""What safetensors itself reads at most."""


class CheckpointError(TrainerError):
    """A checkpoint file is damaged, or no checkpoint of this program."""


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
    before_replace: Callable[[], None] = lambda: None,
) -> None:
    """Write tensors and JSON-able scalars to `path`, all of them or nothing.

    The old file stays until the new one is whole; that is on the disk when this returns. Equal
    contents make equal files. `before_replace` is called when only the renaming is left; if it
    raises, the old file stays.

    Raises:
        OSError: no space left, or the folder can't be written; the old file is untouched.
    """
    stored = {name: _storable(value) for name, value in tensors.items()}
    text = json.dumps(dict(scalars), sort_keys=True)
    envelope = json.dumps({"scalars": text, "sha256": _checksum(stored, text)})
    make_folder(path.parent)
    with replacing(path, before_replace) as fresh:
        _write_tensors(fresh, stored, {METADATA_KEY: envelope})
    sync(path.parent)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the scalars of a file that save_checkpoint wrote.

    Reads it instead of mapping it: a bad sector is then an error, not the end of the process.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or of another program.
        OSError: the file can't be opened here.
    """
    with _reading(path) as file:
        header = _read_header(file)
        file.seek(0)
        tensors = load(file.read())
        scalars, text, checksum = _parse_header(header)
        is_whole = checksum == _checksum(tensors, text)
    if not is_whole:
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum is wrong")
    return tensors, scalars


def read_scalars(path: Path) -> dict[str, Any]:
    """Return the scalars of a file that save_checkpoint wrote; its tensors are not looked at.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or of another program.
        OSError: the file can't be opened here.
    """
    with _reading(path) as file:
        return _parse_header(_read_header(file))[0]


def remove_stale_temporaries(folder: Path) -> None:
    """Delete what killed processes left half-written. Call it only as the folder's one writer."""
    for pattern in (".*.safetensors.*.tmp", ".tmp*"):  # ours, and what safetensors makes of it
        for temporary in folder.glob(pattern):
            temporary.unlink(missing_ok=True)


def _storable(value: Tensor) -> Tensor:
    """Return the tensor as safetensors stores it: on the CPU, contiguous, of its own memory."""
    return value.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file; whatever shows that it is damaged, a bad sector too, is a CheckpointError."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is damaged, or no file of this program: {reason}") from error


def _read_header(file: BinaryIO) -> bytes:
    """Return the file's header, JSON whose length the first eight bytes are."""
    size_bytes = int.from_bytes(file.read(8), "little")
    return file.read(min(size_bytes, _MAX_HEADER_BYTES))


def _parse_header(header: bytes) -> tuple[dict[str, Any], str, str]:
    """Return the scalars, their text and the checksum."""
    envelope = json.loads(json.loads(header)["__metadata__"][METADATA_KEY])
    text = envelope["scalars"]
    scalars = json.loads(text)
    if not isinstance(scalars, dict):
        raise TypeError(f"the scalars must be a table, got {type(scalars).__name__}")
    return scalars, text, envelope["sha256"]


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        # Safetensors reports the operating system's errors, a full disk too, as its own.
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, f"can't write: {error}", path.name) from error
