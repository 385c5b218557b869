"""Which versions are here, how they differ from a study's, and who may go on all the same."""

import logging
from importlib import metadata
from typing import Any

import pytest

from search.errors import ContractError
from search.version import (
    check_versions,
    code_version,
    diff_versions,
    library_versions,
    trained_by,
    versions,
)


def frozen(**changes: str) -> dict[str, Any]:
    """Return a contract of this installation but for the versions of some libraries."""
    here = versions()
    return {"seed": 3} | here | {"libraries": here["libraries"] | changes}


def test_same_versions_have_no_difference() -> None:
    """A contract of this installation is gone on with, and says nothing in the log."""
    assert diff_versions(frozen()) == []
    check_versions("s", frozen(), allow_mismatch=False)


def test_each_difference_is_a_line_with_its_key() -> None:
    """Code and libraries stand side by side with what was frozen; the rest is not looked at."""
    here = library_versions()["timm"]
    contract = frozen(timm="0.9.9") | {"seed": 4, "code_version": "0.0.9+other"}
    assert diff_versions(contract) == [
        f'code_version: study "0.0.9+other", here "{code_version()}"',
        f'libraries.timm: study "0.9.9", here "{here}"',
    ]


def test_library_that_only_one_of_them_knows_is_a_difference() -> None:
    """A library that was dropped since, or that is not installed here, is nothing there."""
    contract = frozen(moviola="1.0")
    del contract["libraries"]["soxr"]
    soxr = library_versions()["soxr"]
    assert sorted(diff_versions(contract)) == [
        'libraries.moviola: study "1.0", here nothing',
        f'libraries.soxr: study nothing, here "{soxr}"',
    ]


def test_study_from_before_libraries_were_recorded_differs() -> None:
    """Nobody knows what trained it: one line says so, and what is here."""
    (line,) = diff_versions({"code_version": code_version()})
    assert line.startswith("libraries: study unknown, frozen before they were recorded, here ")
    assert f"timm {library_versions()['timm']}" in line


def test_local_parts_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts with and without GPUs have wheels of one version: they may share a study."""
    monkeypatch.setattr(metadata, "version", lambda name: f"2.14.1+{name}")
    found = library_versions.__wrapped__()
    assert set(found.values()) == {"2.14.1", found["python"]}


def test_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV, say, may come from a package of another name."""
    monkeypatch.setattr(metadata, "version", _none)
    assert list(library_versions.__wrapped__()) == ["python"]


def _none(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def test_refusal_names_the_way_out() -> None:
    """The message has the differences, the option and what it risks."""
    with pytest.raises(ContractError) as error:
        check_versions("s", frozen(timm="0.9.9"), allow_mismatch=False)
    message = str(error.value)
    assert '\n  libraries.timm: study "0.9.9", here ' in message
    assert "--allow-version-mismatch" in message
    assert "MELSEARCH_ALLOW_VERSION_MISMATCH" in message
    assert "may not compare" in message


def test_allowed_mismatch_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It is in the log, with the differences and what is risked."""
    with caplog.at_level(logging.WARNING, "search"):
        check_versions("s", frozen(timm="0.9.9"), allow_mismatch=True)
    (record,) = caplog.records
    assert record.message == "version_mismatch_allowed"
    said = vars(record)
    assert said["study"] == "s"
    assert said["differences"] == diff_versions(frozen(timm="0.9.9"))
    assert "may not compare" in said["risks"]


def test_trial_remembers_only_the_libraries_that_differ() -> None:
    """What the contract says already is not repeated."""
    assert trained_by(frozen()) == {"code_version": code_version()}
    timm = library_versions()["timm"]
    assert trained_by(frozen(timm="0.9.9")) == {
        "code_version": code_version(),
        "libraries": {"timm": timm},
    }
    assert trained_by({"code_version": "old"})["libraries"] == library_versions()
