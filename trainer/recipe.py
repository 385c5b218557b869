"""A recipe file: every value of a TrainConfig, and where they come from. TOML, for people."""

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from trainer.config import TrainConfig
from trainer.errors import RecipeError


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
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; values that are not named have their defaults.

    Raises:
        RecipeError: the file is missing or is no recipe; names every fault at once.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"no such file: {path}; `melsearch export` writes one") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} can't be read as TOML: {error}") from error
    origin = values.pop("origin", {})
    faults = [] if isinstance(origin, dict) else [f"origin must be a table, got {origin!r}"]
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
        return f"{key} is no setting of a training"
    return f"{key}: {fault['msg']}, got {fault['input']!r}" if key else str(fault["msg"])
