"""Checkpoint files are whole or not there."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch

from tests.disk import full_disk
from trainer.checkpoint import CheckpointError, load_checkpoint, read_scalars, save_checkpoint

TENSORS = {
    "weight": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}


def test_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """Tensors of any type and layout, and floats to their last bit."""
    scalars = {"epoch": 3, "value": 0.1 + 0.2, "history": [{"auc": 1 / 3}]}
    save_checkpoint(tmp_path / "new" / "checkpoint", TENSORS, scalars)
    tensors, found = load_checkpoint(tmp_path / "new" / "checkpoint")
    assert found == scalars
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in TENSORS.items())
    assert read_scalars(tmp_path / "new" / "checkpoint") == scalars
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["checkpoint"]


def test_shared_tensors_are_both_saved(tmp_path: Path) -> None:
    """Tied weights share their memory, which safetensors alone would refuse."""
    value = torch.rand(3)
    save_checkpoint(tmp_path / "checkpoint", {"a": value, "b": value}, {})
    tensors, _ = load_checkpoint(tmp_path / "checkpoint")
    assert torch.equal(tensors["a"], tensors["b"])


@pytest.mark.parametrize("where", [0, 40, -3])
def test_flipped_byte_is_noticed(where: int, tmp_path: Path) -> None:
    """In the header, in the metadata or in the tensors."""
    path = tmp_path / "checkpoint"
    save_checkpoint(path, TENSORS, {"epoch": 1})
    data = bytearray(path.read_bytes())
    data[where] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_truncated_file_is_noticed(tmp_path: Path) -> None:
    """As a disk that filled up under another program leaves it."""
    path = tmp_path / "checkpoint"
    save_checkpoint(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """A full device stands in the way of the new file; the old one is as it was."""
    path = tmp_path / "checkpoint"
    save_checkpoint(path, TENSORS, {"epoch": 1})
    path.rename(tmp_path / "kept")
    path.mkdir()  # a rename onto a folder fails
    with pytest.raises(OSError, match="checkpoint"):
        save_checkpoint(path, TENSORS, {"epoch": 2})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint", "kept"]


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_others_read_what_the_umask_lets_them(umask: int, tmp_path: Path) -> None:
    """Workers of two users may share the runs."""
    before = os.umask(umask)
    try:
        save_checkpoint(tmp_path / "checkpoint", TENSORS, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "checkpoint").stat().st_mode) == 0o666 & ~umask


def test_full_disk_is_an_os_error(tmp_path: Path) -> None:
    """The limit on a file's size stands for it; the old file is kept, nothing half-written."""
    path = tmp_path / "checkpoint"
    save_checkpoint(path, TENSORS, {"epoch": 1})
    with full_disk(10_000), pytest.raises(OSError, match="checkpoint") as caught:
        save_checkpoint(path, {"weight": torch.zeros(100_000)}, {"epoch": 2})
    assert caught.value.errno == errno.EFBIG
    assert load_checkpoint(path)[1] == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]
