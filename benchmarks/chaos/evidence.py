"""What an arm has left behind: its trials, the server's audit, the workers' logs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from benchmarks.chaos.arm import Arm, Round
from benchmarks.chaos.audit import Change, read
from search.config import StudyConfig
from search.space import config_from_params
from search.study import BASELINE
from storage.database import Database, parse_url
from storage.trials import DurableStorage
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
    names: dict[int, tuple[str, int]]
    """Of each trial that there ever was, by its id: its study and its number there."""

    def of(self, *sources: str) -> Iterator[Change]:
        """Yield the changes of these tables, in their order."""
        return (change for change in self.changes if change.source in sources)


def gather(arm: Arm) -> Evidence:
    """Read everything while the arm's server still runs."""
    database = Database(parse_url(arm.exposed.server.url, {}))
    storage = DurableStorage(database)
    studies = [_gather_study(storage, held) for held in arm.rounds]
    database.close()
    changes = read(arm.exposed.server)
    return Evidence(arm, studies, changes, _names(arm, changes))


def _names(arm: Arm, changes: list[Change]) -> dict[int, tuple[str, int]]:
    studies = dict(arm.exposed.server.query("select study_id, study_name from studies"))
    rows = [change.row for change in changes if change.source == "trials"]
    return {row["trial_id"]: (studies[row["study_id"]], row["number"]) for row in rows}


def _gather_study(storage: optuna.storages.RDBStorage, held: Round) -> StudyEvidence:
    study = optuna.load_study(study_name=held.config.name, storage=storage)
    logs = [path.read_text(errors="replace") for path in sorted(held.logs.iterdir())]
    epochs = [epoch for log in logs for epoch in _epochs(log)]
    return StudyEvidence(held.config, held.has_ended, study.get_trials(), epochs, logs)


def _epochs(log: str) -> Iterator[tuple[int, int]]:
    for line in log.split("\n")[:-1]:  # a killed worker's last may be cut
        if line.startswith("{") and '"epoch_ended"' in line:
            event = json.loads(line)
            yield event["trial"], event["epoch"]
