"""A claim that loses its lock half-way, as when an administrator ends all connections."""

from typing import Any

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from search.claim import ClaimedTrial, Claims, Nothing
from search.config import parse_study
from search.study import Study, create_study, open_study
from storage.database import Database, parse_url
from storage.errors import DatabaseUnavailableError
from storage.leases import Leases

DOCUMENT: dict[str, Any] = {
    "name": "s",
    "trials": 1,
    "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
}
_HOLDERS = sa.text(
    "select pg_terminate_backend(pid, 5000) from pg_locks "
    "where locktype = 'advisory' and pid <> pg_backend_pid()"
)


@pytest.fixture
def study(database: Database) -> Study:
    """A fresh study with a budget of one trial."""
    return create_study(database, parse_study(DOCUMENT, "study.toml"), "data-1")


def test_claim_without_its_lock_spends_no_more_than_the_budget(
    study: Study, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has lost the lock has lost the way to write, and asks for nothing more."""
    second_database = Database(parse_url(database_url, {}))
    second_study = open_study(second_database, "s")
    second = Claims(second_study, Leases(second_database, 0.001), "second", "cpu")
    first = Claims(study, Leases(study.database, 0.001), "first", "cpu")
    theirs: list[ClaimedTrial | Nothing] = []
    ask = study.optuna.ask

    def ask_too_late() -> Any:
        with second_database.engine.begin() as connection:
            connection.execute(_HOLDERS)
        theirs.append(second.claim())
        return ask()

    monkeypatch.setattr(study.optuna, "ask", ask_too_late)
    with pytest.raises(DatabaseUnavailableError):
        first.claim()
    (claimed,) = theirs
    assert isinstance(claimed, ClaimedTrial)
    assert [trial.number for trial in study.trials()] == [claimed.number]
    second.finish(claimed, TrialState.COMPLETE, 0.5)
    assert first.claim() is Nothing.SPENT
    second_database.close()
