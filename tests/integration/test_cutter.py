"""The proxy that cuts connections does what the tests and benchmarks that use it rely on."""

import time
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest

from tests.cutter import Cutter, cutter_before
from tests.waiting import wait_until

Connection = psycopg2.extensions.connection


class Guests:
    """Connections to a fresh database with a table `t`, straight and through the proxy."""

    def __init__(self, straight: str, cut: str) -> None:
        self._straight, self.cut_url = straight, cut
        self._all: list[Connection] = []
        self.query("create table t (n int)")

    def join(self) -> Connection:
        """Connect through the proxy."""
        self._all.append(psycopg2.connect(self.cut_url, connect_timeout=5))
        return self._all[-1]

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """Ask the server itself."""
        with (
            closing(psycopg2.connect(self._straight)) as connection,
            connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def leave(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.close()


@pytest.fixture
def cutter_and_guests(database_url: str) -> Iterator[tuple[Cutter, Guests]]:
    """The proxy before a fresh database, and who connects through it."""
    with cutter_before(database_url) as (cutter, url):
        guests = Guests(database_url, url)
        yield cutter, guests
        guests.leave()


@pytest.fixture
def cutter(cutter_and_guests: tuple[Cutter, Guests]) -> Cutter:
    """The proxy."""
    return cutter_and_guests[0]


@pytest.fixture
def guests(cutter_and_guests: tuple[Cutter, Guests]) -> Guests:
    """Who connects through the proxy."""
    return cutter_and_guests[1]


def insert(connection: Connection, number: int = 1) -> None:
    """Insert a row without a commit."""
    with connection.cursor() as cursor:
        cursor.execute("insert into t values (%s)", (number,))


def test_everything_passes_by_default(cutter: Cutter, guests: Guests) -> None:
    """A large statement and a large answer go through whole."""
    with guests.join() as connection, connection.cursor() as cursor:
        cursor.execute("select %s || repeat('y', 300000)", ("x" * 300_000,))
        assert cursor.fetchone() == ("x" * 300_000 + "y" * 300_000,)
    assert cutter.num_connected == 1


def test_cut_resets_all_connections(cutter: Cutter, guests: Guests) -> None:
    """Whoever is connected loses the connection; whoever comes after is served."""
    connections = [guests.join(), guests.join()]
    cutter.cut()
    for connection in connections:
        with pytest.raises(psycopg2.OperationalError):
            insert(connection)
    insert(guests.join())


def test_refused_connections_are_taken_again(cutter: Cutter, guests: Guests) -> None:
    """A refusal keeps new connections out, not those that are there."""
    there = guests.join()
    cutter.refuse(True)
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        guests.join()
    insert(there)
    cutter.refuse(False)
    insert(guests.join())


def test_held_bytes_pass_afterwards(cutter: Cutter, guests: Guests) -> None:
    """While it holds, no statement gets through; then it does, and so does its answer."""
    connection = psycopg2.connect(guests.cut_url, async_=True)
    wait_until(lambda: connection.poll() == psycopg2.extensions.POLL_OK)
    cutter.hold(True)
    cursor = connection.cursor()
    cursor.execute("insert into t values (1) returning n")
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        assert connection.poll() != psycopg2.extensions.POLL_OK
        assert guests.query("select count(*) from t") == [(0,)]
    cutter.hold(False)
    wait_until(lambda: connection.poll() == psycopg2.extensions.POLL_OK)
    assert cursor.fetchall() == [(1,)]
    connection.close()


@pytest.mark.parametrize(("when", "rows"), [("before", []), ("after", [(1,)])])
def test_commit_is_cut_on_either_side_of_the_server(
    cutter: Cutter, guests: Guests, when: str, rows: list[tuple[int]]
) -> None:
    """The client sees the same error, whether the server has committed or not; only once."""
    connection = guests.join()
    cutter.cut_commit(when)
    insert(connection)
    with pytest.raises(psycopg2.OperationalError):
        connection.commit()
    assert cutter.num_commits_cut == 1
    assert guests.query("select n from t") == rows
    another = guests.join()
    insert(another, 2)
    another.commit()
    assert guests.query("select n from t") == [*rows, (2,)]


def test_only_the_wanted_commit_is_cut(cutter: Cutter, guests: Guests) -> None:
    """Commits of other transactions pass, and as many of the wanted ones as were to be skipped."""
    connection = guests.join()
    cutter.cut_commit("before", of=b"insert into t", skip=1)
    with connection.cursor() as cursor:
        cursor.execute("select 1")
    connection.commit()
    insert(connection, 1)
    connection.rollback()
    insert(connection, 2)
    connection.commit()
    insert(connection, 3)
    with pytest.raises(psycopg2.OperationalError):
        connection.commit()
    assert guests.query("select n from t") == [(2,)]


def test_cut_after_so_many_messages(cutter: Cutter, guests: Guests) -> None:
    """So many messages pass (psycopg2's BEGIN is one), the next one cuts its connection."""
    connection = guests.join()
    cutter.cut_after(3)
    insert(connection)
    insert(connection)
    with pytest.raises(psycopg2.OperationalError):
        insert(connection)
    assert guests.query("select count(*) from t") == [(0,)]
