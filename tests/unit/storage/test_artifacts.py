"""Where trials' folders lie."""

from pathlib import Path

import pytest

from storage.artifacts import Artifacts


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    """Artifact folders below a folder that does not exist yet."""
    return Artifacts(tmp_path / "runs")


def test_folders_sort_by_study_and_trial_number(artifacts: Artifacts) -> None:
    """A listing shows a study's trials in their order."""
    folders = [artifacts.trial_folder("s", number) for number in (2, 10, 100)]
    assert folders == sorted(folders)
    assert {folder.parent for folder in folders} == {artifacts.study_folder("s")}


def test_paths_make_no_folders(artifacts: Artifacts) -> None:
    """To ask where something lies writes nothing."""
    assert not artifacts.trial_folder("s", 1).exists()
    assert not artifacts.root.exists()
