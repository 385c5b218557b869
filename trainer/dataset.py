"""The FFDV folder: splits, labels, files, and what is wrong with them."""

import os
import posixpath
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from trainer.errors import DataError
from trainer.labels import LabelFile, LabelRow, read_labels, read_names

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)
SUBMISSION_FILE = "prediction.txt.csv"
MEDIA_SUFFIXES = frozenset(
    {".mp4", ".wav", ".flac", ".mp3", ".m4a", ".ogg"}
    | {".mkv", ".webm", ".mov", ".avi", ".aac", ".opus"}
)
MAX_SECONDS = 600
"""Of a longer clip only so much is kept, so that memory stays bounded."""
MAX_LISTED_FAULTS = 20
_EFFECTIVE_IDS = os.access in os.supports_effective_ids


@dataclass(frozen=True)
class Clip:
    """One labelled file that is there and may be read."""

    split: Split
    name: str
    """As in the label file."""
    path: Path
    target: int
    """1 is fake."""


@dataclass(frozen=True)
class Reject:
    """One file or label that can't be used."""

    split: str
    name: str
    reason: str
    """A short phrase that groups alike rejects."""


@dataclass(frozen=True)
class Dataset:
    """A folder's labelled clips, train before val, by name within a split."""

    root: Path
    clips: tuple[Clip, ...]
    rejects: tuple[Reject, ...]
    warnings: tuple[str, ...]


@dataclass
class _Findings:
    """What reading a folder collects."""

    clips: list[Clip] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_dataset(root: Path, splits: Sequence[Split] = SPLITS) -> Dataset:
    """Read the labels of these splits and match them with the files, without opening any.

    A labelled file that is missing or unreadable and a file without a label are rejects.

    Raises:
        DataError: the folder or a label file can't be used; names all faults at once.
    """
    _require_folder(root)
    findings = _Findings()
    for split in splits:
        _read_split(root, split, findings)
    if findings.faults:
        raise DataError(_list_faults(root, findings.faults))
    return Dataset(
        root,
        tuple(sorted(findings.clips, key=lambda clip: (SPLITS.index(clip.split), clip.name))),
        tuple(findings.rejects),
        tuple(findings.warnings),
    )


def find_media(folder: Path) -> list[Path]:
    """Return the folder's own media files by their suffix, sorted; no folders, no hidden files.

    Raises:
        DataError: there is no such folder.
    """
    _require_folder(folder)
    return [folder / name for name in _list_media(folder)]


def read_submission_rows(root: Path) -> list[str] | None:
    """Return the names that the submission must list, in its order, or None if nothing says so.

    Raises:
        DataError: the file can't be read; names all faults at once.
    """
    path = root / SUBMISSION_FILE
    if not path.exists():
        return None
    table = read_names(path)
    if table.faults:
        raise DataError(_list_faults(root, table.faults))
    return [row.name for row in table.rows]


def _list_media(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if posixpath.splitext(entry.name)[1].lower() in MEDIA_SUFFIXES
            and not entry.name.startswith(".")
            and not _is_folder(entry)
        ]
    return sorted(names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link in a circle; opening it will say so


def _require_folder(folder: Path) -> None:
    try:
        mode = folder.stat().st_mode
        if stat.S_ISDIR(mode):
            with os.scandir(folder):
                return
    except OSError as error:
        raise DataError(f"can't open the folder {folder}: {error.strerror}") from error
    raise DataError(f"not a folder: {folder}; give the folder that holds the videos")


def _read_split(root: Path, split: Split, findings: _Findings) -> None:
    """Add one split's clips, rejects, warnings and faults."""
    folder = root / f"{split}set"
    if not folder.is_dir():
        findings.faults.append(f"{split}set/: no such folder; put the split's videos there")
    table = _read_split_labels(root, split)
    findings.faults += table.faults
    findings.warnings += table.warnings
    if not folder.is_dir() or not table.rows:
        return
    _require_folder(folder)
    clips, rejects = _match_files(split, folder, table.rows)
    findings.clips += clips
    findings.rejects += rejects
    if not clips:
        findings.faults.append(
            f"{split}set/: none of the {len(table.rows)} labelled files can be read, "
            f"{table.rows[0].name!r}: {rejects[0].reason}"
        )


def _read_split_labels(root: Path, split: Split) -> LabelFile:
    """Read the split's label file in either spelling; two of them must say the same."""
    names = [f"{split}set_label.txt", f"{split}_label.txt"]
    tables = [read_labels(root / name) for name in names if os.path.lexists(root / name)]
    if not tables:
        fault = f"{names[0]}: no such file (nor {names[1]}); it lists video_name,target"
        return LabelFile(names[0], faults=[fault])
    if len(tables) == 1:
        return tables[0]
    first, second = tables
    if not first.faults and not second.faults and _as_mapping(first) != _as_mapping(second):
        first.faults.append(f"{names[0]} and {names[1]} differ; keep the one that is right")
    first.faults += second.faults
    return first


def _as_mapping(table: LabelFile) -> dict[str, int]:
    return {row.name: row.target for row in table.rows}


def _match_files(
    split: Split, folder: Path, rows: list[LabelRow]
) -> tuple[list[Clip], list[Reject]]:
    """Pair labels with files; a name in another Unicode form finds its file all the same."""
    clips, rejects = [], []
    media = _list_media(folder)
    by_form = {unicodedata.normalize("NFC", name): name for name in media}
    labelled = set()
    for row in rows:
        name = row.name
        reason = _find_file_fault(f"{folder}/{name}")
        if reason == "no such file":
            name = by_form.get(unicodedata.normalize("NFC", name), name)
            reason = _find_file_fault(f"{folder}/{name}")
        labelled.add(posixpath.normpath(name))
        if reason is None:
            clips.append(Clip(split, row.name, folder / name, row.target))
        else:
            rejects.append(Reject(split, row.name, reason))
    unlabelled = (name for name in media if name not in labelled)
    rejects += [Reject(split, _to_printable(name), "no label") for name in unlabelled]
    return clips, rejects


def _find_file_fault(path: str) -> str | None:
    """Return why a file can't be read, as far as the file system says, or None."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116, a Path for each of 10,000 files takes long
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except OSError:
        return "unreadable"
    if stat.S_ISDIR(mode):
        return "a folder, not a file"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    if not os.access(path, os.R_OK, effective_ids=_EFFECTIVE_IDS):
        return "unreadable"
    return None


def _to_printable(name: str) -> str:
    """Return a file's name without the surrogates that stand for bytes outside of UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _list_faults(root: Path, faults: list[str]) -> str:
    lines = faults[:MAX_LISTED_FAULTS]
    if len(faults) > len(lines):
        lines.append(f"and {len(faults) - len(lines)} more")
    count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
    return "\n  ".join([f"the data in {root} can't be used, {count}:", *lines])
