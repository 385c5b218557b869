"""Commands that need no torch don't wait for it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.command import environment, user_folder
from tests.media import small_clips, write_dataset

SCRIPT = """
import sys
from search.cli import main
heavy = ("torch", "timm", "torchvision", "librosa", "sklearn", "pandas", "moviepy")
try:
    main()
finally:
    print("imported:", *(name for name in heavy if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["prepare", "data"], 0),
        (["status", "study"], 2),
        (["export", "study"], 2),
        (["create", "study.toml"], 2),
        (["train", "best.toml"], 2),
    ],
)
def test_command_starts_without_torch(arguments: list[str], code: int, database_url: str) -> None:
    """Help, cache and database commands come to their end, or to their fault, without torch."""
    with user_folder() as folder:
        if "data" in arguments:
            write_dataset(folder / "data", small_clips(2))
        result = run_script(folder, arguments, database_url)
    assert result.returncode == code, result.stderr
    assert result.stderr.splitlines()[-1].strip() == "imported:", result.stderr


def test_version_is_that_of_the_project(database_url: str) -> None:
    """For a report of a fault: one line, as pyproject.toml has it."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    with user_folder() as folder:
        result = run_script(folder, ["--version"], database_url)
    assert result.stdout == f"melsearch {project['version']}\n"


def run_script(folder: Path, arguments: list[str], url: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that says at its end which heavy packages it has imported."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=folder,
        env=environment({"MELSEARCH_STORAGE": url}),
        capture_output=True,
        text=True,
        timeout=60,
    )
