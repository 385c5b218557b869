"""Plain Optuna, as its documentation recommends it for workers that may die.

RDBStorage with heartbeats, RetryHeartbeatStaleTrialCallback, MaxTrialsCallback, and checkpoints
named after the first trial of a line of retries, as in Optuna's own example pytorch_checkpoint.py.
What is trained is what ours trains: the same fit(), configurations and pruner.
"""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
import torch
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import Trial, TrialState

from benchmarks.chaos.stage import MAX_ATTEMPTS, RENEW_SECONDS, TTL_SECONDS
from search.config import StudyConfig
from search.home import Home
from search.space import suggest
from search.study import make_pruner
from trainer.cache import WaveformCache, find_cache
from trainer.history import EpochResult
from trainer.loop import Ending, fit

_ENDED_WELL = (TrialState.COMPLETE, TrialState.PRUNED)


def create(url: str, config: StudyConfig, data_fingerprint: str) -> None:
    """Create the study that plain workers join."""
    study = optuna.create_study(storage=_storage(url), study_name=config.name, direction="maximize")
    study.set_user_attr("config", config.model_dump(mode="json"))
    study.set_user_attr("data_fingerprint", data_fingerprint)


def work(url: str, home: Home, name: str, seed: int) -> None:
    """Train trials until the study has its budget."""
    study = optuna.load_study(study_name=name, storage=_storage(url), sampler=make_sampler(seed))
    config = StudyConfig.model_validate(study.user_attrs["config"])
    study.pruner = make_pruner(config)
    root = find_cache(home.cache, study.user_attrs["data_fingerprint"])
    assert root is not None, f"no waveform cache in {home.cache}"
    if len(study.get_trials(deepcopy=False, states=_ENDED_WELL)) >= config.trials:
        return  # the callback below would only see it after one more trial
    objective = Objective(config, WaveformCache.open(root), home)
    enough = MaxTrialsCallback(config.trials, states=_ENDED_WELL)
    study.optimize(objective, callbacks=[enough])


def make_sampler(seed: int) -> optuna.samplers.BaseSampler:
    """Return a worker's sampler; NumPy takes seeds below 2**32 only, and a storm has any."""
    return optuna.samplers.RandomSampler(seed % 2**32)


class Objective:
    """Trains a trial from its checkpoint, reports each epoch, and is pruned."""

    def __init__(self, config: StudyConfig, cache: WaveformCache, home: Home) -> None:
        self._config, self._cache, self._home = config, cache, home

    def __call__(self, trial: Trial) -> float:
        """Return the trial's best epoch's objective."""
        number = first_number(trial)
        name = self._config.objective

        def report(history: Sequence[EpochResult]) -> bool:
            last = history[-1]
            event = {"event": "epoch_ended", "trial": number, "epoch": last.epoch}
            print(json.dumps(event), flush=True)
            trial.report(last.metrics[name], last.epoch)
            return trial.should_prune()

        result = fit(
            suggest(trial, self._config),
            self._cache.split("train"),
            self._cache.split("val"),
            folder=self._home.artifacts.trial_folder(self._config.name, number),
            device=torch.device("cpu"),
            objective=name,
            on_epoch=report,
        )
        if result.ending is Ending.PRUNED:
            raise optuna.TrialPruned
        return max(epoch.metrics[name] for epoch in result.history)


def first_number(trial: Trial) -> int:
    """Return the number of the trial that this one is a retry of, or its own."""
    frozen = trial.study.get_trials(deepcopy=False)[trial.number]
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen)
    return trial.number if first is None else first


def _storage(url: str) -> RDBStorage:
    return RDBStorage(
        url.replace("postgresql:", "postgresql+psycopg2:", 1),
        engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}},
        heartbeat_interval=round(RENEW_SECONDS),
        grace_period=round(TTL_SECONDS),
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(
            max_retry=MAX_ATTEMPTS, inherit_intermediate_values=True
        ),
    )


warnings.simplefilter("ignore", ExperimentalWarning)
if __name__ == "__main__":
    work(sys.argv[1], Home(Path(sys.argv[2])), sys.argv[3], int(sys.argv[4]))
