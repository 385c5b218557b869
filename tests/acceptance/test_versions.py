"""A study of another version, as the user of one machine meets it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.study import open_study
from storage.database import Database, parse_url
from storage.embedded import embedded_server
from tests.command import TINY_STUDY, run, succeed, user_folder
from tests.media import small_clips, write_dataset

UP = ("up", "study.toml", "--data", "data", "--port", "0")
CREATE = ("create", "study.toml", "--data", "data")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a study of one trial that other code froze; the database stays up."""
    with user_folder() as folder, embedded_server(folder / ".melsearch" / "postgres") as url:
        write_dataset(folder / "data", small_clips(4))
        write_study(folder, trials=1)
        succeed(folder, *CREATE)
        database = Database(parse_url(url, {}))
        study = open_study(database, "tiny")
        older = study.contract | {"code_version": "0.0.9+other"}
        study.optuna.set_user_attr("melsearch:contract", older)
        database.close()
        yield folder


def write_study(folder: Path, trials: int) -> None:
    """Write the study file with that budget."""
    text = TINY_STUDY.replace("trials = 3", f"trials = {trials}")
    (folder / "study.toml").write_text(text)


def test_up_and_create_refuse_unless_it_is_allowed(folder: Path) -> None:
    """Exit code 2 with the difference; with the option all workers join, and the budget grows."""
    write_study(folder, trials=2)
    for arguments in (UP, CREATE):
        result = run(folder, *arguments)
        assert result.code == 2
        assert 'code_version: study "0.0.9+other", here ' in result.err
    assert json.loads(succeed(folder, "status", "tiny", "--json"))["budget"] == 1
    assert "2 trials" in succeed(folder, *CREATE, "--allow-version-mismatch")
    assert "2 of 2 ended" in succeed(folder, *UP, "--allow-version-mismatch")
    log = (folder / ".melsearch/runs/tiny/worker-0.log").read_text()
    assert "version_mismatch_allowed" in log


def test_wrong_value_of_the_variable_is_told(folder: Path) -> None:
    """What is neither yes nor no stops the command with a message."""
    result = run(folder, *CREATE, environ={"MELSEARCH_ALLOW_VERSION_MISMATCH": "perhaps"})
    assert result.code == 2
    assert "MELSEARCH_ALLOW_VERSION_MISMATCH" in result.err
    assert "valid boolean" in result.err
