"""`evaluate`: what a detector is worth on a labelled set, as a table and as a page."""

from pathlib import Path
from typing import Literal

from rich.table import Table

from search.console import make_console, print_plain
from search.progress import show_progress
from trainer.dataset import SPLITS, Split
from trainer.device import choose_device
from trainer.evaluate import Evaluation, Group, evaluate
from trainer.evaluation_page import EVALUATION_FOLDER, PAGE_FILE, write_evaluation
from trainer.intervals import words_of
from trainer.known_clips import describe_known

MOST_NAMED = 5
"""Of the files that can't be read."""


def evaluate_model(
    model: Path, data: Path, out: Path, split: Split | Literal["all"], tta: int, device: str
) -> None:
    """Score a labelled set, print every metric with its interval, and write the page.

    Raises:
        ModelError: the model folder lacks a file, or one is damaged.
        DataError: the data can't be used, or `out` is taken by something else.
    """
    EVALUATION_FOLDER.check(out)
    splits = SPLITS if split == "all" else (split,)
    with show_progress("evaluate") as progress:
        found = evaluate(
            model, data, splits, tta=tta, device=choose_device(device), progress=progress
        )
    with show_progress("draw") as progress:
        write_evaluation(found, out, f"{model.name} on {data.name}, {split}", progress)
    _show(found)
    print_plain(make_console(), f"page: {out / PAGE_FILE}")


def _show(found: Evaluation) -> None:
    console = make_console()
    num_fake = int(found.targets_N.sum())
    print_plain(console, f"{len(found.clips) - num_fake} real clips, {num_fake} fakes")
    if told := describe_known(found.known, len(found.clips)):
        print_plain(console, told)
    for reject in found.rejects[:MOST_NAMED]:
        print_plain(console, f"left out: {reject.name}: {reject.reason}")
    if len(found.rejects) > MOST_NAMED:
        print_plain(console, f"left out: {len(found.rejects) - MOST_NAMED} more")
    table = Table("metric", "95 % interval", box=None, header_style="dim")
    for name, interval in found.metrics.items():
        table.add_row(name, words_of(interval))
    for name, (before, after) in found.calibration.items():
        table.add_row(f"{name} before calibration", f"{before:.3f}, {after:.3f} after")
    for group in found.groups:
        head = f"{group.column} {group.value} ({group.num_real} real, {group.num_fake} fake)"
        table.add_row(head, _describe(group))
    console.print(table)


def _describe(group: Group) -> str:
    """Return a group's metrics, and whose other class those that need both are against."""
    words = ", ".join(f"{name} {words_of(x)}" for name, x in group.metrics.items())
    is_against_others = "auc" in group.metrics and not (group.num_real and group.num_fake)
    against = f" against {group.against}" if is_against_others else ""
    return f"{words}{against}" if words else "too few clips"
