"""A manifest's values by clip, and everything that can be wrong with its file."""

from pathlib import Path

import pytest

from trainer.errors import DataError
from trainer.manifest import find_manifest, read_manifest


def write(folder: Path, text: str) -> Path:
    """Write a manifest; returns its path."""
    path = folder / "manifest.csv"
    path.write_text(text)
    return path


def test_values_come_in_the_order_of_the_clips(tmp_path: Path) -> None:
    """Clips that the manifest lacks have no value; names may be written in other ways."""
    path = write(tmp_path, "video_name,Attack\na.mp4,world\nsub/b.mp4, flite \n")
    manifest = read_manifest(path)
    assert manifest.columns == ("attack",)
    assert manifest.values("attack", ["sub//b.mp4", "c.mp4", "./a.mp4"]) == ["flite", "", "world"]


def test_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    """It is optional."""
    assert find_manifest(tmp_path) is None


def test_unknown_column_is_told_with_those_there_are(tmp_path: Path) -> None:
    """The message says what could be meant."""
    manifest = read_manifest(write(tmp_path, "video_name,attack,speaker\na.mp4,x,y\n"))
    with pytest.raises(DataError, match=r"'language', its columns are: attack, speaker"):
        manifest.values("language", ["a.mp4"])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("attack\nx\n", "needs one column video_name"),
        ("video_name,a,a\nx,1,2\n", "no title twice"),
        ("", "needs one column video_name"),
        ("video_name,a\nx\n", "line 2: has 1 fields, the header 2"),
        ("video_name,a\n../x,1\n", "must stay inside"),
        ("video_name,a\nx,1\nx,2\n", "line 3: 'x' again, with other values"),
    ],
)
def test_fault_is_told_with_its_place(tmp_path: Path, text: str, fault: str) -> None:
    """Every fault of a file names the line."""
    with pytest.raises(DataError, match=fault):
        read_manifest(write(tmp_path, text))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """And not more of them than can be read."""
    rows = "".join(f"x{number}\n" for number in range(30))
    with pytest.raises(DataError) as caught:
        read_manifest(write(tmp_path, "video_name,a\n" + rows))
    assert str(caught.value).count("has 1 fields") == 20
    assert "and 10 more" in str(caught.value)


def test_real_manifest_knows_every_clip(speech_data: Path) -> None:
    """The speech set's names its attacks and speakers."""
    manifest = find_manifest(speech_data)
    assert manifest is not None
    names = [path.name for path in (speech_data / "valset").iterdir()]
    attacks = manifest.values("attack", names)
    assert set(attacks) == {"bonafide", "espeak-ng", "festival", "flite", "griffin-lim", "world"}
    assert "" not in manifest.values("speaker", names)
