"""Studies that another version froze, on a real PostgreSQL."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from search.errors import ContractError
from search.export import export_best
from search.status import count_versions, read_status, render_status
from search.study import Study, create_study
from search.version import code_version, library_versions
from storage.database import Database
from tests.integration.test_claim import DOCUMENT, claimed, claims, config

OLD_CODE = "0.0.9+other"


@pytest.fixture
def study(database: Database) -> Study:
    """A fresh study with a budget of four trials."""
    return create_study(database, config(), "data-1")


def freeze_again(study: Study, **changes: Any) -> dict[str, Any]:
    """Make the study one that other versions froze; return its contract."""
    frozen = {k: v for k, v in (study.contract | changes).items() if v is not None}
    study.optuna.set_user_attr("melsearch:contract", frozen)
    return frozen


def attributes(study: Study) -> dict[str, Any]:
    """Return what is kept of the study in the database, read anew."""
    return study.optuna.user_attrs


def test_contract_holds_code_and_libraries(study: Study) -> None:
    """What is frozen is what is installed."""
    assert attributes(study)["melsearch:contract"]["code_version"] == code_version()
    assert attributes(study)["melsearch:contract"]["libraries"] == library_versions()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"code_version": OLD_CODE}, 'code_version: study "0.0.9+other", here '),
        ({"libraries": {"timm": "0.9.9"}}, 'libraries.timm: study "0.9.9", here '),
        ({"libraries": None}, "libraries: study unknown, frozen before they were recorded"),
    ],
    ids=["code", "library", "before"],
)
def test_other_versions_raise_no_budget(
    study: Study, database: Database, changes: dict[str, Any], words: str
) -> None:
    """They are refused line by line, and nothing is written."""
    freeze_again(study, **changes)
    before = attributes(study)
    with pytest.raises(ContractError) as error:
        create_study(database, config(trials=6), "data-1")
    assert f"\n  {words}" in str(error.value)
    assert "--allow-version-mismatch" in str(error.value)
    assert attributes(study) == before


@pytest.mark.parametrize("changes", [{"code_version": OLD_CODE}, {"libraries": None}])
def test_allowed_mismatch_raises_the_budget_and_keeps_the_contract(
    study: Study, database: Database, changes: dict[str, Any]
) -> None:
    """The contract stays as the older version wrote it."""
    frozen = freeze_again(study, **changes)
    opened = create_study(database, config(trials=6), "data-1", allow_mismatch=True)
    assert study.budget() == 6
    assert attributes(study)["melsearch:contract"] == frozen
    assert opened.contract == frozen


def test_only_what_may_change_is_written_again(study: Study, database: Database) -> None:
    """A setting that the older version didn't know would keep its workers from reading the file."""
    older = attributes(study)["melsearch:config"]
    del older["seed"]
    study.optuna.set_user_attr("melsearch:config", older)
    lease = DOCUMENT["lease"] | {"ttl_seconds": 90.0}
    changed = config(trials=6, max_failed_trials=9, lease=lease)
    create_study(database, changed, "data-1")
    assert attributes(study)["melsearch:config"] == older | {
        "trials": 6,
        "max_failed_trials": 9,
        "lease": lease,
    }


def test_nothing_but_versions_is_allowed(study: Study, database: Database) -> None:
    """Data, seed and budget are refused as ever, and only they are named."""
    freeze_again(study, code_version=OLD_CODE)
    with pytest.raises(ContractError) as error:
        create_study(database, config(trials=3, seed=5), "data-2", allow_mismatch=True)
    lines = str(error.value).split("\n")
    assert sorted(lines[1:-1]) == [
        '  data_fingerprint: study "data-1", here "data-2"',
        "  seed: study 0, here 5",
        "  trials: study 4, here 3 (a budget only grows)",
    ]


def freeze_without(study: Study, *keys: str) -> None:
    """Make the study one of a version that lacked these settings, `section.name` each."""
    changes: dict[str, Any] = {"code_version": OLD_CODE}
    for key in keys:
        section, _, name = key.rpartition(".")
        known = changes.get(section, study.contract.get(section, {}))
        changes[section or name] = {k: v for k, v in known.items() if k != name} or None
    freeze_again(study, **changes)


NEW_SETTINGS = ("training.swa_epochs", "baseline.swa_epochs", "baseline.augmentation", "holdout")


def test_settings_that_the_older_version_lacked_are_allowed(database: Database) -> None:
    """They change nothing at their defaults; else the option is named, as for any version."""
    plain = config(holdout="none")
    study = create_study(database, plain, "data-1")
    freeze_without(study, *NEW_SETTINGS)
    with pytest.raises(ContractError, match="--allow-version-mismatch") as error:
        create_study(database, plain, "data-1")
    assert "swa_epochs" not in str(error.value)
    opened = create_study(database, config(holdout="none", trials=6), "data-1", allow_mismatch=True)
    assert opened.budget() == 6
    assert "holdout" not in opened.contract


def test_new_setting_with_another_value_is_another_contract(database: Database) -> None:
    """What the older version can't have done is no matter of versions."""
    study = create_study(database, config(), "data-1")
    freeze_without(study, *NEW_SETTINGS)
    changed = config(holdout="half", training={"swa_epochs": 1})
    with pytest.raises(ContractError) as error:
        create_study(database, changed, "data-1", allow_mismatch=True)
    assert sorted(str(error.value).split("\n")[1:-1]) == [
        '  holdout: study nothing, here "half"',
        "  training.swa_epochs: study nothing, here 1",
    ]


def test_all_differences_are_told_at_once(study: Study, database: Database) -> None:
    """Who changes the data and the code reads of both."""
    freeze_again(study, code_version=OLD_CODE)
    with pytest.raises(ContractError) as error:
        create_study(database, config(), "data-2")
    assert "data_fingerprint: " in str(error.value)
    assert "code_version: " in str(error.value)


def end_trials(study: Study, *trained: dict[str, Any]) -> None:
    """Let trials end that remember this of what trained them; the later, the better."""
    mine = claims(study)
    for rank, remembered in enumerate(trained, start=1):
        mine.finish(claimed(mine.claim()), TrialState.COMPLETE, rank / 10, remembered)


def test_mixed_versions_are_said_in_one_line(study: Study, tmp_path: Path) -> None:
    """`status` counts the trials by what trained them; a recipe names what trained its own."""
    newer = {"code_version": "0.2.0+newer", "libraries": {"timm": "1.0.33"}}
    end_trials(study, {"code_version": OLD_CODE}, {"code_version": OLD_CODE}, newer)
    expected = {OLD_CODE: 2, "0.2.0+newer (timm 1.0.33)": 1}
    assert count_versions(study.trials()) == expected
    assert read_status(study)["versions"] == expected
    assert f"2 by {OLD_CODE}, 1 by 0.2.0+newer (timm 1.0.33)" in drawn(study)
    assert export_best(study, tmp_path / "best.toml")[0].origin["code_version"] == "0.2.0+newer"
    assert export_best(study, tmp_path / "0.toml", 0)[0].origin["code_version"] == OLD_CODE


def test_trials_of_one_version_need_no_line(study: Study) -> None:
    """Nothing is said where there is nothing to say."""
    end_trials(study, {"code_version": OLD_CODE}, {"code_version": OLD_CODE})
    assert read_status(study)["versions"] == {OLD_CODE: 2}
    assert "versions" not in drawn(study)


def drawn(study: Study) -> str:
    """Return the status as a wide terminal shows it."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render_status(read_status(study)))
    return capture.get()
