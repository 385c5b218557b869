"""Databases that can't be reached, refuse us, or drop our connections."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from storage.database import Database, parse_url
from storage.embedded import _pg_ctl, embedded_server
from storage.errors import DatabaseRefusedError, DatabaseUnavailableError, StorageError
from storage.leases import Leases
from storage.schema import ensure_schema
from storage.trials import DurableStorage

RIGHT, WRONG = "r1ght", "wr0ng"
TRUST, SCRAM = (f"127.0.0.1/32            {method}" for method in ("trust", "scram-sha-256"))


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def terminate_all(url: str) -> None:
    """End every other connection to the database, as an administrator may do."""
    other = sa.create_engine(parse_url(url, {}))
    with other.begin() as connection:
        connection.execute(
            sa.text(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
        )
    other.dispose()


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """The address, without user and password, of a server that asks for passwords (SCRAM)."""
    with (
        tempfile.TemporaryDirectory(prefix="melsearch-test-") as root,
        embedded_server(Path(root) / "postgres") as url,
    ):
        folder, port = Path(root) / "postgres", free_port()
        engine = sa.create_engine(parse_url(url, {}), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in (
                f"create role ann login superuser password '{RIGHT}'",
                "alter system set listen_addresses = '127.0.0.1'",
                f"alter system set port = {port}",
            ):
                connection.execute(sa.text(statement))
        engine.dispose()
        hba = folder / "data" / "pg_hba.conf"
        hba.write_text(hba.read_text().replace(TRUST, SCRAM))
        assert SCRAM in hba.read_text()
        options = f"-c unix_socket_directories='{folder}'"
        _pg_ctl(folder, "stop", "--mode=fast")
        _pg_ctl(folder, "start", "--wait", f"--options={options}")
        yield f"127.0.0.1:{port}/postgres"


def try_to_connect(url: str) -> None:
    """Connect as every command does first."""
    database = Database(parse_url(url, {}))
    try:
        DurableStorage(database)
    finally:
        database.close()


def test_right_password_is_let_in(guarded: str) -> None:
    """The server of these tests does ask, and lets the right password in."""
    try_to_connect(f"postgresql://ann:{RIGHT}@{guarded}")


@pytest.mark.parametrize(
    ("login", "reason"),
    [
        (f"ann:{WRONG}@", "password authentication failed"),
        ("ann@", "no password supplied"),
        (f"nobody:{WRONG}@", "password authentication failed"),
    ],
)
def test_wrong_password_is_refused(guarded: str, login: str, reason: str) -> None:
    """A refusal is told apart from an outage, and never repeats the password."""
    with pytest.raises(DatabaseRefusedError, match=rf"{reason}.*MELSEARCH_STORAGE") as error:
        try_to_connect(f"postgresql://{login}{guarded}")
    assert WRONG not in str(error.value)


def test_refusal_of_the_second_address_is_a_refusal(guarded: str) -> None:
    """A host of several addresses refuses us if one of them does, though the others are dead."""
    port = guarded.partition(":")[2].partition("/")[0]
    hosts = f"postgresql://ann:{WRONG}@/postgres?host=127.0.0.2,127.0.0.1&port={port},{port}"
    with pytest.raises(DatabaseRefusedError, match="password authentication failed"):
        try_to_connect(hosts)


def test_missing_database_is_refused(guarded: str) -> None:
    """A misspelt database will not appear by waiting."""
    address = guarded.replace("/postgres", "/posgres")
    with pytest.raises(DatabaseRefusedError, match='database "posgres" does not exist'):
        try_to_connect(f"postgresql://ann:{RIGHT}@{address}")


def test_unreachable_server_is_unavailable() -> None:
    """Nobody listens: the message says where, without the password."""
    address = f"127.0.0.1:{free_port()}/db"
    with pytest.raises(DatabaseUnavailableError, match="can't be reached") as error:
        try_to_connect(f"postgresql://ann:{RIGHT}@{address}")
    assert address in str(error.value)
    assert RIGHT not in str(error.value)


def test_unknown_host_is_unavailable() -> None:
    """A name that can't be looked up may be known again later."""
    with pytest.raises(DatabaseUnavailableError, match="no-such-host"):
        try_to_connect("postgresql://ann@no-such-host.invalid/db")


def test_terminated_idle_connections_are_replaced(database: Database, database_url: str) -> None:
    """Between two calls a connection may die, and the next call notices nothing."""
    leases = Leases(database, 3600)
    ensure_schema(database)
    storage = DurableStorage(database)
    lease = leases.take("trial:s:1", "a")
    assert lease
    terminate_all(database_url)
    assert leases.renew(lease)
    assert storage.get_all_studies() == []


def test_connection_that_dies_in_a_block_ends_the_block(
    database: Database, database_url: str
) -> None:
    """Nothing goes on by another connection without the locks; done again, the block succeeds."""
    ensure_schema(database)
    leases = Leases(database, 3600)
    with pytest.raises(DatabaseUnavailableError), database.connection():
        terminate_all(database_url)
        with pytest.raises(DatabaseUnavailableError):
            leases.take("trial:s:1", "a")
        leases.take("trial:s:1", "a")
    assert leases.held("trial:") == []
    with database.connection():
        assert leases.take("trial:s:1", "a")


def test_lost_advisory_lock_is_noticed(database: Database, database_url: str) -> None:
    """Whoever lost its lock to a dead connection learns it at the latest when it gives it back."""
    with (
        pytest.raises(DatabaseUnavailableError),
        database.locked("melsearch:claim:s"),
    ):
        terminate_all(database_url)


def test_refused_statement_is_neither_outage_nor_refusal(database: Database) -> None:
    """An error in what we say to the database is not waited out."""
    with (
        pytest.raises(StorageError, match="no_such_table") as error,
        database.transaction() as connection,
    ):
        connection.execute(sa.text("select * from no_such_table"))
    assert type(error.value) is StorageError
