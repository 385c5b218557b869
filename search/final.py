"""From a recipe to the final model: finds the data that the recipe's study was made with."""

from pathlib import Path
from typing import Any, cast, get_args

from search.errors import ContractError
from search.home import Home
from search.prepare import prepare_data
from search.progress import show_progress
from search.signals import stop_on_signals
from trainer.cache import WaveformCache, find_cache
from trainer.device import choose_device
from trainer.errors import RecipeError
from trainer.final import Stage, train_final
from trainer.folder import MODEL_FOLDER
from trainer.model import is_backbone, nearest_backbones
from trainer.objectives import Holdout
from trainer.recipe import Recipe


def train_from_recipe(
    recipe: Recipe, out: Path, data: Path | None, on: Stage, device: str, home: Home
) -> dict[str, Any]:
    """Train the final model of a recipe and return its figures.

    Raises:
        RecipeError: it names a backbone that timm lacks, or an unknown holdout.
        ContractError: the data are not here.
        DataError, ModelError
        TrainingStoppedError: by SIGINT or SIGTERM; the same call goes on.
    """
    for name in (recipe.config.backbone, recipe.config.video_backbone):
        _require_backbone(name)
    chosen = choose_device(device)
    MODEL_FOLDER.check(out)
    cache = _open_cache(recipe, data, home)
    config = recipe.config
    stop = stop_on_signals()  # not before: Ctrl-C ends the decoding at once
    with show_progress("train") as progress:
        return train_final(
            config,
            cache,
            out,
            on=on,
            origin=recipe.origin,
            device=chosen,
            objective=str(recipe.origin.get("objective", "accuracy")),
            holdout=_holdout_of(recipe),
            on_epoch=lambda stage, history: progress(len(history), config.epochs),
            should_stop=stop.is_set,
        )


def _holdout_of(recipe: Recipe) -> Holdout:
    """Return the study's holdout; a recipe from before there was one, or of no study, has none."""
    given = recipe.origin.get("holdout", "none")
    for holdout in get_args(Holdout):
        if given == holdout:
            return cast(Holdout, holdout)
    raise RecipeError(f'origin.holdout must be "half" or "none", got {given!r}')


def _require_backbone(name: str) -> None:
    if not is_backbone(name):
        nearest = ", ".join(nearest_backbones(name)) or "none"
        raise RecipeError(
            f"backbone must be a timm model, got {name!r}, the nearest are: {nearest}"
        )


def _open_cache(recipe: Recipe, data: Path | None, home: Home) -> WaveformCache:
    """Data that are named win over the study's; else the study's must be here."""
    if data is not None:
        config = recipe.config
        frame_size = 0 if config.modality == "audio" else config.frame_size
        report = prepare_data(config.sample_rate, data, home, frame_size=frame_size)
        return WaveformCache.open(report.cache)
    fingerprint = str(recipe.origin.get("data_fingerprint", ""))
    found = find_cache(home.cache, fingerprint)
    if found is None:
        raise ContractError(
            f"the data with fingerprint {fingerprint or '(none is named)'} are not in "
            f"{home.cache}; name the data folder with --data DATA"
        )
    return WaveformCache.open(found)
