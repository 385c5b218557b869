"""`prepare`: the waveform cache of a data folder, and what was found on the way."""

from collections import Counter
from pathlib import Path

from rich.table import Table

from search.console import make_console, print_plain
from search.home import Home
from search.progress import show_progress
from trainer.prepare import PrepareReport, prepare


def prepare_data(sample_rate: int, data: Path, home: Home) -> PrepareReport:
    """Build the waveform cache of a data folder, or find it built.

    Raises:
        DataError: the folder or its labels can't be used.
    """
    with show_progress("decode") as progress:
        return prepare(data, home.cache, sample_rate=sample_rate, progress=progress)


def show_prepare_report(report: PrepareReport) -> None:
    """Print clips, hours and classes of each split, the rejects by reason, and the warnings."""
    table = Table("split", "clips", "hours", "real", "fake", box=None, header_style="dim")
    for split, summary in report.splits.items():
        table.add_row(
            split,
            str(summary.num_clips),
            f"{summary.hours:.2f}",
            str(summary.num_real),
            str(summary.num_fake),
        )
    console = make_console()
    console.print(table)
    for reason, number in Counter(reject.reason for reject in report.rejects).most_common():
        names = [reject.name for reject in report.rejects if reject.reason == reason]
        more = ", ..." if number > 3 else ""
        print_plain(console, f"rejected {number}: {reason} ({', '.join(names[:3])}{more})")
    for warning in report.warnings:
        print_plain(console, f"warning: {warning}")
    built = "unchanged" if report.reused else "built"
    print_plain(console, f"cache {built}: {report.cache}, data {report.data_fingerprint}")
