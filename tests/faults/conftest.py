"""What the fault tests share: prepared data, and a crew of workers on a fresh database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from search.home import Home
from search.study import Study, create_study
from storage.database import Database
from tests.faults.workers import Crew, crew_of, fingerprint, make_home, tiny_study


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a waveform cache; each test's runs lie in its own home."""
    return make_home(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def own_home(home: Home, tmp_path: Path) -> Home:
    """A home with the same data and no runs."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cache").symlink_to(home.cache)
    return Home(tmp_path / "home")


@pytest.fixture
def crew(database_url: str, own_home: Home, tmp_path: Path) -> Iterator[Crew]:
    """Starts workers on a fresh database."""
    with crew_of(database_url, own_home, tmp_path) as crew:
        yield crew


@pytest.fixture
def study(database: Database, home: Home) -> Study:
    """A study with a budget of one trial, its baseline."""
    return create_study(database, tiny_study(), fingerprint(home))
