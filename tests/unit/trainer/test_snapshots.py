"""A training's folder: what a kill, a full disk, a damaged file or a late writer can do to it."""

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.snapshots import (
    Position,
    Snapshots,
    best_path,
    checkpoint_path,
    list_checkpoints,
    load_best,
    remove_checkpoints,
)


def value_of(number: float) -> dict[str, torch.Tensor]:
    """Return tensors that can be told from others."""
    return {"weight": torch.tensor(float(number))}


def save_epoch(snapshots: Snapshots, epoch: int, best: int) -> bool:
    """Save the state after an epoch; `best` is the best one so far."""
    if best == epoch:
        snapshots.keep_best(epoch, value_of(epoch))
    return snapshots.save(Position(epoch + 1, 0), value_of(epoch), {"best_epoch": best})


def trained(folder: Path, *bests: int) -> Snapshots:
    """Return the snapshots of a training whose best epochs were these, after each epoch."""
    snapshots = Snapshots(folder, "me")
    assert all(save_epoch(snapshots, epoch, best) for epoch, best in enumerate(bests, 1))
    return snapshots


def loaded(folder: Path, *, needs_best: bool = False) -> float | None:
    """Return the value of the state that a new process would go on from."""
    snapshot = Snapshots(folder, "me", needs_best=needs_best).load()
    return None if snapshot is None else float(snapshot.tensors["weight"])


def names(folder: Path) -> list[str]:
    """Return what lies in the folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def newest(folder: Path) -> Path:
    return list_checkpoints(folder)[-1]


def test_two_checkpoints_and_the_weights_they_name_are_kept(tmp_path: Path) -> None:
    """The best of epochs 1 to 4 is the third; nothing else stays."""
    trained(tmp_path, 1, 1, 3, 3)
    assert names(tmp_path) == [
        "best-00003.safetensors",
        "checkpoint-00004-00000000.safetensors",
        "checkpoint-00005-00000000.safetensors",
    ]
    assert loaded(tmp_path) == 4
    trained(tmp_path / "other", 1, 1, 3)
    assert names(tmp_path / "other")[:2] == ["best-00001.safetensors", "best-00003.safetensors"]


def test_names_sort_as_positions_do(tmp_path: Path) -> None:
    """In mid-epoch, after the tenth epoch and after the hundredth step."""
    positions = [Position(9, 99), Position(9, 100), Position(10, 0), Position(10_001, 0)]
    found = [checkpoint_path(tmp_path, position) for position in positions]
    assert found == sorted(found)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def break_sector(path: Path) -> None:
    """Let reading the file end with EIO, as the address 0 of a process does."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


@pytest.mark.parametrize(
    "damage", [truncate, flip, break_sector, lambda path: path.write_bytes(b"")]
)
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the weights that were the best then; the log names the file."""
    trained(tmp_path, 1, 2, 3)
    name = newest(tmp_path).name
    damage(newest(tmp_path))
    assert loaded(tmp_path, needs_best=True) == 2
    assert [(x.message, vars(x)["file"]) for x in caplog.records] == [("checkpoint_damaged", name)]
    assert names(tmp_path) == ["best-00002.safetensors", "checkpoint-00003-00000000.safetensors"]


def test_bad_sector_in_an_older_checkpoint_stops_nothing(tmp_path: Path) -> None:
    """Neither what goes on from the newer one, nor what saves the next."""
    trained(tmp_path, 1, 2, 3)
    break_sector(list_checkpoints(tmp_path)[0])
    assert loaded(tmp_path) == 3
    snapshots = trained(tmp_path / "other", 1, 2)
    break_sector(list_checkpoints(tmp_path / "other")[-1])
    assert save_epoch(snapshots, 3, best=3)
    assert loaded(tmp_path / "other", needs_best=True) == 3


def test_training_without_a_whole_checkpoint_starts_anew(tmp_path: Path) -> None:
    """Nothing of the damaged ones stays in its way."""
    trained(tmp_path, 1, 2, 3)
    for path in list_checkpoints(tmp_path):
        flip(path)
    assert loaded(tmp_path) is None
    assert names(tmp_path) == []


def test_checkpoints_of_another_training_are_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They would stay the newest; the training starts anew and says so."""
    trained(tmp_path, 1, 2)
    assert Snapshots(tmp_path, "another").load() is None
    assert {record.message for record in caplog.records} == {"checkpoint_ignored"}
    assert names(tmp_path) == []


