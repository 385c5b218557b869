"""The documentation names every command, option and setting, with its default."""

import re
import tomllib
from pathlib import Path

import pytest
from click import Command
from pydantic import BaseModel
from typer.main import get_command

from search.cli import app
from search.config import LeaseSettings, PrunerSettings, SamplerSettings, StudyConfig
from trainer.config import TrainConfig

ROOT = Path(__file__).parents[3]
COMMANDS: dict[str, Command] = get_command(app).commands  # type: ignore[attr-defined]
SECTIONS: dict[str, type[BaseModel]] = {
    "sampler": SamplerSettings,
    "pruner": PrunerSettings,
    "lease": LeaseSettings,
}


def table_rows(path: str) -> dict[str, str]:
    """The rows of a page's tables by each of the names in their first cell."""
    rows = re.findall(r"^\| (`.*?) \|(.*)\|$", (ROOT / path).read_text(), re.MULTILINE)
    return {name: rest for names, rest in rows for name in re.findall(r"`\[?([^`\]]+)\]?`", names)}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_documented_with_all_its_options(name: str) -> None:
    """docs/commands.md has each command's usage with every visible option."""
    page = (ROOT / "docs/commands.md").read_text()
    usage = re.search(
        rf"\*\*`melsearch {name}\b.*?(?=\n\n\*\*`melsearch|\n## |\Z)", page, re.DOTALL
    )
    assert usage, f"docs/commands.md lacks {name}"
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False):
            assert any(option in usage[0] for option in parameter.opts), parameter.opts


def test_every_setting_of_a_study_is_documented() -> None:
    """docs/study-file.md has a row for each key of a study file."""
    rows = table_rows("docs/study-file.md")
    for name in StudyConfig.model_fields:
        if name not in SECTIONS:
            assert name in rows or f"{name}.NAME" in rows, name
    for section, model in SECTIONS.items():
        for name in model.model_fields:
            assert f"{section}.{name}" in rows, f"{section}.{name}"


def test_every_value_of_a_training_is_documented_with_its_default() -> None:
    """docs/study-file.md has a row for each field of TrainConfig, and its default is right."""
    rows = table_rows("docs/study-file.md")
    for name, field in TrainConfig.model_fields.items():
        assert name in rows, name
        if name in ("seed", "f_min", "f_max", "step_epochs", "step_gamma"):
            continue
        default = rows[name].rsplit("|", 1)[1].strip().strip("`")
        expected = field.default
        assert default in (str(expected), str(expected).lower()) or float(default) == expected, name


def test_architecture_maps_every_module() -> None:
    """docs/architecture.md names each file of the three packages, and none that is gone."""
    page = (ROOT / "docs/architecture.md").read_text()
    for package in ("search", "trainer", "storage"):
        section = page.split(f"### {package}:")[1].split("\n### ")[0].split("\n## ")[0]
        mapped = set(re.findall(r"`(\w+\.py)`", section))
        there = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
        assert mapped == there


def test_table_of_deaths_links_each_test_of_a_fault() -> None:
    """docs/operations.md links tests that exist, and every one of tests/faults."""
    page = (ROOT / "docs/operations.md").read_text()
    section = page.split("## What dies, what happens, what is lost\n")[1].split("\n## ")[0]
    linked = {(path, name) for name, path in re.findall(r"\[(test_\w+)\]\(\.\./(\S+)\)", section)}
    there = {path for path, _ in linked}
    there |= {str(path.relative_to(ROOT)) for path in (ROOT / "tests/faults").glob("test_*.py")}
    tests = {
        (path, name)
        for path in there
        for name in re.findall(r"^def (test_\w+)\(", (ROOT / path).read_text(), re.MULTILINE)
    }
    assert linked <= tests
    assert {(path, name) for path, name in tests if path.startswith("tests/faults/")} <= linked


def test_image_is_labelled_with_the_packages_version() -> None:
    """The Dockerfile can't read pyproject.toml, so its own copy must be right."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in (ROOT / "Dockerfile").read_text()
