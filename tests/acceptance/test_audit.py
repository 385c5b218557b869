"""`melsearch audit` as a user runs it: on a set with a shortcut, on one without, on bad ones."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.command import run, succeed, user_folder
from tests.media import write_dataset, write_media
from tests.speech import take_some

RATE = 16_000


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a set whose fakes are longer, and one whose classes are alike."""
    with user_folder() as folder:
        make_set(folder / "longer", {"train": 50, "val": 30}, extra_seconds=0.3)
        make_set(folder / "alike", {"train": 50, "val": 30}, extra_seconds=0.0)
        yield folder


def make_set(root: Path, sizes: dict[str, int], extra_seconds: float) -> None:
    """Write clips of noise, 1 to 1.6 s long, the fakes by `extra_seconds` longer."""
    rng = np.random.default_rng(1)
    for split, num_clips in sizes.items():
        (root / f"{split}set").mkdir(parents=True)
        rows = ["video_name,target"]
        for number, target in enumerate(rng.permutation(np.arange(num_clips) % 2)):
            name = f"{number:03}.wav"
            seconds = rng.uniform(1.0, 1.6) + extra_seconds * target
            sound = rng.normal(0, rng.uniform(0.02, 0.2), (1, round(seconds * RATE)))
            write_media(root / f"{split}set" / name, sound.astype("f4"), RATE)
            rows.append(f"{name},{target}")
        (root / f"{split}set_label.txt").write_text("\n".join(rows) + "\n")


def test_fakes_that_are_longer_are_caught(folder: Path) -> None:
    """Duration is warned of by name, the page is written, and --fail-above ends with 1."""
    out = succeed(folder, "audit", "longer", "-o", "found")
    assert "warning: duration alone tells fakes from real clips" in out
    assert "most of all seconds" in out
    assert "warning: level" not in out
    findings = json.loads((folder / "found" / "audit.json").read_text())
    auc = {finding["group"]: finding["auc"] for finding in findings["findings"]}
    assert auc["duration"]["value"] > 0.7
    with (folder / "found" / "shortcuts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 80
    page = (folder / "found" / "index.html").read_text()
    assert "duration alone tells" in page
    assert page.count("data:image/svg+xml") == 2
    result = run(folder, "audit", "longer", "--fail-above", "0.7")
    assert result.code == 1
    assert "--fail-above allows 0.7" in result.err


@pytest.mark.parametrize("sizes", [{"train": 20, "val": 20}, {"val": 20}])
def test_smallest_set_is_learned_from(folder: Path, sizes: dict[str, int]) -> None:
    """Ten clips of each class are enough for a length that tells all, cross-validated too."""
    name = f"smallest-{len(sizes)}"
    make_set(folder / name, sizes, extra_seconds=1.0)
    out = succeed(folder, "audit", name)
    assert "warning: duration alone tells fakes from real clips with an AUC of 1.00" in out


def test_classes_that_are_alike_are_not_warned_of(folder: Path) -> None:
    """No group is above 0.7, and what is the same for all clips says so."""
    out = succeed(folder, "audit", "alike", "--fail-above", "0.75")
    assert "warning: duration" not in out
    assert "order of names" in out


def test_set_with_too_few_clips_is_refused(folder: Path) -> None:
    """With the numbers that are there and those that are needed."""
    write_dataset(folder / "few", {"train": {"a.wav": 0, "b.wav": 1}, "val": {"c.wav": 1}})
    result = run(folder, "audit", "few")
    assert result.code == 1
    assert "needs at least 10 readable clips of each class" in result.err
    assert "train has 1 real and 1 fake" in result.err


def test_folder_with_other_files_is_not_overwritten(folder: Path) -> None:
    """It is told before the work."""
    result = run(folder, "audit", "alike", "-o", "longer")
    assert (result.code, "would be lost" in result.err) == (1, True)


def test_real_speech_has_no_shortcut_in_its_length(speech_data: Path) -> None:
    """Of 400 clips of the speech set neither length nor silence nor file size tells the label."""
    with user_folder() as folder:
        for split, num_clips in (("train", 260), ("val", 140)):
            take_some(speech_data, folder / "demo", split, num_clips)
        succeed(folder, "audit", "demo", "-o", "found")
        findings = json.loads((folder / "found" / "audit.json").read_text())["findings"]
    for finding in findings:
        if finding["group"] in ("duration", "silence", "file size"):
            assert finding["auc"]["value"] < 0.7, finding