@pytest.mark.parametrize("damage", [Path.unlink, flip])
def test_training_that_needs_no_best_weights_goes_on_without(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A trial is worth its metrics; the loss is logged."""
    trained(tmp_path, 1, 2)
    damage(best_path(tmp_path, 2))
    assert loaded(tmp_path) == 2
    assert [record.message for record in caplog.records] == ["best_weights_lost"]
    assert not best_path(tmp_path, 2).exists()


def test_training_that_needs_its_best_weights_falls_back(tmp_path: Path) -> None:
    """To the checkpoint before, whose weights are there; without one it starts anew."""
    trained(tmp_path, 1, 2)
    flip(best_path(tmp_path, 2))
    assert loaded(tmp_path, needs_best=True) == 1
    best_path(tmp_path, 1).unlink()
    assert loaded(tmp_path, needs_best=True) is None
    assert names(tmp_path) == []


def test_best_weights_of_another_training_are_lost_ones(tmp_path: Path) -> None:
    """Whole, and of the same epoch."""
    trained(tmp_path, 1)
    best = {"epoch": 1, "identity": "another"}
    save_checkpoint(best_path(tmp_path, 1), value_of(7), best)
    assert loaded(tmp_path, needs_best=True) is None


def test_kill_before_the_checkpoint_leaves_the_older_state(tmp_path: Path) -> None:
    """New best weights that no checkpoint names are dropped, to be written again."""
    trained(tmp_path, 1)
    best = {"epoch": 2, "identity": "me"}
    save_checkpoint(best_path(tmp_path, 2), value_of(7), best)
    snapshots = Snapshots(tmp_path, "me")
    assert snapshots.load() is not None
    assert not best_path(tmp_path, 2).exists()
    assert save_epoch(snapshots, 2, best=2)
    assert load_best(tmp_path, 2, "me")["weight"] == 2


def test_temporaries_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """They are as large as a checkpoint; safetensors makes some of its own."""
    for name in (".checkpoint-00002-00000000.safetensors.abc.tmp", ".tmpAbC123"):
        (tmp_path / name).write_bytes(b"half")
    assert loaded(tmp_path) is None
    assert names(tmp_path) == []


def test_late_writer_spoils_nothing_newer(tmp_path: Path) -> None:
    """A process that slept through epochs 3 to 5 of its successor saves epoch 3 all the same."""
    sleeper = trained(tmp_path, 1, 1)
    successor = Snapshots(tmp_path, "me")
    assert successor.load() is not None
    for epoch, best in ((3, 3), (4, 4), (5, 4)):
        assert save_epoch(successor, epoch, best)
    theirs = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert save_epoch(sleeper, 3, best=3)
    assert all(path.read_bytes() == data for path, data in theirs.items())
    assert loaded(tmp_path) == 5
    assert load_best(tmp_path, 4, "me")["weight"] == 4


def test_late_writer_does_not_replace_its_own_position(tmp_path: Path) -> None:
    """What its successor wrote there stays."""
    sleeper = trained(tmp_path, 1)
    assert save_epoch(trained(tmp_path / "other", 1), 2, best=1)
    path = checkpoint_path(tmp_path, Position(3, 0))
    save_checkpoint(path, value_of(7), {"identity": "me", "best_epoch": 1})
    assert save_epoch(sleeper, 2, best=1)
    assert load_checkpoint(path)[0]["weight"] == 7


def test_exception_before_the_renaming_writes_nothing(tmp_path: Path) -> None:
    """A worker whose lease is lost leaves the folder as it is."""

    def refuse() -> None:
        raise KeyboardInterrupt

    trained(tmp_path, 1)
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        save_epoch(Snapshots(tmp_path, "me", refuse), 2, best=2)
    assert names(tmp_path) == before


@pytest.mark.parametrize("load", [Snapshots.load, lambda snapshots: snapshots.forget("old")])
def test_worker_that_lost_its_lease_removes_nothing(
    load: Callable[[Snapshots], object], tmp_path: Path
) -> None:
    """Frozen before it loads, it leaves its successor's temporary and new best weights alone."""

    def refuse() -> None:
        raise KeyboardInterrupt

    trained(tmp_path, 1, 2)
    best = {"epoch": 3, "identity": "me"}
    save_checkpoint(best_path(tmp_path, 3), value_of(3), best)
    (tmp_path / ".checkpoint-00004-00000000.safetensors.abc.tmp").write_bytes(b"half")
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        load(Snapshots(tmp_path, "me", refuse))
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_lack_of_memory_costs_the_checkpoint_alone(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a disk that is full; it may be there for the next one."""

    def fail() -> None:
        raise error

    assert not save_epoch(Snapshots(tmp_path, "me", fail), 1, best=1)
    assert [record.message for record in caplog.records] == ["checkpoint_failed"]
    assert vars(caplog.records[0])["reason"]
    assert names(tmp_path) == []


def test_other_errors_of_a_save_pass_through(tmp_path: Path) -> None:
    """They are nobody's lack of memory."""

    def fail() -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        save_epoch(Snapshots(tmp_path, "me", fail), 1, best=1)


def test_full_disk_takes_the_older_checkpoint_for_the_new_one(tmp_path: Path) -> None:
    """There is space as soon as only the newest is left, and its weights."""
    full = False

    def require_space() -> None:
        if full and len(list_checkpoints(tmp_path)) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    trained(tmp_path, 1, 2)
    snapshots = Snapshots(tmp_path, "me", require_space)
    assert snapshots.load() is not None
    full = True
    assert save_epoch(snapshots, 3, best=2)
    assert names(tmp_path) == [
        "best-00002.safetensors",
        "checkpoint-00003-00000000.safetensors",
        "checkpoint-00004-00000000.safetensors",
    ]


def test_full_disk_leaves_the_newest_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However little space there is; the failure is logged and made up for later."""
    full = False

    def require_space() -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    trained(tmp_path, 1, 2)
    snapshots = Snapshots(tmp_path, "me", require_space)
    assert snapshots.load() is not None
    full = True
    assert not save_epoch(snapshots, 3, best=3)
    assert [record.message for record in caplog.records] == ["checkpoint_failed"]
    assert names(tmp_path) == ["best-00002.safetensors", "checkpoint-00003-00000000.safetensors"]
    full = False
    assert save_epoch(snapshots, 4, best=3)
    assert loaded(tmp_path, needs_best=True) == 4


def test_folder_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    """With the best weights, which are still in memory."""
    snapshots = trained(tmp_path / "folder", 1)
    shutil.rmtree(tmp_path / "folder")
    assert save_epoch(snapshots, 2, best=1)
    assert loaded(tmp_path / "folder", needs_best=True) == 2


def test_folder_that_cannot_be_made_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file stands in its place, for a time."""
    snapshots = Snapshots(tmp_path / "folder", "me")
    (tmp_path / "folder").write_text("")
    with caplog.at_level(logging.WARNING):
        assert not save_epoch(snapshots, 1, best=1)
    assert [record.message for record in caplog.records] == ["checkpoint_failed"]
    (tmp_path / "folder").unlink()
    assert save_epoch(snapshots, 2, best=1)
    assert loaded(tmp_path / "folder", needs_best=True) == 2


def test_ended_training_keeps_its_best_weights_alone(tmp_path: Path) -> None:
    """Also when it is told twice."""
    trained(tmp_path, 1, 2, 3)
    for _ in range(2):
        remove_checkpoints(tmp_path)
        assert names(tmp_path) == ["best-00003.safetensors"]
