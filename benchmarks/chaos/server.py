"""The PostgreSQL of one arm, and what the weather does to it."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2

from storage.embedded import _pg_ctl, embedded_server, ensure_running
from storage.errors import EmbeddedServerError

_PATIENCE_SECONDS = 60.0
_TERMINATE = """
select pg_terminate_backend(pid) from pg_stat_activity
where backend_type = 'client backend' and pid <> pg_backend_pid()"""


class Server:
    """An embedded PostgreSQL that can be stopped, killed and started again."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.is_up = True

    def stop(self, mode: str) -> None:
        """Stop it: `fast` tells the clients, `immediate` is a crash of all its processes."""
        if self.is_up:
            self.is_up = False
            _pg_ctl(self.folder, "stop", f"--mode={mode}", check=False)

    def kill(self) -> None:
        """Kill its first process alone; the others leave when they notice."""
        if self.is_up:
            self.is_up = False
            first = (self.folder / "data" / "postmaster.pid").read_text().split("\n")[0]
            os.kill(int(first), signal.SIGKILL)

    def start(self) -> None:
        """Start it again; what is left of a killed one may take a moment to leave."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self.is_up:
            try:
                ensure_running(self.folder)
                self.is_up = True
            except EmbeddedServerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def terminate_backends(self) -> None:
        """End all connections from within the server."""
        if self.is_up:
            self.query(_TERMINATE)

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement past the proxy; return its rows."""
        with (
            closing(psycopg2.connect(self.url)) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def server_in(folder: Path) -> Iterator[Server]:
    """Yield a server of its own; it is stopped at the end, whatever state it is in."""
    with embedded_server(folder) as url:
        yield Server(folder.resolve(), url)
