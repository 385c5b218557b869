"""From a recipe to the final model: finds the data that the recipe's study was made with."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from search.errors import ContractError
from search.home import Home
from search.prepare import open_prepared
from search.progress import Progress, show_progress
from search.signals import stop_on_signals
from trainer.cache import WaveformCache, find_cache
from trainer.config import BackboneField
from trainer.device import choose_device
from trainer.errors import RecipeError
from trainer.final import OnEpoch, Stage, train_final
from trainer.folder import MODEL_FOLDER
from trainer.history import EpochResult
from trainer.model import is_backbone, nearest_backbones
from trainer.objectives import Holdout
from trainer.recipe import Recipe
from trainer.scoring import decode_settings


def train_from_recipes(
    recipes: Sequence[Recipe], seeds: int, out: Path, data: Path | None, on: Stage, device: str,
    home: Home,
) -> dict[str, Any]:  # fmt: skip
    """Train the final model of recipes, each with so many seeds, and return its figures.

    Raises:
        RecipeError: one names a backbone that timm lacks or an unknown holdout, or they differ in
            what they can't differ in.
        ContractError: the data are not here.
        DataError, ModelError
        TrainingStoppedError: by SIGINT or SIGTERM; the same call goes on.
    """
    require_backbones(recipes)
    first = recipes[0]
    _require_alike(recipes)
    chosen = choose_device(device)
    MODEL_FOLDER.check(out)
    cache = open_cache(recipes, data, home)
    seeded = [_with_seed(recipe, number) for recipe in recipes for number in range(seeds)]
    stop = stop_on_signals()  # not before: Ctrl-C ends the decoding at once
    with show_progress("train") as progress:
        metrics = train_final(
            seeded,
            cache,
            out,
            on=on,
            device=chosen,
            objective=str(first.origin.get("objective", "accuracy")),
            holdout=_holdout_of(first),
            on_epoch=count_epochs(progress, seeded, on),
            should_stop=stop.is_set,
        )
        total = _num_epochs(seeded, on)
        progress(total, total)  # the training on all clips ends early, at the best epoch
    return metrics


def count_epochs(progress: Progress, recipes: Sequence[Recipe], on: Stage) -> OnEpoch:
    """Return what tells `progress` of each epoch, in one count over all members and stages."""
    total = _num_epochs(recipes, on)

    def on_epoch(stage: Stage, member: int, history: Sequence[EpochResult]) -> None:
        earlier = _num_epochs(recipes[:member], on)
        if stage == "all":
            earlier += recipes[member].config.epochs
        progress(earlier + len(history), total)

    return on_epoch


def _num_epochs(recipes: Sequence[Recipe], on: Stage) -> int:
    """Return the most epochs that the recipes train, on all clips as many again."""
    return sum(recipe.config.epochs for recipe in recipes) * (2 if on == "all" else 1)


def _with_seed(recipe: Recipe, number: int) -> Recipe:
    """Return the recipe with the seed that is so many above its own."""
    seed = (recipe.config.seed + number) % 2**31
    return replace(recipe, config=recipe.config.model_copy(update={"seed": seed}))


def _require_alike(recipes: Sequence[Recipe]) -> None:
    """Refuse recipes that can't share a cache and its halves.

    Raises:
        RecipeError: names what differs.
    """
    shared: dict[str, set[object]] = {
        "sample_rate": {recipe.config.sample_rate for recipe in recipes},
        "frame_size": {x.config.frame_size for x in recipes if x.config.modality != "audio"},
    }
    for key in ("objective", "holdout", "data_fingerprint"):
        shared[f"origin.{key}"] = {str(recipe.origin.get(key)) for recipe in recipes}
    for key, values in shared.items():
        if len(values) > 1:
            told = ", ".join(sorted(map(str, values)))
            raise RecipeError(f"recipes of one ensemble must have the same {key}, got {told}")


def _holdout_of(recipe: Recipe) -> Holdout:
    """Return the study's holdout; a recipe from before there was one, or of no study, has none."""
    given = recipe.origin.get("holdout", "none")
    for holdout in get_args(Holdout):
        if given == holdout:
            return cast(Holdout, holdout)
    raise RecipeError(f'origin.holdout must be "half" or "none", got {given!r}')


def require_backbones(recipes: Sequence[Recipe]) -> None:
    """Refuse recipes that name a backbone which timm lacks.

    Raises:
        RecipeError: with the nearest names.
    """
    for recipe in recipes:
        for field in get_args(BackboneField):
            name = getattr(recipe.config, field)
            if not is_backbone(name):
                nearest = ", ".join(nearest_backbones(name)) or "none"
                raise RecipeError(
                    f"{field} must be a timm model, got {name!r}, the nearest are: {nearest}"
                )


def open_cache(recipes: Sequence[Recipe], data: Path | None, home: Home) -> WaveformCache:
    """Return what the recipes read: data that are named win, else their study's must be here.

    Raises:
        ContractError: they aren't.
        DataError: the folder or its labels can't be used.
    """
    if data is not None:
        settings = decode_settings([recipe.config for recipe in recipes])
        return open_prepared(
            settings.sample_rate,
            data,
            home,
            frame_size=settings.frame_size,
            codecs=any(recipe.config.codec_share for recipe in recipes),
        )
    fingerprint = str(recipes[0].origin.get("data_fingerprint", ""))
    found = find_cache(home.cache, fingerprint)
    if found is None:
        raise ContractError(
            f"the data with fingerprint {fingerprint or '(none is named)'} are not in "
            f"{home.cache}; name the data folder with --data DATA"
        )
    return WaveformCache.open(found)
