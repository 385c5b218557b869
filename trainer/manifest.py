"""A manifest: what else is known of each clip, such as its attack, its speaker or its language.

It groups clips, for honest splits and for figures of each group; nothing is ever trained on it.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import DataError
from trainer.labels import LabelFile, find_name_fault, read_lines

MANIFEST_FILE = "manifest.csv"
"""Beside the label files."""
_NAME = "video_name"
_MAX_LISTED_FAULTS = 20


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest by the clip's name."""

    file: str
    columns: tuple[str, ...]
    """Without the clip's name."""
    rows: Mapping[str, Mapping[str, str]]

    def values(self, column: str, names: Sequence[str]) -> list[str]:
        """Return what the column says of each of these clips; nothing of those that it lacks.

        Raises:
            DataError: there is no such column.
        """
        if column not in self.columns:
            known = ", ".join(self.columns) or "none"
            raise DataError(f"{self.file} must have a column {column!r}, its columns are: {known}")
        lacking: Mapping[str, str] = {}
        return [self.rows.get(posixpath.normpath(name), lacking).get(column, "") for name in names]


def find_manifest(root: Path) -> Manifest | None:
    """Read the manifest of a data folder, or return None if it has none.

    Raises:
        DataError: it can't be used; names all faults at once.
    """
    path = root / MANIFEST_FILE
    return read_manifest(path) if path.exists() else None


def read_manifest(path: Path) -> Manifest:
    """Read a csv file with a column `video_name`; titles are taken in lower case.

    Raises:
        DataError: it can't be used; names all faults at once.
    """
    table = LabelFile(path.name)
    lines = read_lines(path, table)
    _, header = next(lines, (1, []))
    titles = [title.strip().lower() for title in header]
    rows: dict[str, dict[str, str]] = {}
    if titles.count(_NAME) != 1 or len(set(titles)) != len(titles):
        table.faults = table.faults or [
            f"{path.name}, line 1: needs one column {_NAME}, and no title twice, got {titles}"
        ]
    else:
        for line, fields in lines:
            _add(line, fields, titles, rows, table)
    if table.faults:
        shown = table.faults[:_MAX_LISTED_FAULTS]
        if more := len(table.faults) - len(shown):
            shown.append(f"and {more} more")
        raise DataError("\n  ".join([f"the manifest {path} can't be used:", *shown]))
    return Manifest(path.name, tuple(title for title in titles if title != _NAME), rows)


def _add(
    line: int,
    fields: list[str],
    titles: list[str],
    rows: dict[str, dict[str, str]],
    table: LabelFile,
) -> None:
    """Add a row, or what is wrong with it; a row that comes again must say the same."""
    if len(fields) != len(titles):
        table.blame(line, f"has {len(fields)} fields, the header {len(titles)}")
        return
    row = dict(zip(titles, (field.strip() for field in fields), strict=True))
    name = row.pop(_NAME)
    if fault := find_name_fault(name):
        table.blame(line, f"{_NAME} {fault}, got {name[:200]!r}")
    elif rows.setdefault(posixpath.normpath(name), row) != row:
        table.blame(line, f"{name[:200]!r} again, with other values")
