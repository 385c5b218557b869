"""A recipe file: every value of a TrainConfig, and where they come from. TOML, for people.

That of an ensemble has a table `[[member]]` for each of its recipes.
"""

import reprlib
import tomllib
from collections.abc import Sequence
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
    write_recipes([recipe], path)


def write_recipes(recipes: Sequence[Recipe], path: Path) -> None:
    """Write one recipe, or those of an ensemble, likewise."""
    tables = [
        recipe.config.model_dump(exclude_none=True) | {"origin": recipe.origin}
        for recipe in recipes
    ]
    text = tomli_w.dumps(tables[0] if len(tables) == 1 else {"member": tables})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; values that are not named have their defaults.

    Raises:
        RecipeError: the file is missing or is no recipe; names every fault at once.
    """
    recipes = read_recipes(path)
    if len(recipes) != 1:
        raise RecipeError(f"{path} must hold one recipe, got {len(recipes)} members")
    return recipes[0]


def read_recipes(path: Path) -> list[Recipe]:
    """Read a recipe, or those of an ensemble; values that are not named have their defaults.

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
    tables = values.get("member")
    if tables is None:
        return [_to_recipe(values, path.name)]
    if values.keys() != {"member"} or not isinstance(tables, list) or not tables:
        raise RecipeError(f"the members of an ensemble must be all that is in {path.name}")
    if not all(isinstance(table, dict) for table in tables):
        raise RecipeError(f"each member in {path.name} must be a table, [[member]]")
    return [_to_recipe(table, f"member {n}, {path.name}") for n, table in enumerate(tables, 1)]


def _to_recipe(values: dict[str, Any], source: str) -> Recipe:
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
        raise RecipeError("\n".join(f"{fault} ({source})" for fault in faults))
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
