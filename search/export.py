"""The winner of a study as a file that trains it."""

import errno
from pathlib import Path

from optuna.trial import FrozenTrial

from search.claim import trained_config
from search.errors import StudyError
from search.status import best_trials
from search.study import Study
from trainer.recipe import Recipe, write_recipes


def export_best(study: Study, out: Path, number: int | None = None, top: int = 1) -> list[Recipe]:
    """Write the best complete trials, or trial `number`, as a recipe file; return the recipes.

    Raises:
        IsADirectoryError: `out` is a folder.
        StudyError: there is no such trial, or not so many are complete yet.
    """
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder, name a file in it", str(out))
    trials = study.trials()
    if number is None:
        chosen = best_trials(study, trials)[:top]
        lack = f"only {len(chosen)} trials are complete" if chosen else "no trial is complete yet"
    else:
        chosen = [x for x in trials if x.number == number and x.value is not None]
        lack = f"trial {number} has no value"
    if len(chosen) < top:
        raise StudyError(f"study {study.name!r}: {lack}; see `melsearch status {study.name}`")
    recipes = [_recipe_of(study, trial) for trial in chosen]
    write_recipes(recipes, out)
    return recipes


def _recipe_of(study: Study, trial: FrozenTrial) -> Recipe:
    return Recipe(
        config=trained_config(study, trial),
        origin={
            "study": study.name,
            "trial": trial.number,
            "objective": study.config.objective,
            "holdout": study.config.holdout,
            "value": trial.value,
            "data_fingerprint": study.data_fingerprint,
            "code_version": trial.user_attrs.get("code_version", study.contract["code_version"]),
        },
    )
