"""Where melsearch keeps its things, and how a command finds the database."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.errors import StudyError
from storage.artifacts import Artifacts

if TYPE_CHECKING:
    from storage.database import Database


@dataclass(frozen=True)
class Home:
    """The folder with the waveform caches, the runs and, without a server, the database."""

    root: Path

    @property
    def cache(self) -> Path:
        """The folder of the waveform caches."""
        return self.root / "cache"

    @property
    def artifacts(self) -> Artifacts:
        """The folders of checkpoints and artifacts."""
        return Artifacts(self.root / "runs")

    @property
    def postgres(self) -> Path:
        """The folder of the embedded PostgreSQL."""
        return self.root / "postgres"


def find_home(environ: Mapping[str, str] = os.environ) -> Home:
    """Return the home that `MELSEARCH_HOME` names, by default `.melsearch` in this folder."""
    return Home(Path(environ.get("MELSEARCH_HOME") or ".melsearch"))


@contextmanager
def connect(
    home: Home, *, create: bool = False, keep: int = 0, environ: Mapping[str, str] = os.environ
) -> Iterator["Database"]:
    """Yield the database that `MELSEARCH_STORAGE` names, else the home's embedded PostgreSQL.

    `keep` connections to it are kept open, for those who never have nothing to ask.

    Raises:
        StudyError: there is no embedded database yet, and `create` is false.
        DatabaseRefusedError, EmbeddedServerError
    """
    # Imported here, as the commands without a database start faster without them.
    from storage.database import Database, parse_url
    from storage.embedded import embedded_server, is_initialised

    if address := environ.get("MELSEARCH_STORAGE"):
        with _closing(Database(parse_url(address, environ), keep=keep)) as database:
            yield database
        return
    if not create and not is_initialised(home.postgres):
        raise StudyError(
            f"there is no study in {home.root}: run `melsearch up study.toml --data DATA` or "
            "`melsearch create` first, or set MELSEARCH_STORAGE or MELSEARCH_HOME"
        )
    with (
        embedded_server(home.postgres) as url,
        _closing(Database(parse_url(url, {}), keep=keep)) as database,
    ):
        yield database


def revive(home: Home, environ: Mapping[str, str] = os.environ) -> None:
    """Start the embedded PostgreSQL again if it has died; for those inside `connect`.

    Raises:
        EmbeddedServerError
    """
    from storage.embedded import ensure_running

    if not environ.get("MELSEARCH_STORAGE"):
        ensure_running(home.postgres)


@contextmanager
def _closing(database: "Database") -> Iterator["Database"]:
    try:
        yield database
    finally:
        database.close()
