"""The model folder: what a final training leaves and a prediction reads."""

import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trainer.config import TrainConfig
from trainer.device import prepare_device
from trainer.errors import ModelError, RecipeError
from trainer.frontend import Frontend, build_frontend
from trainer.model import Detector, build_model, to_channels_last
from trainer.recipe import Recipe, read_recipe, write_recipe

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
MODEL_FILES = (MODEL_FILE, CONFIG_FILE, METRICS_FILE)


@dataclass(frozen=True)
class LoadedDetector:
    """A trained detector, ready to score clips."""

    model: Detector
    frontend: Frontend
    config: TrainConfig
    temperature: float
    prior: float
    """The share of fakes in its training clips."""


def check_target(out: Path) -> None:
    """Refuse a place for a model folder where something else would be overwritten.

    Raises:
        ModelError: it is a file, a mount point, or a folder with more in it than a model.
    """
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ModelError(f"the model folder {out} is a file; name a new folder")
    if os.path.ismount(out):
        raise ModelError(
            f"the model folder {out} is a mount point, which can't be replaced; name a folder"
            f" below it, such as {out / 'model'}"
        )
    found = {path.name for path in out.iterdir()}
    foreign = sorted(found - {*MODEL_FILES, CARD_FILE})
    if foreign or (found and MODEL_FILE not in found):
        raise ModelError(
            f"the folder {out} holds {', '.join((foreign or sorted(found))[:3])}, which would be"
            " lost; name a new folder, or an older model's"
        )


def write_model_folder(
    out: Path, weights: dict[str, Tensor], recipe: Recipe, metrics: dict[str, Any], card: str
) -> None:
    """Write the model folder beside its place and move it there; an older model is replaced.

    Raises:
        ModelError: the place is taken by something else, or can't be written.
    """
    check_target(out)
    out = out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
            fresh = Path(place) / "model"
            fresh.mkdir()
            save_checkpoint(fresh / MODEL_FILE, weights, {"backbone": recipe.config.backbone})
            write_recipe(recipe, fresh / CONFIG_FILE)
            text = json.dumps(_without_nan(metrics), indent=2, ensure_ascii=False)
            (fresh / METRICS_FILE).write_text(text + "\n", encoding="utf-8")
            (fresh / CARD_FILE).write_text(card, encoding="utf-8")
            _put_in_place(fresh, out, Path(place) / "replaced")
    except (OSError, shutil.Error) as error:
        raise ModelError(f"can't write the model folder {out}: {error}") from error


def _put_in_place(fresh: Path, out: Path, replaced: Path) -> None:
    """Move the fresh folder to `out`, and what was there to `replaced`; back if that fails."""
    if out.exists():
        out.rename(replaced)
    try:
        fresh.rename(out)
    except OSError:
        if replaced.exists():
            replaced.rename(out)
        raise


def load_detector(model_dir: Path, device: torch.device) -> LoadedDetector:
    """Return the model folder's detector on the device, in evaluation mode.

    Raises:
        ModelError: names the file that is missing or damaged.
    """
    prepare_device(device)
    _require_files(model_dir)
    config = _read_config(model_dir / CONFIG_FILE)
    temperature, prior = _read_calibration(model_dir / METRICS_FILE)
    frontend = build_frontend(config)
    model = build_model(config.model_copy(update={"weights": "none"}), frontend.num_channels)
    _fill_weights(model, model_dir / MODEL_FILE)
    model = to_channels_last(model.to(device)).eval()
    return LoadedDetector(model, frontend.to(device), config, temperature, prior)


def _require_files(model_dir: Path) -> None:
    if not model_dir.is_dir():
        raise ModelError(f"no such model folder: {model_dir}; `melsearch train` makes one")
    missing = [name for name in MODEL_FILES if not (model_dir / name).is_file()]
    if missing:
        raise ModelError(
            f"the model folder {model_dir} lacks {', '.join(missing)}; copy it again as a whole, or"
            " train again"
        )


def _read_config(path: Path) -> TrainConfig:
    try:
        return read_recipe(path).config
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


def _fill_weights(model: Detector, path: Path) -> None:
    try:
        weights, _ = load_checkpoint(path)
        model.load_state_dict(weights)
    except (CheckpointError, OSError) as error:
        raise ModelError(f"the model's {path} can't be read: {error}") from error
    except RuntimeError as error:
        raise ModelError(
            f"the model's {path} does not fit its {CONFIG_FILE}; the files are of two models:"
            f" {str(error).partition(':')[0]}"
        ) from error


def _without_nan(value: Any) -> Any:
    """Return the value with null for nan, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
