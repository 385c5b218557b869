"""Trials that kill their worker, fail or run away: they end FAIL, and the others go on."""

import math
import signal
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from safetensors.torch import save_file

from search.claim import FAIL_REASON, ClaimedTrial, Claims
from search.config import StudyConfig
from search.errors import StudyFailedError
from search.home import Home
from search.study import create_study
from storage.database import Database
from storage.leases import Leases
from tests.faults.workers import BASELINE, TRAINING, Crew, fingerprint, holders, tiny_study
from trainer.config import TrainConfig
from trainer.model import build_model

DEADLY = """
import os, signal, sys
import timm
from timm.models import register_model
from search.cli import main

@register_model
def deadly(pretrained=False, drop_rate=0.0, **options):
    if drop_rate == 0.25:
        os.kill(os.getpid(), signal.SIGKILL)
    return timm.create_model("test_resnet", **options)

sys.argv = ["melsearch", "worker", "s"]
main()
"""
DROPOUT = {"dropout": {"type": "float", "low": 0.0, "high": 0.5}}
RUNAWAY = {"optimizer": "sgd", "lr": 10.0, "weight_decay": 1.0, "schedule": "constant"}
"""Each step multiplies the weights by about -9, whatever the clips say."""


def short_study(trials: int, epochs: int, changes: dict[str, Any], **others: Any) -> StudyConfig:
    """A study whose baseline trains as its other trials do."""
    changes = changes | {"epochs": epochs}
    return tiny_study(
        trials=trials, training=TRAINING | changes, baseline=BASELINE | changes, **others
    )


def test_trial_that_kills_its_workers_is_given_up(
    database: Database, home: Home, crew: Crew
) -> None:
    """After max_attempts deaths it ends FAIL with the reason; the budget is spent on others."""
    lease = {"ttl_seconds": 1.5, "renew_seconds": 0.5, "max_attempts": 2}
    config = short_study(2, 2, {"backbone": "deadly"}, space=DROPOUT, lease=lease)
    study = create_study(database, config, fingerprint(home))
    study.optuna.enqueue_trial({"dropout": 0.25})
    codes = [crew.run(["-c", DEADLY]).wait()]
    while codes[-1] == -signal.SIGKILL:  # as Compose starts a worker again
        codes.append(crew.run(["-c", DEADLY]).wait())
    assert codes == [-signal.SIGKILL] * 2 + [0]
    states = [trial.state for trial in study.trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert "after 2 attempts: its worker died" in study.trials()[1].user_attrs[FAIL_REASON]
    assert holders(study) == []


def test_trial_whose_weights_no_host_has_is_given_up(
    database: Database, home: Home, crew: Crew, tmp_path: Path
) -> None:
    """Each worker leaves with 1 and counts as an attempt, until the trial fails and says why."""
    weights = {"weights": str(tmp_path / "nowhere.safetensors")}
    lease = {"ttl_seconds": 60.0, "renew_seconds": 0.5, "max_attempts": 2}
    config = short_study(1, 2, weights, lease=lease, max_failed_trials=0)
    study = create_study(database, config, fingerprint(home))
    for _ in range(3):  # as Compose starts a worker again
        worker = crew.start()
        assert worker.wait() == 1
    (trial,) = study.trials()
    assert trial.state == TrialState.FAIL
    assert "given up after 2 attempts: weights must be" in trial.user_attrs[FAIL_REASON]
    assert "max_failed_trials = 0" in worker.log.read_text()


def test_stopped_study_says_its_most_common_reason(database: Database, home: Home) -> None:
    """Three trials failed for one reason and one for another: the one of three is told."""
    study = create_study(database, tiny_study(trials=9, max_failed_trials=3), fingerprint(home))
    claims = Claims(study, Leases(database, 60), "ann", "cpu")
    for reason in ("out of luck", "no memory", "no memory", "no memory"):
        claimed = claims.claim()
        assert isinstance(claimed, ClaimedTrial)
        claims.finish(claimed, TrialState.FAIL, None, {FAIL_REASON: reason})
    with pytest.raises(StudyFailedError, match=r"4 trials failed.*; 3 of them: no memory"):
        claims.claim()


def test_training_without_a_finite_epoch_fails(
    database: Database, home: Home, crew: Crew, tmp_path: Path
) -> None:
    """A loss that is nan in the first epoch is the trial's fault, and its reason says the fix."""
    weights = tmp_path / "weights.safetensors"
    state = build_model(TrainConfig(**BASELINE), 1).state_dict()
    save_file({name: value * math.nan for name, value in state.items()}, weights)
    config = short_study(1, 2, {"weights": str(weights)}, max_failed_trials=0)
    study = create_study(database, config, fingerprint(home))
    assert crew.start().wait() == 1
    (trial,) = study.trials()
    assert trial.state == TrialState.FAIL
    assert "in epoch 1" in trial.user_attrs[FAIL_REASON]
    assert "lower lr" in trial.user_attrs[FAIL_REASON]


def test_training_that_runs_away_after_finite_epochs_is_pruned(
    database: Database, home: Home, crew: Crew
) -> None:
    """What it reported before counts, and it takes its share of the budget."""
    study = create_study(
        database, short_study(1, 50, RUNAWAY, space=DROPOUT, max_failed_trials=0), fingerprint(home)
    )
    assert crew.start().wait() == 0
    (trial,) = study.trials()
    assert trial.state == TrialState.PRUNED
    assert 0 < len(trial.intermediate_values) < 50
