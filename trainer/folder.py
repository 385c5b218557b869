"""The model folder: what a final training leaves and a prediction reads."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trainer.config import TrainConfig
from trainer.device import prepare_device
from trainer.errors import ModelError, RecipeError
from trainer.frontend import Frontend, build_frontend
from trainer.fusion import AnyDetector, build_detector
from trainer.known_clips import CLIPS_FILE, KnownClips
from trainer.model import to_channels_last
from trainer.out_folder import OutFolder
from trainer.prior import prior_log_odds
from trainer.recipe import Recipe, read_recipes, write_recipes

CPU = torch.device("cpu")
MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
MODEL_FILES = (MODEL_FILE, CONFIG_FILE, METRICS_FILE)
MODEL_FOLDER = OutFolder(
    "model",
    frozenset({*MODEL_FILES, CARD_FILE, CLIPS_FILE}),
    frozenset({MODEL_FILE}),
    ModelError,
)


@dataclass(frozen=True)
class Member:
    """One trained model: all of a detector, or one of those whose logits it averages."""

    model: AnyDetector
    frontend: Frontend
    config: TrainConfig


@dataclass(frozen=True)
class LoadedDetector:
    """A trained detector, ready to score clips."""

    members: tuple[Member, ...]
    device: torch.device
    temperature: float
    prior: float
    """The share of fakes in its training clips."""

    @property
    def prior_log_odds(self) -> float:
        """Return the log-odds of fake that its trainings drew, averaged as its logits are."""
        return float(np.mean([prior_log_odds(x.config, self.prior) for x in self.members]))


def write_model_folder(
    out: Path,
    members: Sequence[tuple[Recipe, dict[str, Tensor]]],
    metrics: dict[str, Any],
    card: str,
    known: KnownClips | None = None,
) -> None:
    """Write the model folder beside its place and move it there; an older model is replaced.

    Raises:
        ModelError: the place is taken by something else, or can't be written.
    """
    with MODEL_FOLDER.writing(out) as fresh:
        weights = {
            _prefix(number, len(members)) + name: tensor
            for number, (_, tensors) in enumerate(members, 1)
            for name, tensor in tensors.items()
        }
        backbones = [x for recipe, _ in members for x in recipe.config.backbones.values()]
        save_checkpoint(fresh / MODEL_FILE, weights, {"backbone": ", ".join(backbones)})
        write_recipes([recipe for recipe, _ in members], fresh / CONFIG_FILE)
        text = json.dumps(without_nan(metrics), indent=2, ensure_ascii=False)
        (fresh / METRICS_FILE).write_text(text + "\n", encoding="utf-8")
        (fresh / CARD_FILE).write_text(card, encoding="utf-8")
        if known is not None:
            (fresh / CLIPS_FILE).write_text(known.model_dump_json(indent=1) + "\n")


def load_detector(model_dir: Path, device: torch.device = CPU) -> LoadedDetector:
    """Return the model folder's detector on the device, in evaluation mode.

    Raises:
        ModelError: names the file that is missing or damaged.
    """
    prepare_device(device)
    _require_files(model_dir)
    configs = _read_configs(model_dir / CONFIG_FILE)
    temperature, prior = _read_calibration(model_dir / METRICS_FILE)
    weights = _read_weights(model_dir / MODEL_FILE)
    members = tuple(
        _load_member(config, weights, _prefix(number, len(configs)), device, model_dir)
        for number, config in enumerate(configs, 1)
    )
    return LoadedDetector(members, device, temperature, prior)


def _prefix(number: int, num_members: int) -> str:
    """Return what the names of a member's tensors begin with: nothing if there is only one."""
    return f"{number}/" if num_members > 1 else ""


def _load_member(
    config: TrainConfig,
    weights: dict[str, Tensor],
    prefix: str,
    device: torch.device,
    model_dir: Path,
) -> Member:
    frontend = build_frontend(config)
    model = build_detector(config.model_copy(update={"weights": "none"}), frontend.num_channels)
    own = {k.removeprefix(prefix): x for k, x in weights.items() if k.startswith(prefix)}
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise ModelError(
            f"the model's {model_dir / MODEL_FILE} does not fit its {CONFIG_FILE}; the files are of"
            " two models, or of another version; copy the folder again as a whole, or train again:"
            f" {str(error).partition(':')[0]}"
        ) from error
    return Member(to_channels_last(model.to(device)).eval(), frontend.to(device), config)


def _require_files(model_dir: Path) -> None:
    if not model_dir.is_dir():
        raise ModelError(f"no such model folder: {model_dir}; `melsearch train` makes one")
    missing = [name for name in MODEL_FILES if not (model_dir / name).is_file()]
    if missing:
        raise ModelError(
            f"the model folder {model_dir} lacks {', '.join(missing)}; copy it again as a whole, or"
            " train again"
        )


def _read_configs(path: Path) -> list[TrainConfig]:
    try:
        return [recipe.config for recipe in read_recipes(path)]
    except RecipeError as error:
        raise ModelError(f"the model's {path} is damaged: {error}") from error


def _read_calibration(path: Path) -> tuple[float, float]:
    """Return the temperature and the prior."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        temperature = float(metrics["calibration"]["temperature"])
        prior = float(metrics["prior"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the model's {path} must hold calibration.temperature and prior, and it is damaged:"
            f" {error}"
        ) from error
    if not (temperature > 0 and math.isfinite(temperature) and 0 <= prior <= 1):
        raise ModelError(
            f"the model's {path} is damaged: temperature must be above 0 and prior in [0, 1], got"
            f" {temperature} and {prior}"
        )
    return temperature, prior


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_checkpoint(path)[0]
    except (CheckpointError, OSError) as error:
        raise ModelError(f"the model's {path} can't be read: {error}") from error


def without_nan(value: Any) -> Any:
    """Return the value with null for nan, which JSON lacks."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
