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

from trainer.batches import check_sample_rate
from trainer.cache import ClipSet, WaveformCache
from trainer.calibration import cross_calibrate, fit_temperature
from trainer.card import write_card
from trainer.checkpoint import CheckpointError
from trainer.config import TrainConfig
from trainer.errors import TrainerError, TrainingDivergedError, TrainingStoppedError
from trainer.folder import MODEL_FOLDER, write_model_folder
from trainer.frontend import build_frontend
from trainer.fusion import build_detector
from trainer.history import EpochResult
from trainer.inference import predict_logits
from trainer.known_clips import find_known
from trainer.loop import Ending, FitResult, fit
from trainer.measures import require_defined, summarize
from trainer.model import to_channels_last
from trainer.objectives import CALIBRATED, Holdout
from trainer.prior import prior_log_odds
from trainer.recipe import Recipe
from trainer.snapshots import load_best
from trainer.splits import divide

Stage = Literal["train", "all"]
OnEpoch = Callable[[Stage, int, Sequence[EpochResult]], None]
"""Told the stage, the number of the member from 0, and its history."""

# Shape suffixes: N clips, K classes.


@dataclass(frozen=True)
class _Plan:
    """What the stages of a final training share."""

    cache: WaveformCache
    train: ClipSet
    choose: ClipSet
    report: ClipSet
    work: Path
    on: Stage
    device: torch.device
    objective: str
    on_epoch: OnEpoch
    should_stop: Callable[[], bool]


@dataclass(frozen=True)
class _Trained:
    """A member after its training."""

    recipe: Recipe
    weights: dict[str, Tensor]
    logits_NK: NDArray[np.float64]
    """Of the clips that are reported on, by the weights that never saw them."""
    facts: dict[str, Any]


def train_final(
    recipes: Sequence[Recipe],
    cache: WaveformCache,
    out: Path,
    *,
    on: Stage = "train",
    device: torch.device,
    work: Path | None = None,
    objective: str = "accuracy",
    holdout: Holdout = "none",
    on_epoch: OnEpoch = lambda stage, member, history: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train each recipe's detector, calibrate them, write their model folder; return its metrics.

    Of several recipes the logits are averaged, and that average is calibrated. The training split
    trains. Of the validation split one half picks the epochs, the other fits the temperature and is
    reported on; with `holdout="none"` all of it does all of that. With `on="all"` a second training
    then runs on both splits, for as many epochs as were best, under the same schedule; its
    temperature and its metrics are the first one's.

    `work` keeps the checkpoints, by default beside `out`: interrupted, the same call goes on where
    it was. It is deleted at the end.

    Raises:
        ModelError: `out` holds something else, or a backbone or its weights can't be had.
        DataError: the cache does not fit a config, or its validation clips the objective.
        TrainingStoppedError: `should_stop` said so.
        TrainingDivergedError: the loss became infinite or nan.
    """
    out = out.absolute()
    MODEL_FOLDER.check(out)
    for recipe in recipes:
        check_sample_rate(cache, recipe.config)
    work = work or out.with_name(f".{out.name}.training")
    plan = _Plan(
        cache, cache.split("train"), *divide(cache.split("val"), holdout), work, on, device,
        objective, on_epoch, should_stop,
    )  # fmt: skip
    require_defined(objective, plan.choose.targets)
    members = [_train_member(plan, recipe, number) for number, recipe in enumerate(recipes)]
    metrics = _measure(plan, members)
    known = find_known(cache, plan.choose, plan.report, is_all=on == "all")
    trained = [(member.recipe, member.weights) for member in members]
    write_model_folder(out, trained, metrics, write_card(recipes, metrics), known)
    shutil.rmtree(work, ignore_errors=True)
    return metrics


def _train_member(plan: _Plan, recipe: Recipe, member: int) -> _Trained:
    """Train one recipe in as many stages as the plan has, and score the clips of the report."""
    config = recipe.config
    chosen = _fit_stage(plan, config, "train", member, config.epochs)
    assert chosen.best is not None
    weights = _read_weights(_folder(plan, "train", member), chosen)
    logits_NK = _score_validation(plan, config, weights)
    facts = {
        "epochs": len(chosen.history),
        "best_epoch": chosen.best.epoch,
        "num_parameters": chosen.num_parameters,
    }
    if plan.on == "all":
        facts["epochs"] = chosen.best.epoch
        again = _fit_stage(plan, config, "all", member, chosen.best.epoch)
        weights = _read_weights(_folder(plan, "all", member), again)
    return _Trained(recipe, weights, logits_NK, facts)


def _folder(plan: _Plan, stage: Stage, member: int) -> Path:
    return plan.work / stage / str(member)


def _fit_stage(
    plan: _Plan, config: TrainConfig, stage: Stage, member: int, num_epochs: int
) -> FitResult:
    """Train on the stage's clips until `num_epochs` have passed."""

    def finish_epoch(history: Sequence[EpochResult]) -> bool:
        plan.on_epoch(stage, member, history)
        return len(history) >= num_epochs

    already: list[EpochResult] = []
    is_all = stage == "all"
    result = fit(
        config,
        plan.cache.all_clips() if is_all else plan.train,
        None if is_all else plan.choose,
        folder=_folder(plan, stage, member),
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


def _measure(plan: _Plan, members: Sequence[_Trained]) -> dict[str, Any]:
    """Return all that metrics.json says of them together, and of each."""
    logits_NK = np.mean([member.logits_NK for member in members], axis=0)
    targets_N = plan.report.targets
    temperature = fit_temperature(logits_NK, targets_N)
    is_apart = plan.report is not plan.choose and np.bincount(targets_N).min() > 1
    calibrated_NK = cross_calibrate(logits_NK, targets_N) if is_apart else logits_NK / temperature
    share = float(np.mean(plan.train.targets == 1))  # of the training whose figures these are
    priors = [prior_log_odds(member.recipe.config, share) for member in members]
    prior = float(np.mean(priors))
    before, after = (summarize(x, targets_N, prior) for x in (logits_NK, calibrated_NK))
    metrics = {
        "on": plan.on,
        "objective": plan.objective,
        "data_fingerprint": plan.cache.data_fingerprint,
        "validation": before,
        "calibration": {
            "temperature": temperature,
            "measured": "on clips that it was not fitted on" if is_apart else "on the same clips",
            "before": {key: before[key] for key in CALIBRATED},
            "after": {key: after[key] for key in CALIBRATED},
        },
        "prior": _share_of_fakes(plan),
        "num_clips": {
            "train": len(plan.train),
            "val": len(plan.cache.split("val")),
            "reported": len(plan.report),
        },
    }
    if len(members) == 1:
        return metrics | members[0].facts
    each = [
        {"backbone": " + ".join(x.recipe.config.backbones.values()), "seed": x.recipe.config.seed}
        | x.facts
        | {"validation": summarize(x.logits_NK, targets_N, own_prior)}
        for x, own_prior in zip(members, priors, strict=True)
    ]
    num_parameters = sum(member.facts["num_parameters"] for member in members)
    return metrics | {"num_parameters": num_parameters, "members": each}


def _score_validation(
    plan: _Plan, config: TrainConfig, weights: dict[str, Tensor]
) -> NDArray[np.float64]:
    device = plan.device
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


def _share_of_fakes(plan: _Plan) -> float:
    """Return the prior: what part of the clips that were trained on is fake."""
    targets_N = plan.cache.all_clips().targets if plan.on == "all" else plan.train.targets
    return float(np.mean(targets_N == 1))
