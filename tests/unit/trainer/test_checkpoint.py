"""Checkpoint files are whole or not there, and a training's files always agree."""

import logging
import resource
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trainer.snapshots import BEST_NAME, CHECKPOINT_NAME, NEXT_BEST_NAME, Snapshots

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


def test_full_disk_is_an_os_error(tmp_path: Path) -> None:
    """The limit on a file's size stands for it; the old file is kept, nothing half-written."""
    path = tmp_path / "checkpoint"
    save_checkpoint(path, TENSORS, {"epoch": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="checkpoint"):
            save_checkpoint(path, {"weight": torch.zeros(100_000)}, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(path)[1] == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def snapshot_with_best(folder: Path, epoch: int, value: float) -> Snapshots:
    """Save epoch `epoch` as the newest and the best."""
    snapshots = Snapshots(folder, "me")
    snapshots.keep_best(epoch, {"weight": torch.tensor(value)})
    assert snapshots.save({"weight": torch.tensor(value)}, {"best_epoch": epoch})
    return snapshots


def test_snapshot_of_another_training_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other parameters or other clips: the training starts anew and says so."""
    snapshot_with_best(tmp_path, 1, 1.0)
    assert Snapshots(tmp_path, "another").load() is None
    assert [record.message for record in caplog.records] == ["checkpoint_ignored"]


def test_damaged_snapshot_is_ignored(tmp_path: Path) -> None:
    """A damaged checkpoint costs its training time, not its trial."""
    snapshot_with_best(tmp_path, 1, 1.0)
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"nonsense")
    assert Snapshots(tmp_path, "me").load() is None


def test_kill_before_the_checkpoint_keeps_the_older_pair(tmp_path: Path) -> None:
    """New best weights without the checkpoint that names their epoch are dropped."""
    snapshot_with_best(tmp_path, 1, 1.0)
    save_checkpoint(
        tmp_path / NEXT_BEST_NAME, {"weight": torch.tensor(2.0)}, {"epoch": 2, "identity": "me"}
    )
    snapshot = Snapshots(tmp_path, "me").load()
    assert snapshot is not None
    assert snapshot.scalars["best_epoch"] == 1
    assert load_checkpoint(tmp_path / BEST_NAME)[0]["weight"] == 1.0
    assert not (tmp_path / NEXT_BEST_NAME).exists()


def test_kill_after_the_checkpoint_completes_the_newer_pair(tmp_path: Path) -> None:
    """New best weights that the checkpoint names already take the old ones' place."""
    snapshot_with_best(tmp_path, 2, 2.0)
    (tmp_path / BEST_NAME).rename(tmp_path / NEXT_BEST_NAME)
    save_checkpoint(
        tmp_path / BEST_NAME, {"weight": torch.tensor(1.0)}, {"epoch": 1, "identity": "me"}
    )
    assert Snapshots(tmp_path, "me").load() is not None
    assert load_checkpoint(tmp_path / BEST_NAME)[0]["weight"] == 2.0


def test_lost_best_weights_make_the_checkpoint_useless(tmp_path: Path) -> None:
    """They can't be had again but by training again."""
    snapshot_with_best(tmp_path, 1, 1.0)
    (tmp_path / BEST_NAME).unlink()
    assert Snapshots(tmp_path, "me").load() is None


def test_temporaries_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """They are as large as a checkpoint."""
    stale = tmp_path / f".{CHECKPOINT_NAME}.abc.tmp"
    stale.write_bytes(b"half")
    assert Snapshots(tmp_path, "me").load() is None
    assert not stale.exists()


def test_failed_save_is_logged_and_made_up_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The best weights are kept in memory until a later save can write them."""
    snapshots = Snapshots(tmp_path / "folder", "me")
    (tmp_path / "folder").write_text("a file where the folder should be")
    snapshots.keep_best(1, {"weight": torch.tensor(1.0)})
    with caplog.at_level(logging.WARNING):
        assert not snapshots.save({}, {"best_epoch": 1})
    assert [record.message for record in caplog.records] == ["checkpoint_failed"]
    (tmp_path / "folder").unlink()
    assert snapshots.save({}, {"best_epoch": 1})
    assert load_checkpoint(tmp_path / "folder" / BEST_NAME)[0]["weight"] == 1.0
