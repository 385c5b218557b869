"""What outlives a power cut, and two writers of one file."""

import os
from pathlib import Path

import pytest

from trainer.config import TrainConfig
from trainer.durable import make_folder, replacing
from trainer.recipe import Recipe, write_recipe


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """What was put on the disk, and how large it was then."""
    calls = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        calls.append((path, path.stat().st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return calls


def test_new_folders_are_on_the_disk_in_their_own_folders(
    tmp_path: Path, synced: list[tuple[Path, int]]
) -> None:
    """Each one that was missing, and none that was there."""
    make_folder(tmp_path / "study" / "trial")
    assert {path for path, _ in synced} == {tmp_path, tmp_path / "study"}
    synced.clear()
    make_folder(tmp_path / "study" / "trial")
    assert synced == []


def test_recipe_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, synced: list[tuple[Path, int]]
) -> None:
    """All of it; and no other process takes that file for its own, whatever its number."""
    for _ in range(2):
        write_recipe(Recipe(TrainConfig()), tmp_path / "best.toml")
    size_bytes = (tmp_path / "best.toml").stat().st_size
    assert [size for _, size in synced] == [size_bytes] * 2
    assert len({path for path, _ in synced}) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["best.toml"]


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    """And nothing of the new one."""
    (tmp_path / "file").write_text("old")
    with pytest.raises(ValueError, match="half"), replacing(tmp_path / "file") as fresh:
        fresh.write_text("new")
        raise ValueError("half")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
