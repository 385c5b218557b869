"""What tests share: a real PostgreSQL with a fresh database per test, and the real speech set."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from storage.database import Database, parse_url
from storage.embedded import embedded_server

SPEECH_DATA = Path(__file__).parents[2] / "shared" / "data" / "speech-deepfake"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def speech_data() -> Path:
    """The real speech set beside the checkout."""
    if not SPEECH_DATA.is_dir():
        pytest.skip("needs ../shared/data/speech-deepfake, which is not beside this checkout")
    return SPEECH_DATA


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The URL of a PostgreSQL that the whole session shares."""
    with (
        tempfile.TemporaryDirectory(prefix="melsearch-test-") as folder,
        embedded_server(Path(folder) / "postgres") as url,
    ):
        yield url


@pytest.fixture
def database_url(server_url: str) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    name = f"test_{next(_numbers)}"
    server = sa.create_engine(parse_url(server_url, {}), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    try:
        yield server_url.replace("/postgres?", f"/{name}?")
    finally:
        with server.connect() as connection:
            connection.execute(sa.text(f"drop database {name} with (force)"))
        server.dispose()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, empty database."""
    database = Database(parse_url(database_url, {}))
    yield database
    database.close()


@pytest.fixture
def kept(database_url: str) -> Iterator[Database]:
    """A fresh database whose connections stay open, for who asks it thousands of times."""
    database = Database(parse_url(database_url, {}), keep=2)
    yield database
    database.close()
