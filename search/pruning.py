"""Whether a trial is to be pruned, and what its pruner notes on the way."""

import copy
from typing import Any, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial


def judge(study: optuna.Study, trial: FrozenTrial) -> tuple[bool, dict[str, Any]]:
    """Tell whether the trial's newest report is a reason to prune it, and the pruner's notes.

    Optuna writes the notes at once, and then judges the same rung no more: a verdict that got lost
    on its way would never come again. Here they are the caller's to write, as system attributes.
    """
    notes: dict[str, Any] = {}
    study = copy.copy(study)
    study._storage = cast(BaseStorage, _Notebook(study._storage, notes))
    return study.pruner.prune(study, trial), notes


class _Notebook:
    """A storage that keeps the notes on the trial which is judged to itself."""

    def __init__(self, storage: BaseStorage, notes: dict[str, Any]) -> None:
        self._storage, self._notes = storage, notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, note: Any) -> None:
        self._notes[key] = note
