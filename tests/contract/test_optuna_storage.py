"""Optuna's own test suite for storages, unchanged, on ours."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import pytest
from optuna.storages import BaseStorage, _CachedStorage
from optuna.testing.pytest_storages import StorageTestCase

from storage.database import Database
from storage.trials import DurableStorage
from tests.cutter import Cutter


class TestDurableStorage(StorageTestCase):
    """The storage as it is."""

    @pytest.fixture
    def storage(self, database: Database) -> BaseStorage:
        """A storage in a fresh database."""
        return DurableStorage(database)


class TestCachedDurableStorage(StorageTestCase):
    """The storage as Optuna's studies use it."""

    @pytest.fixture
    def storage(self, database: Database) -> BaseStorage:
        """A storage in a fresh database, behind Optuna's cache."""
        return _CachedStorage(DurableStorage(database))


@contextmanager
def cut_at_random(cutter: Cutter, seed: int) -> Iterator[list[int]]:
    """Cut a connection every so many messages while the block runs; yields after how many."""
    rng, done, cuts = random.Random(seed), Event(), list[int]()  # noqa: S311

    def cut() -> None:
        while not done.wait(0.002):
            if cutter.messages_left is None:
                cuts.append(rng.randrange(30, 200))
                cutter.cut_after(cuts[-1])

    thread = Thread(target=cut)
    thread.start()
    try:
        yield cuts
    finally:
        done.set()
        thread.join()
        cutter.messages_left = None


class TestDurableStorageUnderCuts(StorageTestCase):
    """The storage while connections are cut at random, in the midst of statements and commits."""

    @pytest.fixture
    def storage(
        self, cutter: tuple[Cutter, Database], request: pytest.FixtureRequest
    ) -> Iterator[BaseStorage]:
        """A storage behind the proxy that cuts; each test has its own luck."""
        proxy, database = cutter
        storage = DurableStorage(database)
        with cut_at_random(proxy, seed=len(request.node.name)) as cuts:
            yield storage
            while len(cuts) < 3:  # tests that say little
                storage.get_all_studies()
