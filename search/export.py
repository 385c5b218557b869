"""The winner of a study as a file that trains it."""

import errno
from pathlib import Path

from search.claim import trained_config
from search.errors import StudyError
from search.status import best_trial
from search.study import Study
from trainer.recipe import Recipe, write_recipe


def export_best(study: Study, out: Path, number: int | None = None) -> Recipe:
    """Write the best complete trial, or trial `number`, as a recipe file.

    Raises:
        IsADirectoryError: `out` is a folder.
        StudyError: there is no such trial, or none is complete yet.
    """
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder, name a file in it", str(out))
    trials = study.trials()
    if number is None:
        trial = best_trial(study, trials)
    else:
        trial = next((trial for trial in trials if trial.number == number), None)
    if trial is None or trial.value is None:
        wanted = "no trial is complete yet" if number is None else f"trial {number} has no value"
        raise StudyError(f"study {study.name!r}: {wanted}; see `melsearch status {study.name}`")
    recipe = Recipe(
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
    write_recipe(recipe, out)
    return recipe
