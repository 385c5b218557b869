"""Predict: calibrated probabilities of fake for a folder of videos, as a submission."""

import csv
import io
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from trainer.calibration import apply_temperature
from trainer.dataset import SUBMISSION_FILE, Reject, find_media, read_submission_rows
from trainer.durable import replacing, require_writable
from trainer.errors import DataError, TrainerError
from trainer.folder import LoadedDetector, load_detector
from trainer.scoring import Logits, score_files

# Shape suffix: K classes.

SUBFOLDERS = ("valset", "testset", "trainset")
"""Where an FFDV root may keep a video, after the root itself."""
MAX_PASSES = 1000
MAX_REASONS = 10

Progress = Callable[[int, int], None]
"""Told how many clips are done, and of how many."""


@dataclass(frozen=True)
class PredictReport:
    """What a prediction did."""

    rows: int
    """Of the submission."""
    unreadable: tuple[Reject, ...]
    """The clips that got the prior, in the submission's order, each once."""
    num_prior: int
    """Of the rows, those that got the prior."""
    prior: float


@dataclass(frozen=True)
class _Row:
    """A name of the submission and the file that it means, if there is one."""

    name: str
    path: Path | None


def predict(
    model_dir: Path,
    data: Path,
    out: Path,
    *,
    tta: int = 1,
    device: torch.device,
    progress: Progress | None = None,
    num_processes: int | None = None,
) -> PredictReport:
    """Write `video_name,y_pred` for every video of `data`: its calibrated probability of fake.

    The rows are those of `data/prediction.txt.csv` in its order, else the videos of `data/valset`,
    else those of `data` itself, sorted. `tta` passes over shifted windows, at other levels, are
    averaged; the temperature was fitted on a single pass, so with more the probabilities are a
    little less well calibrated. A file that can't be read gets the prior. Equal inputs give equal
    outputs.

    Raises:
        ModelError: the model folder lacks a file, or one is damaged.
        DataError: there is nothing to predict, no file could be read, or `out` can't be written.
    """
    if not 1 <= tta <= MAX_PASSES:
        raise TrainerError(f"tta must be from 1 to {MAX_PASSES} passes, got {tta}")
    require_writable(out)
    detector = load_detector(model_dir, device)
    rows = _find_rows(data)
    paths = list(dict.fromkeys(row.path for row in rows if row.path is not None))
    num_processes = num_processes or len(os.sched_getaffinity(0))
    scores = predict_probs(detector, paths, tta=tta, num_processes=num_processes, progress=progress)
    outcomes = ["no such file" if row.path is None else scores[row.path] for row in rows]
    unreadable = {
        row.name: Reject("", _to_printable(row.name), outcome)
        for row, outcome in zip(rows, outcomes, strict=True)
        if isinstance(outcome, str)
    }
    num_prior = sum(isinstance(x, str) for x in outcomes)
    if num_prior == len(rows):
        _refuse_all(data, list(unreadable.values()))
    _write_submission(out, rows, [detector.prior if isinstance(x, str) else x for x in outcomes])
    return PredictReport(len(rows), tuple(unreadable.values()), num_prior, detector.prior)


def predict_probs(
    detector: LoadedDetector,
    paths: Sequence[Path],
    *,
    tta: int = 1,
    num_processes: int = 0,
    progress: Progress | None = None,
) -> dict[Path, float | str]:
    """Return the calibrated probability of fake of each file, or why it has none.

    Decodes in as many processes, in none but this one by default: other processes outlive a file
    that kills its decoder, but a script that starts them needs `if __name__ == "__main__":`.
    """
    scores: dict[Path, float | str] = {}
    for some in score_files(detector, paths, tta=tta, num_processes=num_processes):
        for path, logits_K in some.items():
            scores[path] = (
                logits_K if isinstance(logits_K, str) else _probability(logits_K, detector)
            )
        if progress is not None:
            progress(len(scores), len(paths))
    return scores


def _find_rows(data: Path) -> list[_Row]:
    """Return the submission's rows.

    Raises:
        DataError: there is no such folder, no video in it, or its submission file is faulty.
    """
    media = find_media(data)
    names = read_submission_rows(data)
    if names is not None:
        if not names:
            raise DataError(f"{data / SUBMISSION_FILE} lists no video: add rows, or remove it")
        folders = [data / name for name in SUBFOLDERS if (data / name).is_dir()]
        return [_Row(name, path) for name, path in _match(names, [data, *folders])]
    if (data / "valset").is_dir():
        media = find_media(data / "valset")
    if not media:
        raise DataError(f"no video in {data}; give a folder of videos, or one with valset/")
    return [_Row(path.name, path) for path in media]


def _refuse_all(data: Path, unreadable: Sequence[Reject]) -> NoReturn:
    """Refuse a submission that would hold the prior alone.

    Raises:
        DataError: with the first reasons.
    """
    reasons = [f"  {reject.name}: {reject.reason}" for reject in unreadable[:MAX_REASONS]]
    if len(unreadable) > MAX_REASONS:
        reasons.append(f"  and {len(unreadable) - MAX_REASONS} more")
    head = f"none of the videos to predict can be read, so there is no submission (in {data}):"
    raise DataError("\n".join([head, *reasons]))


def _match(names: Sequence[str], folders: Sequence[Path]) -> Iterator[tuple[str, Path | None]]:
    """Pair names with files, also with one whose name is in another Unicode form."""
    by_form: dict[str, Path] = {}
    for folder in reversed(folders):
        by_form |= {unicodedata.normalize("NFC", path.name): path for path in find_media(folder)}
    for name in names:
        # os.path, for it calls a name that is too long no file
        exact = (folder / name for folder in folders if os.path.isfile(folder / name))  # noqa: PTH113
        yield name, next(exact, by_form.get(unicodedata.normalize("NFC", name)))


def _probability(logits_K: Logits, detector: LoadedDetector) -> float:
    """Return the calibrated P(fake) of a clip."""
    return float(apply_temperature(logits_K[None], detector.temperature)[0, 1])


def _write_submission(out: Path, rows: Sequence[_Row], probs: Sequence[float]) -> None:
    """Write the submission at once, with all digits, so that confident clips don't become ties."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["video_name", "y_pred"])
    table.writerows((row.name, repr(prob)) for row, prob in zip(rows, probs, strict=True))
    try:
        with replacing(out) as fresh:
            fresh.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise DataError(f"can't write {out}: {error.strerror}") from error


def _to_printable(name: str) -> str:
    """Return a name without the surrogates that stand for bytes outside of UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
