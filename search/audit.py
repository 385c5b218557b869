"""`audit`: what gives a data folder's labels away, as a table and as a page."""

from pathlib import Path

from rich.table import Table

from search.console import make_console, print_plain
from search.errors import ShortcutError
from search.progress import show_progress
from trainer.audit import Audit, audit
from trainer.audit_page import AUDIT_FOLDER, PAGE_FILE, auc_words, warning_of, write_audit


def audit_data(data: Path, out: Path | None, seed: int, fail_above: float | None) -> None:
    """Print how well each group of shortcuts tells the labels, and write the page if wanted.

    Raises:
        DataError: the data can't be used, or `out` is taken by something else.
        ShortcutError: an AUC is above `fail_above`.
    """
    if out is not None:
        AUDIT_FOLDER.check(out)
    with show_progress("audit") as progress:
        found = audit(data, seed=seed, progress=progress)
    _show(found)
    if out is not None:
        write_audit(found, out, f"Audit of {data.name}")
        print_plain(make_console(), f"page: {out / PAGE_FILE}")
    if fail_above is not None and found.worst > fail_above:
        raise ShortcutError(
            f"the labels of {data} can be told without listening with an AUC of {found.worst:.3f},"
            f" and --fail-above allows {fail_above:g}; see the table for what tells them"
        )


def _show(found: Audit) -> None:
    console = make_console()
    num_fake = sum(clip.target for clip in found.clips)
    counts = f"{len(found.clips) - num_fake} real clips, {num_fake} fakes"
    print_plain(console, f"{counts}; {found.how}")
    for reject in found.rejects:
        print_plain(console, f"left out: {reject.name}: {reject.reason}")
    table = Table("shortcut", "AUC (95 %)", "most telling", box=None, header_style="dim")
    for finding in found.findings:
        table.add_row(finding.group, auc_words(finding), finding.telling)
    console.print(table)
    for finding in found.findings:
        if words := warning_of(finding):
            print_plain(console, f"warning: {words}")
