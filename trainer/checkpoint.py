"""Files of tensors that are whole or not there: atomic, checksummed safetensors."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.durable import sync
from trainer.errors import TrainerError

METADATA_KEY = "melsearch"
"""The one key of the metadata: several would be written in a random order."""


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
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        _write_tensors(temporary, stored, {METADATA_KEY: envelope})
        sync(temporary)
        before_replace()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the scalars of a file that save_checkpoint wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or of another program.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error
    try:
        envelope = json.loads(metadata[METADATA_KEY])
        text, checksum = envelope["scalars"], envelope["sha256"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged, or no file of this program") from error
    if checksum != _checksum(tensors, text):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum is wrong")
    return tensors, json.loads(text)


def rename_checkpoint(source: Path, target: Path) -> None:
    """Rename a checkpoint, replacing the target; the rename is on the disk when this returns."""
    source.replace(target)
    sync(target.parent)


def remove_stale_temporaries(folder: Path) -> None:
    """Delete what killed processes left half-written. Call it only as the folder's one writer."""
    for temporary in folder.glob(".*.safetensors.*.tmp"):
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


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        # Safetensors reports the operating system's errors, a full disk too, as its own.
        raise OSError(f"can't write {path.name}: {error}") from error
