"""A recipe file: every value of a TrainConfig, and where they come from. TOML, for people."""

import reprlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from trainer.config import TrainConfig
from trainer.durable import replacing
from trainer.errors import RecipeError
from trainer.nesting import is_deep


@dataclass(frozen=True)
class Recipe:
    """What to train, and which trial of which study found it."""

    config: TrainConfig
    origin: dict[str, Any] = field(default_factory=dict)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe in place of whatever file was there, atomically."""
    values = recipe.config.model_dump(exclude_none=True)
    text = tomli_w.dumps(values | {"origin": recipe.origin})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; values that are not named have their defaults.

    Raises:
        RecipeError: the file is missing or is no recipe; names every fault at once.
    """
    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise RecipeError(f"no such file: {path}; `melsearch export` writes one") from error
    except RecursionError:
        raise RecipeError(f"{path} is nested too deeply") from None
    except (OSError, ValueError) as error:  # TOMLDecodeError, and numbers with too many digits
        raise RecipeError(f"{path} can't be read as TOML: {error}") from error
    if is_deep(values):
        raise RecipeError(f"{path} is nested too deeply")
    origin = values.pop("origin", {})
    faults = [] if isinstance(origin, dict) else [f"origin must be a table, got {_shown(origin)}"]
    try:
        tomli_w.dumps({"origin": origin})  # so that it can be written again
    except ValueError:
        faults.append("origin must hold no giant number")
    try:
        config = TrainConfig.model_validate(values, strict=False)
    except ValidationError as error:
        faults += [_fault_words(fault) for fault in error.errors()]
    if faults:
        raise RecipeError("\n".join(f"{fault} ({path.name})" for fault in faults))
    return Recipe(config, origin)


def _fault_words(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{key if key.isidentifier() else _shown(key)} is no setting of a training"
    return f"{key}: {fault['msg']}, got {_shown(fault['input'])}" if key else str(fault["msg"])


def _shown(value: object) -> str:
    """Return a value as Python has it, short and on one line."""
    try:
        return reprlib.repr(value)
    except ValueError:
        return "a giant number"
