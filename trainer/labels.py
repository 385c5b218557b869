"""Label files: names and targets, and every fault of a file at once."""

import csv
import io
import posixpath
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_brief = reprlib.Repr()
_brief.maxstring, _brief.maxlist = 200, 20
_shown = _brief.repr
TARGETS = {"0": 0, "1": 1, "real": 0, "fake": 1}


@dataclass(frozen=True)
class LabelRow:
    """One labelled clip, and the line of the label file that says so."""

    line: int
    name: str
    target: int


@dataclass
class LabelFile:
    """What a label file says, and what is wrong with it."""

    file: str
    rows: list[LabelRow] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def blame(self, line: int, fault: str) -> None:
        """Note a fault with the place where it stands."""
        self.faults.append(f"{self.file}, line {line}: {fault}")


def read_labels(path: Path) -> LabelFile:
    """Read a label file with the columns `video_name` and `target`; never raise, collect faults.

    A row that repeats an earlier one counts once and is a warning; one that contradicts it is a
    fault. Other columns are ignored.
    """
    table = LabelFile(path.name)
    seen: dict[str, LabelRow] = {}
    for line, (name, label) in _read_columns(path, ("video_name", "target"), table):
        target = TARGETS.get(label.strip().lower())
        if target is None:
            table.blame(line, f"target must be 0, 1, real or fake, got {_shown(label)}")
            continue
        row = LabelRow(line, name, target)
        earlier = seen.setdefault(posixpath.normpath(name), row)
        if earlier is row:
            table.rows.append(row)
        elif earlier.target == target:
            again = f"{_shown(name)} again, as in {earlier.line}"
            table.warnings.append(f"{path.name}, line {line}: {again}")
        else:
            there = f"{earlier.target} in line {earlier.line}"
            table.blame(line, f"{_shown(name)} is {target}, but {there}")
    if not table.rows and not table.faults:
        table.faults.append(f"{path.name}: has no rows below its header")
    return table


def read_names(path: Path) -> LabelFile:
    """Read the column `video_name` alone, repetitions included; targets are all 0."""
    table = LabelFile(path.name)
    for line, (name,) in _read_columns(path, ("video_name",), table):
        table.rows.append(LabelRow(line, name, 0))
    return table


def _read_columns(
    path: Path, columns: tuple[str, ...], table: LabelFile
) -> Iterator[tuple[int, list[str]]]:
    """Yield each sound row's line and the asked columns, a safe name first."""
    lines = read_lines(path, table)
    _, header = next(lines, (1, []))
    header = [title.strip().lower() for title in header]
    missing = [column for column in columns if header.count(column) != 1]
    if missing:
        if not table.faults:
            needed = " and one ".join(missing)
            table.blame(1, f"needs one column {needed}, got {_shown(header)}")
        return
    places = [header.index(column) for column in columns]
    for line, fields in lines:
        if len(fields) != len(header):
            counts = f"{len(fields)} fields, the header {len(header)}"
            table.blame(line, f"has {counts}: {_shown(fields)}")
            continue
        values = [fields[place] for place in places]
        if fault := find_name_fault(values[0]):
            table.blame(line, f"video_name {fault}, got {_shown(values[0])}")
        else:
            yield line, values


def read_lines(path: Path, table: LabelFile) -> Iterator[tuple[int, list[str]]]:
    """Yield each row's first line and fields, but no blank row; note what isn't CSV in UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        table.faults.append(f"{path.name}: can't be read, {error.strerror}")
        return
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
            "".join(fields).encode()
        except StopIteration:
            return
        except csv.Error as error:
            table.blame(line, f"isn't valid CSV, {error}")
        except UnicodeEncodeError:
            table.blame(line, "isn't UTF-8; save the file as UTF-8")
        else:
            if any(field.strip() for field in fields):
                yield line, fields


def find_name_fault(name: str) -> str | None:
    """Return why a name can't name a file inside its folder, or None. Knows Windows paths too."""
    if "\0" in name:
        return "must not hold a NUL character"
    if name[:1] in ("/", "\\") or name[1:3] in (":/", ":\\"):
        return "must be relative to the folder of its split"
    parts = name.replace("\\", "/").split("/")
    if ".." in parts:
        return "must stay inside the folder of its split"
    if all(part in ("", ".") for part in parts):
        return "must name a file"
    return None
