"""Optuna's artifacts, confined to one folder."""

import os
from io import BytesIO, RawIOBase
from pathlib import Path

import pytest
from optuna.artifacts.exceptions import ArtifactNotFound

from storage.uploads import Uploads


def test_what_was_written_is_read_until_it_is_removed(tmp_path: Path) -> None:
    """The folder is made by the first write."""
    uploads = Uploads(tmp_path / "runs" / "_uploads")
    uploads.write("ab-1", BytesIO(b"sound"))
    with uploads.open_reader("ab-1") as file:
        assert file.read() == b"sound"
    uploads.remove("ab-1")
    with pytest.raises(ArtifactNotFound):
        uploads.open_reader("ab-1")
    with pytest.raises(ArtifactNotFound):
        uploads.remove("ab-1")


@pytest.mark.parametrize(
    "artifact_id",
    ["../secret", "..", ".", "", "/etc/passwd", "a/../../secret", "a/b", ".hidden", "a\0b", "-"],
)
def test_id_that_is_a_path_is_not_found(tmp_path: Path, artifact_id: str) -> None:
    """Nothing outside is read, written or removed."""
    (tmp_path / "secret").write_text("secret")
    uploads = Uploads(tmp_path / "folder")
    for use in (uploads.open_reader, uploads.remove):
        with pytest.raises(ArtifactNotFound):
            use(artifact_id)
    with pytest.raises(ArtifactNotFound):
        uploads.write(artifact_id, BytesIO(b"x"))
    assert (tmp_path / "secret").read_text() == "secret"


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link in the folder opens nothing behind it, and is no place to write to."""
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_text("secret")
    folder.mkdir()
    (folder / "ab").symlink_to(secret)
    uploads = Uploads(folder)
    with pytest.raises(ArtifactNotFound):
        uploads.open_reader("ab")
    with pytest.raises(FileExistsError):
        uploads.write("ab", BytesIO(b"x"))
    uploads.remove("ab")
    assert secret.read_text() == "secret"


def test_only_files_are_read(tmp_path: Path) -> None:
    """A folder is none, and nobody waits for a pipe."""
    (tmp_path / "aa").mkdir()
    os.mkfifo(tmp_path / "bb")
    for artifact_id in ("aa", "bb"):
        with pytest.raises(ArtifactNotFound):
            Uploads(tmp_path).open_reader(artifact_id)


def test_reading_makes_no_folder(tmp_path: Path) -> None:
    """Where nothing was attached there is nothing, and that stays so."""
    with pytest.raises(ArtifactNotFound):
        Uploads(tmp_path / "none").open_reader("ab")
    assert list(tmp_path.iterdir()) == []


class _BrokenOff(RawIOBase):
    """A body that breaks off."""

    def read(self, size: int = -1) -> bytes:
        raise OSError("broken off")


def test_half_an_artifact_is_none(tmp_path: Path) -> None:
    """What could not be written whole is gone."""
    with pytest.raises(OSError, match="broken off"):
        Uploads(tmp_path).write("ab", _BrokenOff())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
