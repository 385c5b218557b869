"""A small part of the real speech set, so that a test can train on it in moments."""

import csv
import shutil
from pathlib import Path


def take_some(source: Path, target: Path, split: str, num_clips: int) -> None:
    """Copy clips of one split, as many of each class, and write their labels."""
    (target / f"{split}set").mkdir(parents=True)
    rows = read_rows(source / f"{split}set_label.txt")
    half = num_clips // 2
    some = [row for label in "01" for row in [r for r in rows if r["target"] == label][:half]]
    lines = [f"{row['video_name']},{row['target']}\n" for row in some]
    (target / f"{split}set_label.txt").write_text("video_name,target\n" + "".join(lines))
    for row in some:
        place = Path(f"{split}set") / row["video_name"]
        shutil.copy(source / place, target / place)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a csv file."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
