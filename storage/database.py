"""One PostgreSQL database: its address, our engine, and Optuna's storage in it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from storage.errors import DatabaseRefusedError, DatabaseUnavailableError, StorageError

_DRIVER = "postgresql+psycopg2"
_SCHEMES = ("postgresql", "postgres", _DRIVER)
_CONNECT_ARGS = {
    "connect_timeout": 10,
    "application_name": "melsearch",
    # A host that vanished without a word is noticed within a minute.
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    # And the server frees the locks of a client that froze or vanished, so that others go on.
    "options": "-c idle_in_transaction_session_timeout=30000 -c tcp_keepalives_idle=20"
    " -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}
_REFUSALS = ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf")


def parse_url(text: str, environ: Mapping[str, str] = os.environ) -> sa.URL:
    """Return the address of a PostgreSQL database, with its password put in from a secret file.

    The file is named by `MELSEARCH_STORAGE_PASSWORD_FILE`; a password in the URL wins over it.

    Raises:
        DatabaseRefusedError: not a PostgreSQL URL, or the secret file can't be read.
    """
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError) as error:
        raise DatabaseRefusedError(
            "MELSEARCH_STORAGE must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE; "
            "what it holds is no URL"
        ) from error
    if url.drivername not in _SCHEMES:
        raise DatabaseRefusedError(
            f"MELSEARCH_STORAGE must be a postgresql:// URL, got {url.drivername}://"
        )
    if "@" in (url.host or ""):  # else a part of the password would go for the host's name
        raise DatabaseRefusedError(
            "MELSEARCH_STORAGE has more than one @; write one in a password as %40"
        )
    if password := url.query.get("password"):
        # Where SQLAlchemy knows to hide it.
        url = url.difference_update_query(["password"]).set(password=str(password))
    secret = environ.get("MELSEARCH_STORAGE_PASSWORD_FILE")
    if secret and url.password is None:
        try:
            url = url.set(password=Path(secret).read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise DatabaseRefusedError(
                f"MELSEARCH_STORAGE_PASSWORD_FILE names {secret}, which can't be read: {error}"
            ) from error
    return url.set(drivername=_DRIVER)


class Database:
    """A PostgreSQL database that all workers of its studies share. Safe to use from threads."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.engine = sa.create_engine(
            url, connect_args=_CONNECT_ARGS, pool_pre_ping=True, pool_size=2, max_overflow=1
        )

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def optuna_storage(self) -> RDBStorage:
        """Return Optuna's storage in this database; makes its tables if they are missing.

        Raises:
            DatabaseUnavailableError, DatabaseRefusedError
        """
        with database_errors(str(self)), self.advisory_lock("melsearch:tables"):
            return RDBStorage(
                self.url.render_as_string(hide_password=False),
                engine_kwargs={
                    "connect_args": _CONNECT_ARGS,
                    "pool_pre_ping": True,
                    "pool_size": 1,
                    "max_overflow": 2,
                },
            )

    @contextmanager
    def advisory_lock(self, name: str) -> Iterator[None]:
        """Hold the database-wide lock `name`; waits for whoever holds it. The server frees it
        when its holder dies."""
        with self.engine.begin() as connection:
            key = sa.func.hashtextextended(name, 0)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
            yield

    def close(self) -> None:
        """Close every idle connection."""
        self.engine.dispose()


@contextmanager
def database_errors(address: str = "the database") -> Iterator[None]:
    """Turn the errors of SQLAlchemy, the driver and Optuna's storage into ours.

    Raises:
        DatabaseUnavailableError: the connection failed or was lost.
        DatabaseRefusedError: the address, user, password or database name is wrong.
        StorageError: the database refused a statement.
    """
    try:
        yield
    except (DBAPIError, PoolTimeoutError) as error:
        raise _translate(error, address) from error
    except StorageInternalError as error:
        raise _translate(error.__cause__ or error, address) from error


def _translate(error: BaseException, address: str) -> StorageError:
    lines = str(getattr(error, "orig", error)).strip().split("\n")
    refusals = [line for line in lines if any(word in line for word in _REFUSALS)]
    if isinstance(error, OperationalError) and refusals:  # of any of the host's addresses
        return DatabaseRefusedError(
            f"{address} refused us: {refusals[0]}; set MELSEARCH_STORAGE (and the password) right"
        )
    reason = lines[0]
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError) or getattr(
        error, "connection_invalidated", False
    ):
        return DatabaseUnavailableError(f"{address} can't be reached: {reason}")
    return StorageError(f"{address} failed: {reason}")
