"""An evaluation as a folder: figures for programs, scores of each clip, and a page for people."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any, cast

from trainer.errors import DataError
from trainer.evaluate import Evaluation, Progress
from trainer.evaluation_plots import draw_curves, draw_mistake, worst_mistakes
from trainer.folder import without_nan
from trainer.intervals import LEVEL, words_of
from trainer.known_clips import describe_known
from trainer.measures import to_probs
from trainer.out_folder import OutFolder
from trainer.page import to_image, to_page, to_table

PAGE_FILE, METRICS_FILE, SCORES_FILE = "index.html", "metrics.json", "scores.csv"
_FILES = frozenset({PAGE_FILE, METRICS_FILE, SCORES_FILE})
EVALUATION_FOLDER = OutFolder("evaluation", _FILES, _FILES, DataError)
MOST_MISTAKES = 12


def write_evaluation(
    evaluation: Evaluation,
    out: Path,
    title: str,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write the folder beside its place and move it there; an older evaluation is replaced.

    Raises:
        DataError: the place is taken by something else, or can't be written.
    """
    with EVALUATION_FOLDER.writing(out) as fresh:
        figures = json.dumps(to_figures(evaluation), indent=2, ensure_ascii=False)
        (fresh / METRICS_FILE).write_text(figures + "\n", encoding="utf-8")
        scores = _to_csv(evaluation).encode("utf-8", "surrogateescape")
        (fresh / SCORES_FILE).write_bytes(scores)
        (fresh / PAGE_FILE).write_bytes(to_page(title, _show(evaluation, progress)))


def to_figures(evaluation: Evaluation) -> dict[str, Any]:
    """Return all figures as JSON can hold them; a metric that is undefined is null."""
    num_fake = int(evaluation.targets_N.sum())
    figures = {
        "num_clips": {"real": len(evaluation.clips) - num_fake, "fake": num_fake},
        "known_clips": evaluation.known,
        "rejects": [asdict(reject) for reject in evaluation.rejects],
        "level": LEVEL,
        "temperature": evaluation.detector.temperature,
        "metrics": {
            name: None if interval is None else asdict(interval)
            for name, interval in evaluation.metrics.items()
        },
        "calibration": {
            name: {"before": before, "after": after}
            for name, (before, after) in evaluation.calibration.items()
        },
        "groups": [asdict(group) for group in evaluation.groups],
    }
    return cast("dict[str, Any]", without_nan(figures))


def _to_csv(evaluation: Evaluation) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["split", "video_name", "target", "log_odds", "p_fake"])
    log_odds_N = evaluation.log_odds_N
    for clip, log_odds, prob in zip(
        evaluation.clips, log_odds_N.tolist(), to_probs(log_odds_N).tolist(), strict=True
    ):
        table.writerow([clip.split, clip.name, clip.target, repr(log_odds), repr(prob)])
    return text.getvalue()


def _show(evaluation: Evaluation, progress: Progress) -> Iterator[str]:
    yield from _describe_clips(evaluation)
    yield (
        f"<p>Calibrated; in brackets the {LEVEL:.0%} interval over clips like these."
        " On other speakers, attacks or recordings expect less.</p>"
    )
    yield to_table(["metric", ""], ([k, words_of(x)] for k, x in evaluation.metrics.items()))
    if 0 < evaluation.targets_N.sum() < len(evaluation.clips):
        yield to_image(draw_curves(evaluation), "svg+xml", "ROC, DET and reliability")
    yield to_table(
        ["calibration", "before", "after"],
        ([k, f"{x:.4f}", f"{y:.4f}"] for k, (x, y) in evaluation.calibration.items()),
    )
    yield from _show_groups(evaluation)
    yield from _show_mistakes(evaluation, progress)


def _describe_clips(evaluation: Evaluation) -> Iterator[str]:
    if told := describe_known(evaluation.known, len(evaluation.clips)):
        yield f"<p class='warning'>{told}.</p>"
    num_fake = int(evaluation.targets_N.sum())
    yield f"<p>{len(evaluation.clips) - num_fake} real clips, {num_fake} fakes.</p>"
    if evaluation.rejects:
        yield f"<p>{len(evaluation.rejects)} count in no figure:</p>"
        yield to_table(["clip", "reason"], ([x.name, x.reason] for x in evaluation.rejects))


def _show_groups(evaluation: Evaluation) -> Iterator[str]:
    if not evaluation.groups:
        return
    names = list(dict.fromkeys(name for group in evaluation.groups for name in group.metrics))
    yield "<h2>By group</h2>"
    yield to_table(
        ["group", "real", "fake", "auc and eer against", *names],
        (
            [
                f"{group.column}: {group.value}",
                str(group.num_real),
                str(group.num_fake),
                group.against,
                *(
                    words_of(group.metrics[x]) if x in group.metrics else "too few clips"
                    for x in names
                ),
            ]
            for group in evaluation.groups
        ),
    )


def _show_mistakes(evaluation: Evaluation, progress: Progress) -> Iterator[str]:
    probs_N = to_probs(evaluation.log_odds_N)
    mistakes = worst_mistakes(evaluation, MOST_MISTAKES)
    yield "<h2>The worst mistakes</h2>" if mistakes else "<p>No clip is on the wrong side.</p>"
    for place, number in enumerate(mistakes, 1):
        clip = evaluation.clips[number]
        was = "a fake" if clip.target else "bona fide"
        yield "<figure>" + to_image(draw_mistake(evaluation, number), "png", clip.name)
        yield f"<figcaption>{escape(clip.name)}: {was}, P(fake) {probs_N[number]:.3f}"
        yield "</figcaption></figure>"
        progress(place, len(mistakes))
