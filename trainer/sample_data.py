"""A small labelled set of talking videos, made and not recorded, for a first try without data."""

import csv
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from trainer.decode import open_pool, submit
from trainer.errors import DataError
from trainer.sample_video import PlannedClip, render_clip

MIN_CLIPS = 8
"""Fewer can't put both classes into both splits more than once."""

_TRAIN_SHARE = 0.7
_README = """\
# Sample data: synthetic, not recorded

No person speaks in these videos. Every face is drawn and every voice computed, to try melsearch
without data of your own. A detector trained on them knows nothing about real deepfakes, and a
figure measured on them says nothing about one.

Made by `melsearch sample-data OUT --clips {num_clips} --seed {seed}`: the same command of the
same version makes the same labels and the same sound again.

- `trainset/`, `valset/`: {num_train} and {num_val} clips, 1.5 to 3 s, H.264 and AAC.
- `trainset_label.txt`, `valset_label.txt`: `video_name,target`; target 1 = fake.
- `prediction.txt.csv`: `video_name,y_pred`; the rows of a submission, each still 0.5.

The voice is nonsense syllables by source-filter synthesis: glottal pulses, moving formants,
noise for consonants and breath. A bona fide voice tends to have jitter, shimmer, breath, a moving
pitch, a room around it and unsmoothed detail; a spoof tends to a flat pitch, a spectrum smoothed
over time and phases guessed by Griffin-Lim as in a vocoder. How strong each of them is, is drawn
clip by clip from distributions that overlap, so no detector gets all of them right. Duration,
level, noise, timbre, room and face are drawn alike for both classes.
"""


def render_sample_data(
    out: Path,
    *,
    num_clips: int,
    seed: int,
    num_processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render a labelled set of synthetic talking videos in the FFDV layout into `out`.

    Labels and sound are a function of `num_clips` and `seed` alone. `out` appears when all of it
    is done, so an interrupted rendering leaves no half set behind.

    Args:
        num_processes: by default one for each usable core; 1 renders in this process.
        progress: is called with the number of clips done and of all clips.

    Raises:
        DataError: an argument is out of range, `out` is taken, or it can't be written.
    """
    processes = len(os.sched_getaffinity(0)) if num_processes is None else num_processes
    try:
        _check(out, num_clips, seed, processes)
        plan = _plan_clips(num_clips, seed)
        with _staging(out) as folder:
            _render_clips(plan, folder, processes, progress or (lambda done, total: None))
            _write_tables(plan, folder, num_clips, seed)
            _publish(folder, out)
    except OSError as error:
        raise DataError(f"can't render sample data into {out}: {error}") from error


def _check(out: Path, num_clips: int, seed: int, num_processes: int) -> None:
    faults = []
    if num_clips < MIN_CLIPS:
        faults.append(
            f"the number of clips must be at least {MIN_CLIPS}, so that both splits have both"
            f" classes, got {num_clips}"
        )
    if seed < 0:
        faults.append(f"the seed must be 0 or more, got {seed}")
    if num_processes < 1:
        faults.append(f"the number of processes must be at least 1, got {num_processes}")
    if out.exists() and not out.is_dir():
        faults.append(f"{out} is a file, give a folder that is new or empty")
    elif out.is_dir() and any(out.iterdir()):
        faults.append(f"{out} is not empty, give a folder that is new or empty")
    if faults:
        raise DataError("; ".join(faults))


def _plan_clips(num_clips: int, seed: int) -> list[PlannedClip]:
    """Return the clips of both splits, half of each fake, in the order of their names."""
    rng = np.random.default_rng([seed, num_clips])
    num_train = round(_TRAIN_SHARE * num_clips)
    plan = []
    for split, first, size in (
        ("trainset", 0, num_train),
        ("valset", num_train, num_clips - num_train),
    ):
        targets = rng.permutation(np.arange(size) % 2).tolist()
        for index, target in enumerate(targets, start=first):
            digest = hashlib.sha256(f"{seed} {num_clips} {index}".encode()).hexdigest()
            plan.append(PlannedClip(split, f"{digest[:32]}.mp4", target, (seed, index)))
    return sorted(plan, key=lambda clip: (clip.split, clip.name))


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Give a folder on the file system of `out`; what is left in it at the end is removed."""
    parent = out if out.exists() else out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".sample-data-", dir=parent))
    try:
        folder = work / "set"
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(folder: Path, out: Path) -> None:
    """Move the finished set to `out`: in one step if new, else the label files last."""
    if not out.exists():
        folder.rename(out)
        return
    for entry in sorted(folder.iterdir(), key=lambda path: path.name.endswith("_label.txt")):
        entry.rename(out / entry.name)


def _render_clips(
    plan: list[PlannedClip], folder: Path, processes: int, progress: Callable[[int, int], None]
) -> None:
    for split in ("trainset", "valset"):
        (folder / split).mkdir()
    progress(0, len(plan))
    if processes == 1:
        for done, clip in enumerate(plan, start=1):
            render_clip(clip, folder)
            progress(done, len(plan))
        return
    with _started_processes(processes) as pool:
        futures = [submit(pool, render_clip, clip, folder) for clip in plan]
        for done, future in enumerate(as_completed(futures), start=1):
            _raise_failure(future)
            progress(done, len(plan))


@contextmanager
def _started_processes(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Give a pool that drops what it has not begun when the body fails."""
    pool = open_pool(processes)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _raise_failure(future: "Future[None]") -> None:
    try:
        future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a rendering process was killed, for want of memory perhaps: use fewer processes"
        ) from error


def _write_tables(plan: list[PlannedClip], folder: Path, num_clips: int, seed: int) -> None:
    train = [clip for clip in plan if clip.split == "trainset"]
    val = [clip for clip in plan if clip.split == "valset"]
    for split, clips in (("trainset", train), ("valset", val)):
        rows = [(clip.name, str(clip.target)) for clip in clips]
        _write_rows(folder / f"{split}_label.txt", "target", rows)
    _write_rows(folder / "prediction.txt.csv", "y_pred", [(clip.name, "0.5") for clip in val])
    readme = _README.format(num_clips=num_clips, seed=seed, num_train=len(train), num_val=len(val))
    (folder / "README.md").write_text(readme, encoding="utf-8")


def _write_rows(path: Path, column: str, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("video_name", column), *rows])
