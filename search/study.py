"""Create and open a study: its frozen contract, budget, sampler, pruner and baseline."""

import json
import logging
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from search.config import StudyConfig
from search.errors import ContractError, StudyError
from search.space import baseline_params, contract, diff_contract, without_new_defaults
from search.version import check_versions, code_version, diff_versions, versions
from storage.database import Database
from storage.trials import DurableStorage
from trainer.objectives import sign_of

logger = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)

_CONFIG, _CONTRACT, _BUDGET = "melsearch:config", "melsearch:contract", "melsearch:budget"
_MAY_CHANGE = ("trials", "max_failed_trials", "lease")
BASELINE = "baseline"
"""The user attribute that marks the baseline's trial."""


@dataclass(frozen=True)
class Study:
    """A study in a database: what it was frozen with, and Optuna's view of its trials."""

    config: StudyConfig
    contract: dict[str, Any]
    database: Database
    optuna: optuna.Study

    @property
    def name(self) -> str:
        """The study's name, unique in its database."""
        return self.config.name

    @property
    def data_fingerprint(self) -> str:
        """What the data were when the study was created."""
        return str(self.contract["data_fingerprint"])

    def budget(self) -> int:
        """Read how many trials shall end COMPLETE or PRUNED; it may have grown since."""
        return int(self.optuna.user_attrs[_BUDGET])

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Read the study's trials in those states (all, if none is named), by number."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)


def freeze(config: StudyConfig, data_fingerprint: str) -> dict[str, Any]:
    """Return all that fixes a study's results, as it is kept in the database."""
    frozen = contract(config) | {"data_fingerprint": data_fingerprint} | versions()
    return dict(json.loads(json.dumps(frozen)))


def create_study(
    database: Database, config: StudyConfig, data_fingerprint: str, *, allow_mismatch: bool = False
) -> Study:
    """Freeze a study in the database and enqueue its baseline; idempotent.

    A study of that name with the same contract is opened, and its budget raised if the new one is
    larger. Any number of processes may call this at the same time. A contract is never rewritten,
    not even where other versions are allowed.

    Raises:
        ContractError: a study of that name has another contract, or a larger budget.
        DatabaseUnavailableError
    """
    frozen = freeze(config, data_fingerprint)
    storage = DurableStorage(database)
    return database.repeat(lambda: _create(database, storage, config, frozen, allow_mismatch))


def _create(
    database: Database,
    storage: DurableStorage,
    config: StudyConfig,
    frozen: dict[str, Any],
    allow_mismatch: bool,
) -> Study:
    with database.locked(f"melsearch:create:{config.name}"):
        # By load_if_exists the server would log an error; nobody else creates it meanwhile.
        is_new = config.name not in optuna.get_all_study_names(storage)
        create = partial(optuna.create_study, direction=direction(config))
        make = create if is_new else optuna.load_study
        study = make(storage=storage, study_name=config.name)
        attributes = study.user_attrs
        values = config.model_dump(mode="json")
        if _CONTRACT in attributes:
            _refuse_another(config, attributes, frozen, allow_mismatch)
            frozen = attributes[_CONTRACT]
            # Workers of the version that froze it must still be able to read the rest.
            values = attributes[_CONFIG] | {key: values[key] for key in _MAY_CHANGE}
        elif _is_fresh(study, config):
            study.enqueue_trial(baseline_params(config), user_attrs={BASELINE: True})
        study.set_user_attr(_CONFIG, values)
        study.set_user_attr(_BUDGET, config.trials)
        study.set_user_attr(_CONTRACT, frozen)  # last: it says that the study is whole
        return _open(database, study)


def open_study(database: Database, name: str) -> Study:
    """Open a study that was created before.

    Raises:
        StudyError: there is none of that name, or its creation was cut off.
        DatabaseUnavailableError
    """
    storage = DurableStorage(database)
    return database.repeat(lambda: _load(database, storage, name))


