"""The same trainings in calm weather: what the storm's reports are compared with."""

import multiprocessing
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from optuna.trial import FrozenTrial, TrialState

from benchmarks.chaos.evidence import Evidence, StudyEvidence
from trainer.cache import WaveformCache
from trainer.config import TrainConfig
from trainer.loop import fit

_PROCESSES = 2
Found = tuple[StudyEvidence, FrozenTrial]


def compare(all_evidence: list[Evidence], cache: Path, seed: int, most: int) -> list[list[str]]:
    """Train up to `most` trials of each arm that ended well again; return what differs in each."""
    samples = [_sample(evidence, seed, most) for evidence in all_evidence]
    # Forked, as torch is loaded here and has computed nothing yet: loading takes longer than a fit.
    with ProcessPoolExecutor(_PROCESSES, multiprocessing.get_context("fork")) as pool:
        calms = [
            pool.map(
                train_calmly,
                [study.trained(trial) for study, trial in sample],
                [max(trial.intermediate_values, default=1) for _, trial in sample],
                [study.config.objective for study, _ in sample],
                [cache] * len(sample),
            )
            for sample in samples
        ]
        return [
            [
                line
                for found, calm in zip(sample, calm_reports, strict=True)
                for line in _differences(found, calm)
            ]
            for sample, calm_reports in zip(samples, calms, strict=True)
        ]


def _sample(evidence: Evidence, seed: int, most: int) -> list[Found]:
    found = [(study, trial) for study in evidence.studies for trial in study.ended_well]
    return random.Random(seed).sample(found, min(most, len(found)))


def train_calmly(config: TrainConfig, num_epochs: int, objective: str, cache: Path) -> list[float]:
    """Return the objective after each of the first epochs. Runs in a process of its own."""
    torch.set_num_threads(1)
    clips = WaveformCache.open(cache)
    with tempfile.TemporaryDirectory(prefix="melsearch-calm-") as folder:
        result = fit(
            config,
            clips.split("train"),
            clips.split("val"),
            folder=Path(folder),
            device=torch.device("cpu"),
            objective=objective,
            on_epoch=lambda history: len(history) >= num_epochs,
        )
    return [epoch.metrics[objective] for epoch in result.history]


def _differences(found: Found, calm: list[float]) -> Iterator[str]:
    study, trial = found
    name = f"{study.config.name}: trial {trial.number}"
    for epoch, value in sorted(trial.intermediate_values.items()):
        if value != calm[epoch - 1]:
            yield f"{name}, epoch {epoch}: reported {value!r}, calm {calm[epoch - 1]!r}"
            break  # all later ones differ, too
    if trial.state == TrialState.COMPLETE and trial.value != max(calm):
        yield f"{name}: told {trial.value!r}, calm {max(calm)!r}"
