"""Any best.toml is either read, and then whole, or refused with a RecipeError."""

import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.property.test_study_config import TEXTS, VALUES
from trainer.config import Augmentation, Optimizer, Precision, Schedule, TrainConfig
from trainer.errors import RecipeError
from trainer.recipe import Recipe, read_recipe, write_recipe

SMALL = {"deadline": None, "max_examples": 150}
FRACTIONS = st.floats(0, 1)
CONFIGS = st.builds(
    TrainConfig,
    backbone=st.text(st.characters(codec="utf-8"), max_size=20),
    weights=st.text(st.characters(codec="utf-8"), max_size=20),
    dropout=FRACTIONS,
    strength=FRACTIONS,
    lr=st.floats(1e-300, 10),
    f_max=st.none() | st.floats(4000, 8000),
    augmentation=st.sampled_from(get_args(Augmentation)),
    optimizer=st.sampled_from(get_args(Optimizer)),
    schedule=st.sampled_from(get_args(Schedule)),
    precision=st.sampled_from(get_args(Precision)),
    warmup_epochs=st.floats(0, 1e300),
    batch_size=st.integers(2, 65_536),
    seed=st.integers(0, 2**31 - 1),
)
LEAVES = st.text(st.characters(codec="utf-8"), max_size=9) | st.integers(-9, 2**63 - 1) | FRACTIONS
ORIGINS = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=9),
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=5),
    max_size=4,
)


def read(content: bytes) -> Recipe | str:
    """Return the recipe in a file of this content, or the message with which it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "best.toml"
        path.write_bytes(content)
        try:
            recipe = read_recipe(path)
        except RecipeError as error:
            assert "best.toml" in str(error)
            return str(error)
        write_recipe(recipe, path)  # as the final training does
        assert repr(read_recipe(path)) == repr(recipe)
    return recipe


@given(CONFIGS, ORIGINS)
@settings(**SMALL)
def test_recipe_that_was_written_is_read_back(config: TrainConfig, origin: dict[str, Any]) -> None:
    """To the last digit, whatever the names."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "best.toml"
        write_recipe(Recipe(config, origin), path)
        assert read_recipe(path) == Recipe(config, origin)


@given(st.dictionaries(st.sampled_from([*TrainConfig.model_fields, "origin"]) | TEXTS, VALUES))
@settings(**SMALL)
def test_any_document_is_read_or_refused(document: dict[str, Any]) -> None:
    """Values of any kind for any key give a recipe, or a fault a line."""
    told = read(tomli_w.dumps(document).encode())
    if isinstance(told, str):
        assert all(line.endswith("(best.toml)") for line in told.split("\n"))


@given(
    st.binary(max_size=200)
    | CONFIGS.map(lambda config: tomli_w.dumps(config.model_dump(exclude_none=True)).encode()),
    st.data(),
)
@example(b"lr = " + b"9" * 5000, None)
@example(b"lr = " + b"[" * 5000, None)
@example(b"lr = 0x" + b"f" * 9000, None)
@example(b"seed = 0x" + b"f" * 9000, None)
@example(b"origin = [0x" + b"f" * 9000 + b"]", None)
@example(b'"a\\nb" = 1', None)
@example(b"origin.a = 0x" + b"f" * 9000, None)
@example(b"lr" + b".a" * 5000 + b" = 1", None)
@example(b"origin" + b".a" * 5000 + b" = 1", None)
@example(b"lr = " + b"{a = " * 5000, None)
@example(b"\xef\xbb\xbflr = 0.1", None)
@example(b"lr = '" + b"x" * 5000 + b"'", None)
@settings(**SMALL)
def test_any_bytes_are_read_or_refused(content: bytes, data: st.DataObject | None) -> None:
    """A file of any bytes, be it a recipe cut off or overwritten, is no traceback."""
    if data is not None:
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, len(content)))
        content = content[:start] + data.draw(st.binary(max_size=8)) + content[end:]
    told = read(content)
    assert not isinstance(told, str) or len(told) < 3000


@pytest.mark.parametrize("name", ["", "a/b"])
def test_folder_in_the_files_place_is_told(tmp_path: Path, name: str) -> None:
    """What can't be read is refused like what can't be understood."""
    with pytest.raises(RecipeError):
        read_recipe(tmp_path / name)
