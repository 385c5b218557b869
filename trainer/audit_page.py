"""An audit as a folder: findings for programs, every clip's shortcuts, and a page for people."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from trainer.audit import ALL, WARN_ABOVE, Audit, Finding
from trainer.errors import DataError
from trainer.intervals import LEVEL, words_of
from trainer.out_folder import OutFolder
from trainer.page import to_image, to_page, to_svg, to_table

PAGE_FILE, FINDINGS_FILE, SHORTCUTS_FILE = "index.html", "audit.json", "shortcuts.csv"
_FILES = frozenset({PAGE_FILE, FINDINGS_FILE, SHORTCUTS_FILE})
AUDIT_FOLDER = OutFolder("audit", _FILES, _FILES, DataError)
NUM_BINS = 30
MOST_ALONE = 10
ADVICE = {
    "duration": "cut or pad clips to one length, or let the detector read windows (not notebook)",
    "level": "bring both classes to one level, or augment with gain (policy spec and up)",
    "silence": "trim the ends of both classes alike, or augment them (policy channel)",
    "bandwidth": "low-pass both classes to the narrower band, or augment with it (policy channel)",
    "file size": "encode both classes by one encoder at one bit rate",
    "construction": "encode both classes by one encoder, container and picture size",
    "order of names": "rename the files at random; no detector reads names, but splits may",
    ALL: "a weak hint in each of several groups; even out the strongest ones",
}


def write_audit(audit: Audit, out: Path, title: str) -> None:
    """Write the folder beside its place and move it there; an older audit is replaced.

    Raises:
        DataError: the place is taken by something else, or can't be written.
    """
    with AUDIT_FOLDER.writing(out) as fresh:
        findings = {
            "how": audit.how,
            "num_clips": len(audit.clips),
            "findings": [asdict(finding) for finding in audit.findings],
            "alone": audit.alone,
            "rejects": [asdict(reject) for reject in audit.rejects],
        }
        text = json.dumps(findings, indent=2, ensure_ascii=False) + "\n"
        (fresh / FINDINGS_FILE).write_text(text, encoding="utf-8", errors="surrogateescape")
        (fresh / SHORTCUTS_FILE).write_bytes(_to_csv(audit).encode("utf-8", "surrogateescape"))
        (fresh / PAGE_FILE).write_bytes(to_page(title, _show(audit)))


def warning_of(finding: Finding) -> str | None:
    """Return what is to be said of a finding that is a shortcut, and what to do."""
    if finding.auc is None or finding.auc.value <= WARN_ABOVE:
        return None
    subject = f"{ALL}, they tell" if finding.group == ALL else f"{finding.group} alone tells"
    return (
        f"{subject} fakes from real clips with an AUC of"
        f" {finding.auc.value:.2f}, most of all {finding.telling}: {ADVICE[finding.group]}"
    )


def auc_words(finding: Finding) -> str:
    """Return a finding's AUC with its interval."""
    return "the same for all clips" if finding.auc is None else words_of(finding.auc)


def _show(audit: Audit) -> Iterator[str]:
    num_fake = sum(clip.target for clip in audit.clips)
    yield (
        f"<p>{len(audit.clips) - num_fake} real clips, {num_fake} fakes. How well the label can be"
        f" told without listening, {escape(audit.how)}: AUC, in brackets its {LEVEL:.0%} interval."
        " 0.5 is nothing; a detector finds what is far above it, and fails where it is missing.</p>"
    )
    for finding in audit.findings:
        if words := warning_of(finding):
            yield f"<p class='warning'>{escape(words)}</p>"
    rows = ([x.group, auc_words(x), x.telling] for x in audit.findings)
    yield to_table(["shortcut", "AUC", "most telling"], rows)
    yield to_image(to_svg(_draw_findings(audit)), "svg+xml", "AUC of each group")
    strongest = max(audit.alone, key=lambda name: audit.alone[name], default=None)
    if strongest is not None:
        yield f"<h2>By itself: {escape(strongest)}</h2>"
        yield to_image(to_svg(_draw_classes(audit, strongest)), "svg+xml", strongest)
        alone = sorted(audit.alone.items(), key=lambda item: -item[1])[:MOST_ALONE]
        yield to_table(["by itself", "AUC"], ([name, f"{auc:.3f}"] for name, auc in alone))
    if audit.rejects:
        yield f"<p>{len(audit.rejects)} were left out:</p>"
        yield to_table(["clip", "reason"], ([x.name, x.reason] for x in audit.rejects))


def _draw_findings(audit: Audit) -> Figure:
    found = [(x.group, x.auc) for x in audit.findings if x.auc is not None][::-1]
    figure = Figure(figsize=(7, 0.4 * len(found) + 0.8), layout="constrained")
    axes = figure.subplots()
    for place, (_, auc) in enumerate(found):
        color = "tab:red" if auc.value > WARN_ABOVE else "tab:blue"
        axes.barh(place, auc.value - 0.5, left=0.5, color=color)
        axes.plot([auc.low, auc.high], [place, place], color="black")
    axes.axvline(WARN_ABOVE, color="tab:red", linestyle=":")
    axes.set_yticks(range(len(found)), [group for group, _ in found])
    axes.set(xlabel="AUC", xlim=(0.3, 1))
    return figure


def _draw_classes(audit: Audit, name: str) -> Figure:
    """Draw how a shortcut is spread in each class."""
    values_N = audit.columns[name]
    is_known_N = np.isfinite(values_N)
    targets_N = np.array([clip.target for clip in audit.clips])
    bins = np.histogram_bin_edges(values_N[is_known_N], NUM_BINS).tolist()
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    for target, label in ((0, "real"), (1, "fake")):
        chosen_N = values_N[is_known_N & (targets_N == target)]
        axes.hist(chosen_N, bins, density=True, alpha=0.6, label=label)
    axes.set(xlabel=name)
    axes.set_yticks([])
    axes.legend()
    return figure


def _to_csv(audit: Audit) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["split", "video_name", "target", *audit.columns])
    columns = [values_N.tolist() for values_N in audit.columns.values()]
    for clip, *values in zip(audit.clips, *columns, strict=True):
        table.writerow([clip.split, clip.name, clip.target, *values])
    return text.getvalue()
