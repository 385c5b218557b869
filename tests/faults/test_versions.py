"""Real worker processes on a study that another version froze: they refuse, or are let in."""

import json
import signal
from typing import Any

import pytest
from optuna.trial import TrialState

from search.home import Home
from search.study import Study, create_study
from search.version import code_version, library_versions
from storage.database import Database
from tests.faults.workers import Crew, fingerprint, holders, tiny_study

OLD = {"code_version": "0.0.9+other", "libraries": library_versions() | {"timm": "0.9.9"}}
ALLOW = {"MELSEARCH_ALLOW_VERSION_MISMATCH": "1"}
WORKER = ["-m", "search.cli", "worker", "s"]


@pytest.fixture
def study(database: Database, home: Home) -> Study:
    """A study of one trial that other code and another timm froze."""
    study = create_study(database, tiny_study(), fingerprint(home))
    freeze_again(study, OLD)
    return study


def freeze_again(study: Study, changes: dict[str, Any]) -> None:
    """Let the study have been frozen by other versions."""
    study.optuna.set_user_attr("melsearch:contract", study.contract | changes)


def said(attributes: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return what a trial remembers of what trained it."""
    return attributes["code_version"], attributes.get("libraries", {})


def test_worker_of_other_versions_refuses(study: Study, crew: Crew) -> None:
    """Exit code 2, each difference in a line and the way out; nothing is written."""
    crew.environ = {"MELSEARCH_ALLOW_VERSION_MISMATCH": ""}  # as Compose passes what is not set
    before = study.trials(), study.optuna.user_attrs
    worker = crew.start()
    assert worker.wait() == 2
    log = worker.log.read_text()
    assert f'\n  code_version: study "0.0.9+other", here {json.dumps(code_version())}\n' in log
    timm = library_versions()["timm"]
    assert f'\n  libraries.timm: study "0.9.9", here {json.dumps(timm)}\n' in log
    assert "--allow-version-mismatch" in log
    assert "Traceback" not in log
    assert (study.trials(), study.optuna.user_attrs) == before
    assert study.trials()[0].state == TrialState.WAITING
    assert holders(study) == []
    assert not (crew.home.root / "runs").exists()


def test_worker_of_other_versions_is_let_in(study: Study, crew: Crew) -> None:
    """With the option it says what it risks, trains, and its trial remembers what trained it."""
    worker = crew.run([*WORKER, "--allow-version-mismatch"])
    assert worker.wait() == 0
    (warning,) = worker.events("version_mismatch_allowed")
    assert warning["level"] == "warning"
    assert [line.split(":")[0] for line in warning["differences"]] == [
        "code_version",
        "libraries.timm",
    ]
    (trial,) = study.trials()
    assert trial.state == TrialState.COMPLETE
    assert said(trial.user_attrs) == (code_version(), {"timm": library_versions()["timm"]})
    assert study.optuna.user_attrs["melsearch:contract"] == study.contract | OLD


def test_trial_is_taken_over_by_another_version(database: Database, home: Home, crew: Crew) -> None:
    """It goes on from the checkpoint, and remembers the version that ended it."""
    study = create_study(database, tiny_study(), fingerprint(home))
    first = crew.start()
    first.wait_for_epoch(2)
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    freeze_again(study, OLD)
    crew.environ = ALLOW
    second = crew.start()
    assert second.wait() == 0
    (resumed,) = second.events("training_resumed")
    assert resumed["epoch"] > 1
    (trial,) = study.trials()
    assert trial.state == TrialState.COMPLETE
    assert said(trial.user_attrs) == (code_version(), {"timm": library_versions()["timm"]})
