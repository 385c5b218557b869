"""What an arm has left behind: its trials, the server's audit, the workers' logs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import optuna
from optuna.trial import FrozenTrial, TrialState

from benchmarks.chaos.arm import Arm, Round
from benchmarks.chaos.audit import Change, read
from search.config import StudyConfig
from search.space import config_from_params
from search.study import BASELINE
from storage.database import Database, parse_url
from trainer.config import TrainConfig

ENDED_WELL = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class StudyEvidence:
    """One study's trials and what was logged of it."""

    config: StudyConfig
    has_ended: bool
    trials: list[FrozenTrial]
    epochs: list[tuple[int, int]]
    """Each epoch that a worker has trained: of which trial (a retry's first), and which one."""
    logs: list[str]
    """Of each worker process."""

    @property
    def ended_well(self) -> list[FrozenTrial]:
        """The trials that count towards the budget."""
        return [trial for trial in self.trials if trial.state in ENDED_WELL]

    def trained(self, trial: FrozenTrial) -> TrainConfig:
        """Return what a trial trained."""
        is_baseline = bool(trial.user_attrs.get(BASELINE))
        return config_from_params(self.config, trial.params, is_baseline)


@dataclass(frozen=True)
class Evidence:
    """All that one arm has left behind."""

    arm: Arm
    studies: list[StudyEvidence]
    changes: list[Change]

    @cached_property
    def names(self) -> dict[int, tuple[str, int]]:
        """Which study's trial of which number has this id; all that there ever were."""
        studies = {row[0]: row[1] for row in self._study_rows}
        found = {}
        for change in self.of("trials"):
            row = change.row
            found[row["trial_id"]] = (studies[row["study_id"]], row["number"])
        return found

    @cached_property
    def _study_rows(self) -> list[tuple[int, str]]:
        statement = "select study_id, study_name from studies"
        return [(row[0], row[1]) for row in self.arm.exposed.server.query(statement)]

    def of(self, *sources: str) -> Iterator[Change]:
        """Yield the changes of these tables, in their order."""
        return (change for change in self.changes if change.source in sources)


def gather(arm: Arm) -> Evidence:
    """Read everything while the arm's server still runs."""
    database = Database(parse_url(arm.exposed.server.url, {}))
    storage = database.optuna_storage()
    studies = [_gather_study(storage, held) for held in arm.rounds]
    database.close()
    storage.engine.dispose()
    evidence = Evidence(arm, studies, read(arm.exposed.server))
    assert evidence.names  # read now: the server is gone when it is needed
    return evidence


def _gather_study(storage: optuna.storages.RDBStorage, held: Round) -> StudyEvidence:
    study = optuna.load_study(study_name=held.config.name, storage=storage)
    logs = [path.read_text(errors="replace") for path in sorted(held.logs.iterdir())]
    epochs = [epoch for log in logs for epoch in _epochs(log)]
    return StudyEvidence(held.config, held.has_ended, study.get_trials(), epochs, logs)


def _epochs(log: str) -> Iterator[tuple[int, int]]:
    for line in log.split("\n"):
        if '"epoch_ended"' in line and line.endswith("}"):  # a killed worker's last may be cut
            event = json.loads(line)
            yield event["trial"], event["epoch"]
