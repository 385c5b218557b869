"""One PostgreSQL database: few connections, transactions that are sure, errors that are ours."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from storage.address import parse_url
from storage.errors import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    LeaseLostError,
    StorageError,
)
from storage.outage import Outage, persist
from storage.sqlerrors import is_outage, translate

__all__ = ["Database", "parse_url"]

_CONNECT_ARGS = {
    "connect_timeout": 10,
    "application_name": "melsearch",
    # A host that vanished without a word is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_OPTIONS = (
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"
    " -c idle_in_transaction_session_timeout=30000"
)
_IDLE_OPTION = "-c idle_session_timeout=30000"
"""The server frees the locks of a client that froze or vanished, so that others go on."""
_NUM_CONNECTIONS = 2
"""At most, of a process, and none while it has nothing to say: 100 workers share a server."""
_MARK = sa.text("insert into melsearch_commit (id) values (:id) on conflict do nothing")

T = TypeVar("T")


class _Here(threading.local):
    """What a thread is in the midst of."""

    connection: sa.Connection | None = None
    fence: tuple[sa.TextClause, dict[str, Any]] | None = None
    is_once: bool = False
    """Whether Optuna must not do twice what it does now."""
    mark: dict[str, Any] | None = None
    """Of the commit to come."""


class Database:
    """A PostgreSQL database that all workers of its studies share. Safe to use from threads.

    `keep` is how many connections are kept open; 0 closes each as soon as it is idle.
    """

    def __init__(self, url: sa.URL, *, keep: int = 0) -> None:
        self.url = url
        self.outage = Outage()
        self.stop = threading.Event()
        """Set, nobody waits for the database any more."""
        self._here = _Here()
        options = [str(url.query.get("options", "")), _OPTIONS, "" if keep else _IDLE_OPTION]
        self.connect_args = {**_CONNECT_ARGS, "options": " ".join(options)}
        self.engine = sa.create_engine(
            url,
            connect_args=self.connect_args,
            pool_pre_ping=True,
            pool_size=keep or _NUM_CONNECTIONS,
            max_overflow=0,
        )
        if not keep:
            sa.event.listen(self.engine, "checkin", _hang_up)

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def wait_until(self, stop: threading.Event) -> None:
        """Wait outages out until `stop` is set, also one that lasts from the start on."""
        self.stop = stop
        self.outage.is_patient = True

    @contextmanager
    def connection(self) -> Iterator[sa.Connection]:
        """Use one connection for all that this thread does in the block.

        Once it is lost, the block can do nothing more: whoever opened it repeats it as a whole.

        Raises:
            DatabaseUnavailableError, DatabaseRefusedError, StorageError
        """
        held = self._here.connection
        if held is not None:
            _require_intact(held)
            with self.translated():
                yield held
            return
        with self.translated(), self.engine.connect() as connection:
            self._here.connection = connection
            try:
                yield connection
            finally:
                self._here.connection = None
        self.outage.ends()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Do what the block does in one transaction.

        Raises:
            DatabaseUnavailableError: it was not done; without a mark it may have been.
        """
        with self.connection() as connection, connection.begin() as transaction:
            yield connection
            self.commit(transaction.commit)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the database-wide lock `name`; waits for whoever holds it.

        The lock is the connection's: once it is lost, the block can write nothing more.
        """
        key = sa.func.hashtextextended(name, 0)
        with self.connection() as connection:
            with connection.begin():
                connection.execute(sa.select(sa.func.pg_advisory_lock(key)))
            try:
                yield
            finally:
                _require_intact(connection)
                with connection.begin():
                    connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))

    def repeat(self, operation: Callable[[], T]) -> T:
        """Do what is safe to repeat until the database has taken it.

        In a block on one connection it is done once, as the block is repeated as a whole; and so it
        is while the database has never been reached.
        """
        if self._here.connection is not None:
            return operation()
        if not self.outage.was_reached:
            self._reach()
        result = persist(operation, self.stop)
        self.outage.ends()
        return result

    def _reach(self) -> None:
        """Connect for the first time; a wrong password or name is told at once, in any case."""

        def connect() -> None:
            with self.connection():
                pass

        if self.outage.is_patient:
            persist(connect, self.stop, (DatabaseUnavailableError,))
        else:
            connect()

    # What Optuna's sessions share with our own transactions.

    def bind(self) -> sa.Connection | sa.Engine:
        """Return what a transaction of this thread shall use."""
        if self._here.connection is None:
            return self.engine
        _require_intact(self._here.connection)
        return self._here.connection

    @contextmanager
    def fenced(self, statement: sa.TextClause, values: dict[str, Any]) -> Iterator[None]:
        """Let each of Optuna's transactions in the block begin with a statement that finds a row.

        Raises:
            LeaseLostError: out of the block, by the transaction that finds none; it writes nothing.
        """
        self._here.fence = (statement, values)
        try:
            yield
        finally:
            self._here.fence = None

    def pass_fence(self, connection: sa.Connection) -> None:
        """Begin a transaction, if it is fenced."""
        if self._here.fence is not None:
            statement, values = self._here.fence
            if connection.execute(statement, values).first() is None:
                raise LeaseLostError(f"{values['resource']} is no longer {values['holder']}'s")

    @contextmanager
    def as_optuna(self, *, is_once: bool) -> Iterator[None]:
        """Do a call of Optuna's; its transactions leave marks if they must not be done twice."""
        self._here.is_once = is_once
        with self.translated():
            yield

    def mark_if_once(self, execute: Callable[..., Any]) -> None:
        """Leave a mark in Optuna's transaction, if its call must not be done twice."""
        if self._here.is_once:
            self.mark(execute)

    def mark(self, execute: Callable[..., Any]) -> None:
        """Leave a mark in a transaction that must not be done twice; `execute` is that one's.

        When the answer to its commit is lost, it is looked up whether it was done.
        """
        self._here.mark = {"id": uuid.uuid4()}
        execute(_MARK, self._here.mark)

    def commit(self, commit: Callable[[], None]) -> None:
        """Commit this thread's transaction; a lost answer is looked up if there is a mark."""
        mark, self._here.mark = self._here.mark, None
        try:
            commit()
        except DBAPIError as error:
            if mark is None or not error.connection_invalidated or not self._was_done(mark):
                raise

    def _was_done(self, mark: dict[str, Any]) -> bool:
        """Look a commit up; one that still goes on is waited for: its mark is locked."""

        def look() -> bool:
            with self.translated(), self.engine.connect() as connection:  # and rolls back
                return connection.execute(_MARK, mark).rowcount == 0

        return persist(look, self.stop)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turn the errors of SQLAlchemy, the driver and Optuna's storage into ours."""
        try:
            yield
        except (DBAPIError, PendingRollbackError, PoolTimeoutError) as error:
            raise self._translate(error) from error
        except StorageInternalError as error:
            raise self._translate(error.__cause__ or error) from error

    def _translate(self, error: BaseException) -> StorageError:
        ours = translate(error, str(self))
        # A deadlock, or a wait for our own other thread, is no outage, though it is repeated too.
        if isinstance(ours, DatabaseRefusedError) or is_outage(error):
            self.outage.begins(str(ours))
        return ours

    def close(self) -> None:
        """Close every idle connection."""
        self.engine.dispose()


def _hang_up(connection: Any, record: Any) -> None:
    record.invalidate()


def _require_intact(connection: sa.Connection) -> None:
    """Refuse a connection that was lost: SQLAlchemy would go on with another, without its locks."""
    if connection.invalidated:
        raise DatabaseUnavailableError("the connection was lost")