def _load(database: Database, storage: DurableStorage, name: str) -> Study:
    with database.connection():
        names = optuna.get_all_study_names(storage)
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise StudyError(
                f"no study is called {name!r}; there are: {known}; make one with `melsearch create`"
            )
        study = optuna.load_study(storage=storage, study_name=name)
        if _CONTRACT not in study.user_attrs:
            raise StudyError(f"study {name!r} was not created to its end: create it again")
        return _open(database, study)


def study_exists(database: Database, name: str) -> bool:
    """Tell whether a study of that name was created to its end."""
    try:
        open_study(database, name)
    except StudyError:
        return False
    return True


def make_sampler(config: StudyConfig, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler that proposes trial `number`.

    Each trial has a seed of its own, so that workers that start together don't all propose the
    same, and so that what one worker alone proposes can be reproduced.
    """
    seed = (config.seed * 1_000_003 + number) % 2**32
    if config.sampler.name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # Optuna calls multivariate and group experimental; conditional parameters need them.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=config.sampler.startup_trials,
            multivariate=True,
            group=True,
            constant_liar=True,  # keeps away from what other workers try just now
            seed=seed,
        )


def make_pruner(config: StudyConfig) -> optuna.pruners.BasePruner:
    """Return the pruner; its resource is the epoch, counted from 1."""
    pruner = config.pruner
    match pruner.name:
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=pruner.min_epochs, reduction_factor=pruner.reduction
            )
        case "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=pruner.min_epochs,
                max_resource=max(config.max_epochs, pruner.min_epochs),
                reduction_factor=pruner.reduction,
            )
        case "median":
            return optuna.pruners.MedianPruner(
                n_startup_trials=pruner.startup_trials, n_warmup_steps=pruner.min_epochs
            )
        case "none":
            return optuna.pruners.NopPruner()


def _open(database: Database, study: optuna.Study) -> Study:
    attributes = study.user_attrs
    try:
        # Studies from before there was a holdout have none.
        config = StudyConfig.model_validate({"holdout": "none", **attributes[_CONFIG]})
    except ValidationError as error:
        frozen = attributes[_CONTRACT].get("code_version")
        raise ContractError(
            f"study {study.study_name!r} was frozen by version {frozen}, whose study files this "
            f"one, {code_version()}, can't read: {error.errors()[0]['msg']}"
        ) from error
    study.pruner = make_pruner(config)
    return Study(config, attributes[_CONTRACT], database, study)


def direction(config: StudyConfig) -> Literal["maximize", "minimize"]:
    """Return Optuna's word for the way in which the study's objective is better."""
    return "maximize" if sign_of(config.objective) > 0 else "minimize"


def _is_fresh(study: optuna.Study, config: StudyConfig) -> bool:
    """Tell whether the baseline is still to be enqueued.

    Raises:
        StudyError: Optuna's study of that name is not one of ours.
    """
    trials = study.get_trials(deepcopy=False)
    is_ours = all(trial.user_attrs.get(BASELINE) for trial in trials)
    if not is_ours or study.direction.name.lower() != direction(config):
        raise StudyError(
            f"the database has a study {study.study_name!r} that melsearch did not create; "
            "give yours another name"
        )
    return not trials


def _refuse_another(
    config: StudyConfig,
    attributes: dict[str, Any],
    frozen: dict[str, Any],
    allow_mismatch: bool,
) -> None:
    old = attributes[_CONTRACT]
    here = frozen | {key: old.get(key) for key in versions()}
    # A setting that the study's version didn't know is a matter of versions, judged below.
    differences = diff_contract(old, without_new_defaults(here, old))
    if config.trials < attributes[_BUDGET]:
        differences.append(
            f"trials: study {attributes[_BUDGET]}, here {config.trials} (a budget only grows)"
        )
    if differences:
        others = [] if allow_mismatch else diff_versions(old)
        head = f"study {config.name!r} was frozen with another contract:"
        raise ContractError(
            "\n  ".join([head, *differences, *others])
            + "\ngive the study another name, or go back to what it was frozen with"
        )
    check_versions(config.name, old, allow_mismatch)
