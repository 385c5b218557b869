"""What the commands print for people, on the standard output."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from search.config import StudyConfig
from search.console import make_console, print_plain
from search.create import read_targets, require_both_classes
from search.home import Home
from search.space import describe
from search.status import read_status, render_status
from search.study import Study
from trainer.objectives import CALIBRATED
from trainer.splits import require_halves

if TYPE_CHECKING:
    from trainer.predict import PredictReport


def show_check(config: StudyConfig, data: Path | None) -> None:
    """Print what a study would search; changes nothing.

    Raises:
        DataError: the data can't train a detector.
    """
    console = make_console()
    print_plain(
        console, f"study {config.name}: {config.trials} trials, objective {config.objective}"
    )
    print_plain(
        console,
        f"up to {config.max_epochs} epochs a trial, at most "
        f"{config.trials * config.max_epochs} in all; sampler {config.sampler.name}, "
        f"pruner {config.pruner.name}",
    )
    table = Table("parameter", "values", "only while", box=None, header_style="dim")
    for row in describe(config):
        table.add_row(*row)
    console.print(table)
    baseline = config.baseline_config()
    print_plain(
        console,
        f"trainings: {config.trials}, the first is the baseline: {baseline.backbone}, "
        f"{baseline.optimizer} lr {baseline.lr:g}, frontend {baseline.frontend}, "
        f"{baseline.epochs} epochs",
    )
    if data is None:
        print_plain(console, "data: not named, give --data DATA to count them")
        return
    targets_of = read_targets(data)
    for split, targets in targets_of.items():
        num_real, num_fake = targets.count(0), targets.count(1)
        print_plain(
            console, f"data, {split}: {len(targets)} clips, {num_real} real, {num_fake} fake"
        )
    require_both_classes(targets_of)
    require_halves(targets_of["val"], config.holdout)


def show_outcome(study: Study, home: Home, spent: bool) -> None:
    """Print how a search on this machine ended, and what to do next."""
    console = make_console()
    status = read_status(study)
    console.print(render_status(status))
    folder = home.artifacts.study_folder(study.name)
    print_plain(console, f"\nfiles: {folder} (logs, checkpoints)")
    if not spent:
        print_plain(console, "stopped; the same command goes on from here")
        return
    print_plain(console, "dashboard: melsearch dashboard")
    print_plain(console, f"next: melsearch export {study.name} -o best.toml")


def show_metrics(metrics: dict[str, Any], out: Path) -> None:
    """Print the figures of a final training."""
    console = make_console()
    figures = metrics["validation"]
    counts = metrics["num_clips"]
    words = ", ".join(f"{k} {figures[k]:.4f}" for k in ("accuracy", "auc", "eer"))
    print_plain(console, f"on {counts['reported']} of {counts['val']} validation clips: {words}")
    before, after = (metrics["calibration"][when] for when in ("before", "after"))
    changes = ", ".join(f"{k} {before[k]:.4f} to {after[k]:.4f}" for k in CALIBRATED)
    temperature = metrics["calibration"]["temperature"]
    print_plain(console, f"calibrated with temperature {temperature:.3f}: {changes}")
    print_plain(console, f"model: {out}")


def show_predict_report(report: "PredictReport", out: Path) -> None:
    """Print how many rows were written, and the files that could not be read."""
    console = make_console()
    for reject in report.unreadable:
        print_plain(console, f"unreadable, given the prior: {reject.name}: {reject.reason}")
    words = f", {report.num_prior} of them with the prior" if report.num_prior else ""
    print_plain(console, f"{report.rows} rows in {out}{words}")
