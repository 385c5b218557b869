"""Cross-validation: a recipe's figures on clips that it never saw, group by group."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from trainer.batches import check_sample_rate
from trainer.cache import ClipSet, WaveformCache
from trainer.config import TrainConfig
from trainer.errors import DataError, TrainingDivergedError, TrainingStoppedError
from trainer.folder import Member
from trainer.frontend import build_frontend
from trainer.fusion import build_detector
from trainer.history import EpochResult
from trainer.inference import predict_logits
from trainer.loop import Ending, fit
from trainer.manifest import find_manifest
from trainer.model import to_channels_last
from trainer.prior import prior_log_odds
from trainer.snapshots import load_best

# Shape suffixes: N clips, K classes.

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What the clips got from detectors that never saw them, nor any clip of their groups."""

    clips: ClipSet
    logits_NK: NDArray[np.float64]
    folds_N: NDArray[np.int64]
    """By which fold's detector each clip was scored, from 0."""
    prior_log_odds_N: NDArray[np.float64]
    """That this detector was trained on."""
    num_groups: int
    """0 without groups."""


def cross_validate(
    config: TrainConfig,
    cache: WaveformCache,
    num_folds: int,
    group: str | None,
    *,
    data: Path,
    work: Path,
    device: torch.device,
    progress: Progress = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CrossValidation:
    """Train as many detectors as folds, each on all clips of both splits but its fold's.

    Folds hold about as many of each class. With a `group`, a column of the data's manifest, no
    group lies in two folds. Each detector trains all epochs of the config, and nothing is chosen by
    the clips that it is scored on. `work` keeps the checkpoints, so the same call goes on where it
    was; delete it when the result is kept. The manifest is that of `data`, a folder in the FFDV
    layout.

    Raises:
        DataError: there are too few clips or groups, no such column, or another sample rate.
        TrainingStoppedError: `should_stop` said so.
        TrainingDivergedError: the loss became infinite or nan.
    """
    check_sample_rate(cache, config)
    clips = cache.all_clips()
    groups = None if group is None else _groups_of(data, clips, group)
    folds_N = cut_folds(clips.targets, groups, num_folds, config.seed)
    logits_NK, prior_log_odds_N = np.zeros((len(clips), 2)), np.zeros(len(clips))
    for fold in range(num_folds):

        def on_epoch(history: list[EpochResult], fold: int = fold) -> bool:
            progress(fold * config.epochs + len(history), num_folds * config.epochs)
            return False

        seen = clips.select(np.flatnonzero(folds_N != fold))
        member = _train(config, seen, work / str(fold), device, on_epoch, should_stop)
        held_out = np.flatnonzero(folds_N == fold)
        scored = predict_logits(
            member.model, member.frontend, clips.select(held_out), config, device,
            should_stop=should_stop,
        )  # fmt: skip
        if scored is None:
            raise TrainingStoppedError("stopped while scoring; the same command goes on from there")
        logits_NK[held_out] = scored
        share_of_fakes = float(np.mean(seen.targets == 1))
        prior_log_odds_N[held_out] = prior_log_odds(config, share_of_fakes)
    num_groups = 0 if groups is None else len(set(groups))
    return CrossValidation(clips, logits_NK, folds_N, prior_log_odds_N, num_groups)


def cut_folds(
    targets_N: NDArray[np.int64], groups: list[str] | None, num_folds: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold of each clip, from 0; no group is in two, and each has both classes.

    Raises:
        DataError: that can't be.
    """
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    fewest = min(np.bincount(targets_N, minlength=2))
    if num_folds > fewest:
        raise DataError(f"{num_folds} folds need as many clips of each class, there are {fewest}")
    if groups is not None and num_folds > len(set(groups)):
        raise DataError(f"{num_folds} folds need as many groups, there are {len(set(groups))}")
    folds_N = np.zeros(len(targets_N), np.int64)
    cut = splitter(num_folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(cut.split(targets_N, targets_N, groups)):
        folds_N[held_out] = fold
    for fold in range(num_folds):
        if np.bincount(targets_N[folds_N == fold], minlength=2).min() == 0:
            raise DataError(
                f"{num_folds} folds can't be cut so that each has both classes and no group is in"
                " two; choose fewer folds or another column"
            )
    return folds_N


def _groups_of(data: Path, clips: ClipSet, column: str) -> list[str]:
    """Return each clip's group; a clip of which the manifest says nothing is one by itself."""
    manifest = find_manifest(data)
    if manifest is None:
        raise DataError(f"{data} has no manifest.csv that names the {column} of each clip")
    values = manifest.values(column, clips.names)
    return [value or f"clip {number}" for number, value in enumerate(values)]


def _train(
    config: TrainConfig,
    clips: ClipSet,
    folder: Path,
    device: torch.device,
    on_epoch: Callable[[list[EpochResult]], bool],
    should_stop: Callable[[], bool],
) -> Member:
    """Return the detector after its last epoch."""
    result = fit(
        config, clips, None, folder=folder, device=device, needs_best=True, should_stop=should_stop,
        on_epoch=lambda history: on_epoch(list(history)),
    )  # fmt: skip
    if result.ending is Ending.STOPPED:
        raise TrainingStoppedError("stopped; the same command goes on from there")
    if result.ending is Ending.DIVERGED or result.best is None:
        raise TrainingDivergedError(result.reason)
    frontend = build_frontend(config).to(device)
    model = build_detector(config.model_copy(update={"weights": "none"}), frontend.num_channels)
    model.load_state_dict(load_best(folder, result.best.epoch, result.identity))
    return Member(to_channels_last(model.to(device)), frontend, config)
