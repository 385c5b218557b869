"""Checkpoints, whatever has become of them: read exactly as they were saved, or not at all."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from trainer.checkpoint import (
    METADATA_KEY,
    CheckpointError,
    load_checkpoint,
    read_scalars,
    save_checkpoint,
)
from trainer.snapshots import Position, Snapshots, best_path, checkpoint_path, list_checkpoints

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "flag": torch.tensor([True, False]),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}
SCALARS: dict[str, Any] = {"identity": "another", "best_epoch": 1, "history": [{"auc": 0.1 + 0.2}]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def saved(scalars: dict[str, Any]) -> bytes:
    """Return the bytes of a whole checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "x", TENSORS, scalars)
        return (Path(folder) / "x").read_bytes()


WHOLE = saved(SCALARS)
HEADER_BYTES = int.from_bytes(WHOLE[:8], "little")


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """Some bytes of a whole file replaced, removed, doubled or cut off, its header most of all."""
    data = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        end = draw(st.sampled_from([8, 8 + HEADER_BYTES, len(data)]))
        begin = draw(st.integers(0, max(0, min(end, len(data)) - 1)))
        length = draw(st.integers(0, 4))
        data[begin : begin + length] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


def with_header(header: bytes, size: int | None = None) -> bytes:
    """Return a file with this header, which claims to have that size."""
    length = len(header) if size is None else size
    return length.to_bytes(8, "little") + header + WHOLE[8 + HEADER_BYTES :]


def with_metadata(metadata: dict[str, str] | None) -> bytes:
    """Return a whole safetensors file with another program's metadata."""
    return save(TENSORS, metadata)


def with_envelope(envelope: object) -> bytes:
    """Return a whole safetensors file with something else in place of scalars and checksum."""
    return with_metadata({METADATA_KEY: json.dumps(envelope)})


ODD_HEADERS = st.builds(
    with_header,
    st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()),
    st.none() | st.integers(0, 2**64 - 1),
)
ODD_ENVELOPES = st.builds(
    with_envelope,
    JSON | st.fixed_dictionaries({}, optional={"scalars": JSON, "sha256": JSON}),
)
DAMAGED = st.binary(max_size=200) | mutations() | ODD_HEADERS | ODD_ENVELOPES


def dtype_header(dtype: str, shape: list[int], size: int) -> bytes:
    """Return a header of one tensor, with the metadata of the whole file."""
    metadata = json.loads(WHOLE[8 : 8 + HEADER_BYTES])["__metadata__"]
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    return json.dumps({"__metadata__": metadata, "weight": tensor}).encode()


@settings(deadline=None)
@given(DAMAGED)
@example(b"")
@example(WHOLE[:7])
@example(with_header(b"[" * 50_000))
@example(with_header(b"{}", 2**63))
@example(with_metadata(None))
@example(with_metadata({"other": "1"}))
@example(with_metadata({METADATA_KEY: "[" * 50_000}))
@example(with_metadata({METADATA_KEY: "9" * 5_000}))
@example(with_envelope({"scalars": "\ud800", "sha256": ""}))
@example(with_envelope({"scalars": "[" * 50_000, "sha256": ""}))
@example(with_header(dtype_header("F4", [4], 2)))
@example(with_header(dtype_header("F8_E8M0", [4], 4)))
@example(with_header(dtype_header("F32", [0, 2**62, 8], 0)))
@example(with_header(dtype_header("F32", [2**40], 2**42)))
@example(with_header(dtype_header("I64", [3], 24)))
def test_file_is_read_exactly_or_refused(data: bytes) -> None:
    """Never another error, and never other content than was saved."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(data)
        try:
            tensors, scalars = load_checkpoint(path)
        except CheckpointError as error:
            str(error).encode()  # can be printed
        else:
            assert scalars == SCALARS
            assert_saved(tensors)
        try:
            assert isinstance(read_scalars(path), dict)
        except CheckpointError as error:
            str(error).encode()


def assert_saved(tensors: dict[str, Tensor]) -> None:
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


@settings(deadline=None)
@given(JSON)
def test_scalars_that_are_no_table_are_refused(scalars: object) -> None:
    """However right their checksum is; a table comes back as it is."""
    text = json.dumps(scalars)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    metadata = {METADATA_KEY: json.dumps({"scalars": text, "sha256": checksum})}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(save({}, metadata))
        if isinstance(scalars, dict):
            assert load_checkpoint(path) == ({}, scalars)
        else:
            with pytest.raises(CheckpointError):
                load_checkpoint(path)


def state_of(epoch: int) -> dict[str, Any]:
    """Return the scalars of a checkpoint in an epoch, whose best one was that before."""
    return {"epoch": epoch, "best_epoch": epoch - 1, "identity": "me"}


STATES = {epoch: saved(state_of(epoch)) for epoch in range(1, 5)}
BESTS = {epoch: saved({"epoch": epoch, "identity": "me"}) for epoch in range(1, 4)}


@settings(deadline=None)  # a load asks the disk
@given(
    st.dictionaries(st.integers(1, 4), st.none() | DAMAGED, max_size=4),
    st.dictionaries(st.integers(1, 3), st.none() | DAMAGED, max_size=3),
    st.booleans(),
)
def test_folder_gives_its_newest_whole_state_or_none(
    checkpoints: dict[int, bytes | None], bests: dict[int, bytes | None], needs_best: bool
) -> None:
    """Whatever lies there; what is refused is removed. None stands for a whole file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder, checkpoints, bests)
        snapshot = Snapshots(folder, "me", needs_best=needs_best).load()
        left = [path.name for path in list_checkpoints(folder)]
        if snapshot is None:
            assert left == []
            assert needs_best or None not in checkpoints.values()
            return
        epoch = snapshot.scalars["epoch"]
        assert snapshot.scalars == state_of(epoch)
        assert_saved(snapshot.tensors)
        assert left[-1] == checkpoint_path(folder, Position(epoch, 0)).name
        best = epoch - 1
        assert best_path(folder, best).exists() == (bests.get(best, b"") is None)
        assert best_path(folder, best).exists() or not needs_best


def write_folder(
    folder: Path, checkpoints: dict[int, bytes | None], bests: dict[int, bytes | None]
) -> None:
    """Write whole files and damaged ones."""
    for epoch, data in checkpoints.items():
        whole = STATES[epoch] if data is None else data
        checkpoint_path(folder, Position(epoch, 0)).write_bytes(whole)
    for epoch, data in bests.items():
        best_path(folder, epoch).write_bytes(BESTS[epoch] if data is None else data)
