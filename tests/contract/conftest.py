"""A database behind a proxy that cuts connections."""

from collections.abc import Iterator

import pytest

from storage.database import Database, parse_url
from tests.cutter import Cutter, cutter_before


@pytest.fixture
def cutter(database_url: str) -> Iterator[tuple[Cutter, Database]]:
    """A proxy before a fresh database, and the database through it."""
    with cutter_before(database_url) as (cutter, url):
        database = Database(parse_url(url, {}))
        yield cutter, database
        database.close()
