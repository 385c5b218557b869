"""Artifacts that people attach to studies and trials: Optuna's artifact store, in one folder."""

import os
import re
import shutil
import stat
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# A link is not followed, and a pipe not waited for.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Uploads:
    """An artifact store that reads, writes and removes plain files of one folder and no others.

    Optuna's own follows links out of its folder. The folder is made by the first write.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact.

        Raises:
            ArtifactNotFound: there is none of that id, or it can't be read, or it is no plain file.
        """
        path = self._path(artifact_id)
        try:
            file = open(os.open(path, _FLAGS), "rb")  # noqa: SIM115, PTH123
        except OSError as error:
            raise ArtifactNotFound(f"no artifact {artifact_id!r}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise ArtifactNotFound(f"artifact {artifact_id!r} is no file")
        return file

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write a new artifact, whole or not at all.

        Raises:
            OSError: there is one of that id, or the disk failed.
        """
        path = self._path(artifact_id)
        self._folder.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            try:
                shutil.copyfileobj(content_body, file)
                file.flush()
            except OSError:
                path.unlink()
                raise

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact.

        Raises:
            ArtifactNotFound: there is none of that id.
        """
        try:
            self._path(artifact_id).unlink()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ArtifactNotFound(f"no artifact {artifact_id!r}") from error

    def _path(self, artifact_id: str) -> Path:
        if not _ID.fullmatch(artifact_id):
            raise ArtifactNotFound(f"no artifact {artifact_id!r}: not an artifact's id")
        return self._folder / artifact_id
