"""The final training: from a recipe to a calibrated model folder."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.cache import ClipSet, WaveformCache
from trainer.calibration import cross_calibrate, fit_temperature
from trainer.card import write_card
from trainer.checkpoint import CheckpointError
from trainer.config import TrainConfig
from trainer.errors import DataError, TrainerError, TrainingDivergedError, TrainingStoppedError
from trainer.folder import MODEL_FOLDER, write_model_folder
from trainer.frontend import build_frontend
from trainer.fusion import build_detector
from trainer.history import EpochResult
from trainer.inference import predict_logits
from trainer.loop import Ending, FitResult, fit
from trainer.measures import summarize
from trainer.model import to_channels_last
from trainer.objectives import Holdout
from trainer.recipe import Recipe
from trainer.snapshots import load_best
from trainer.splits import divide

Stage = Literal["train", "all"]
OnEpoch = Callable[[Stage, Sequence[EpochResult]], None]
CALIBRATION_METRICS = ("nll", "cllr", "ece")

# Shape suffixes: N clips, K classes.


@dataclass(frozen=True)
class _Plan:
    """What the stages of a final training share."""

    config: TrainConfig
    cache: WaveformCache
    train: ClipSet
    choose: ClipSet
    report: ClipSet
    work: Path
    device: torch.device
    objective: str
    on_epoch: OnEpoch
    should_stop: Callable[[], bool]


def train_final(
    config: TrainConfig,
    cache: WaveformCache,
    out: Path,
    *,
    on: Stage = "train",
    origin: dict[str, Any] | None = None,
    device: torch.device,
    work: Path | None = None,
    objective: str = "accuracy",
    holdout: Holdout = "none",
    on_epoch: OnEpoch = lambda stage, history: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train the config's detector, calibrate it, write its model folder; return its metrics.

    The training split trains. Of the validation split one half picks the epoch, the other fits the
    temperature and is reported on; with `holdout="none"` all of it does all of that. With
    `on="all"` a second training then runs on both splits, for as many epochs as were best, under
    the same schedule; its temperature and its metrics are the first one's.

    `work` keeps the checkpoints, by default beside `out`: interrupted, the same call goes on where
    it was. It is deleted at the end. `on_epoch` gets the stage and its history after each epoch.

    Raises:
        ModelError: `out` holds something else, or the backbone or its weights can't be had.
        DataError: the cache does not fit the config.
        TrainingStoppedError: `should_stop` said so.
        TrainingDivergedError: the loss became infinite or nan.
    """
    out = out.absolute()
    MODEL_FOLDER.check(out)
    _check_cache(config, cache)
    work = work or out.with_name(f".{out.name}.training")
    plan = _Plan(
        config, cache, cache.split("train"), *divide(cache.split("val"), holdout), work, device,
        objective, on_epoch, should_stop,
    )  # fmt: skip
    chosen = _fit_stage(plan, "train", config.epochs)
    weights, metrics = _measure(plan, chosen)
    if on == "all":
        best_epoch = metrics["best_epoch"]
        weights = _read_weights(plan.work / "all", _fit_stage(plan, "all", best_epoch))
        metrics |= {"on": "all", "epochs": best_epoch, "prior": _share_of_fakes(plan, "all")}
    recipe = Recipe(config, origin or {})
    write_model_folder(out, weights, recipe, metrics, write_card(recipe, metrics))
    shutil.rmtree(work, ignore_errors=True)
    return metrics


def _check_cache(config: TrainConfig, cache: WaveformCache) -> None:
    if cache.sample_rate != config.sample_rate:
        raise DataError(
            f"sample_rate must be the waveform cache's, {cache.sample_rate} Hz, got"
            f" {config.sample_rate}; prepare the data at {config.sample_rate} Hz"
        )


def _fit_stage(plan: _Plan, stage: Stage, num_epochs: int) -> FitResult:
    """Train on the stage's clips until `num_epochs` have passed."""

    def finish_epoch(history: Sequence[EpochResult]) -> bool:
        plan.on_epoch(stage, history)
        return len(history) >= num_epochs

    already: list[EpochResult] = []
    is_all = stage == "all"
    result = fit(
        plan.config,
        plan.cache.all_clips() if is_all else plan.train,
        None if is_all else plan.choose,
        folder=plan.work / stage,
        device=plan.device,
        objective=plan.objective,
        on_start=already.extend,
        on_epoch=finish_epoch,
        should_stop=lambda: plan.should_stop() or len(already) >= num_epochs,
        needs_best=True,
    )
    if result.ending is Ending.DIVERGED:
        raise TrainingDivergedError(result.reason)
    if result.ending is Ending.STOPPED and len(result.history) < num_epochs:
        raise TrainingStoppedError(
            f"the training was stopped in epoch {len(result.history) + 1} of {num_epochs}; the same"
            " command goes on from there"
        )
    return result


def _measure(plan: _Plan, chosen: FitResult) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the best epoch's weights, and all that metrics.json says of them."""
    weights = _read_weights(plan.work / "train", chosen)
    logits_NK = _score_validation(plan, weights)
    targets_N = plan.report.targets
    temperature = fit_temperature(logits_NK, targets_N)
    is_apart = plan.report is not plan.choose and np.bincount(targets_N).min() > 1
    calibrated_NK = cross_calibrate(logits_NK, targets_N) if is_apart else logits_NK / temperature
    before, after = summarize(logits_NK, targets_N), summarize(calibrated_NK, targets_N)
    assert chosen.best is not None
    return weights, {
        "on": "train",
        "epochs": len(chosen.history),
        "best_epoch": chosen.best.epoch,
        "objective": plan.objective,
        "validation": before,
        "calibration": {
            "temperature": temperature,
            "measured": "on clips that it was not fitted on" if is_apart else "on the same clips",
            "before": {key: before[key] for key in CALIBRATION_METRICS},
            "after": {key: after[key] for key in CALIBRATION_METRICS},
        },
        "prior": _share_of_fakes(plan, "train"),
        "num_clips": {
            "train": len(plan.train),
            "val": len(plan.cache.split("val")),
            "reported": len(plan.report),
        },
        "num_parameters": chosen.num_parameters,
    }


def _score_validation(plan: _Plan, weights: dict[str, Tensor]) -> NDArray[np.float64]:
    config, device = plan.config, plan.device
    frontend = build_frontend(config).to(device)
    model = build_detector(config.model_copy(update={"weights": "none"}), frontend.num_channels)
    model.load_state_dict(weights)
    model = to_channels_last(model.to(device))
    logits_NK = predict_logits(
        model, frontend, plan.report, config, device, should_stop=plan.should_stop
    )
    if logits_NK is None:
        raise TrainingStoppedError("stopped while calibrating; the same command goes on from there")
    return logits_NK


def _read_weights(folder: Path, result: FitResult) -> dict[str, Tensor]:
    """Return the weights of the training's best epoch, never those of another one."""
    assert result.best is not None
    try:
        return load_best(folder, result.best.epoch, result.identity)
    except (OSError, CheckpointError) as error:
        raise TrainerError(
            f"the trained weights in {folder} can't be had, was there no space left? Free some and"
            f" give the same command again: {error}"
        ) from error


def _share_of_fakes(plan: _Plan, on: Stage) -> float:
    """Return the prior: what part of the clips that were trained on is fake."""
    targets_N = plan.train.targets
    if on == "all":
        targets_N = plan.cache.all_clips().targets
    return float(np.mean(targets_N == 1))
