"""The page of the recipes' figures: a table, what averages and a temperature do, and a picture."""

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.recipes import STEPS, Recipe
from trainer.calibration import cross_calibrate
from trainer.intervals import Interval, estimate, estimate_difference, words_of
from trainer.measures import MEASURES, Measure, to_log_odds, to_scores
from trainer.objectives import Objective
from trainer.page import to_svg
from trainer.prior import prior_log_odds

# Shape suffixes: N clips, K classes, S seeds.

COLOURS = {"audio": "tab:blue", "video": "tab:green", "both": "tab:red"}
METRICS: tuple[Objective, ...] = ("auc", "eer", "accuracy")
PICTURE = "images/detector.svg"
"""Beside the page."""


@dataclass(frozen=True)
class Row:
    """What a recipe came to, over all seeds."""

    recipe: Recipe
    seeds: tuple[int, ...]
    """(S,)."""
    log_odds_NS: NDArray[np.float64]
    seconds: float
    """Of training, a seed."""


def to_markdown(
    rows: Sequence[Row],
    targets_N: NDArray[np.int64],
    tells_N: NDArray[np.bool_],
    epochs: int,
    share_of_fakes: float,
) -> str:
    """Return the page; `tells_N` are the clips whose sound tells the label.

    The share is that of the training clips.
    """
    auc = _of_seeds(MEASURES["auc"])
    in_bf16 = [str(x.recipe.number) for x in rows if x.recipe.config.precision == "bf16"]
    lines = [
        "# What each step is worth",
        "",
        f"{len(rows)} of {len(STEPS)} recipes from random weights, each building on another one:"
        f" {epochs} epochs, scored after the last one on all {len(targets_N)} validation clips."
        " Means over the seeds; in brackets 95 % intervals over the clips, not over trainings:"
        " another seed may move a row as far."
        f" Computed in bf16: {', '.join(in_bf16) or 'none'}; in fp32 all others, as bf16 is slow on"
        " a CPU without AVX512-BF16. The minutes are of whichever machine trained them,"
        " beside whatever else it did."
        f" {os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}.",
        "",
        "`python -m benchmarks.detector DATA --out docs/detector.md` trains what is missing.",
        "",
        "Where the sound tells: without the fakes whose sound is real,"
        f" {np.count_nonzero(tells_N)} clips. Gained: AUC over the row in `on`, of the seeds that"
        " both have. The recipes were chosen while looking at these very clips, so the later rows"
        " flatter.",
        "",
        f"![AUC of each recipe, with its interval]({PICTURE})",
        "",
        "| | on | recipe | AUC | EER | accuracy | AUC where the sound tells | gained | seeds"
        " | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    before = {row.recipe.number: row for row in rows}
    for row in rows:
        cells = [_words(_of_seeds(MEASURES[x]), row.log_odds_NS, targets_N) for x in METRICS]
        cells.append(_words(auc, row.log_odds_NS[tells_N], targets_N[tells_N]))
        gained = _gained(row, before.get(row.recipe.on), targets_N)
        cells.append(words_of(gained) if gained else "")
        cells += [", ".join(map(str, row.seeds)), f"{row.seconds / 60:.1f}"]
        head = f"| {row.recipe.number} | {row.recipe.on or ''} | {row.recipe.name}"
        lines.append(f"{head} | {' | '.join(cells)} |")
    for members in _ensembles(rows):
        together_N = np.concatenate([row.log_odds_NS for row in members], axis=1).mean(axis=1)
        cells = [_words(MEASURES[x], together_N, targets_N) for x in METRICS]
        cells.append(_words(MEASURES["auc"], together_N[tells_N], targets_N[tells_N]))
        numbers = " and ".join(str(row.recipe.number) for row in members)
        lines.append(f"|  | {numbers} | all seeds, averaged | {' | '.join(cells)} | | | |")
    lines += ["", *_calibration(rows[-1], targets_N, share_of_fakes)]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], targets_N: NDArray[np.int64]) -> bytes:
    """Return the recipes' AUC with intervals as SVG; what none builds on is hollow."""
    figure = Figure(figsize=(8, 0.4 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        auc = estimate(_of_seeds(MEASURES["auc"]), row.log_odds_NS, targets_N)
        axes.errorbar(
            auc.value,
            place,
            xerr=[[auc.value - auc.low], [auc.high - auc.value]],
            fmt="o",
            capsize=3,
            color=COLOURS[row.recipe.config.modality],
            markerfacecolor=None if STEPS[row.recipe.number - 1].is_built_on else "white",
        )
        axes.annotate(f"{auc.value:.3f}", (auc.value, place), (0, 5), textcoords="offset points")
    names = [f"{row.recipe.name} ({row.recipe.number})" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_xlabel("AUC on the validation clips")
    axes.grid(axis="x", alpha=0.3)
    return to_svg(figure)


def _ensembles(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield the rows whose logits are averaged: of sound alone, of both, and both of these."""
    built_on = [row for row in rows if STEPS[row.recipe.number - 1].is_built_on]
    last = {row.recipe.config.modality: row for row in built_on}
    for row in last.values():
        yield [row]
    if len(last) > 1:
        yield list(last.values())


def _calibration(row: Row, targets_N: NDArray[np.int64], share_of_fakes: float) -> list[str]:
    """Return what a temperature does to the last row, on clips that it was not fitted on."""
    metrics: tuple[Objective, ...] = ("nll", "cllr", "ece", "auc")
    prior = prior_log_odds(row.recipe.config, share_of_fakes)
    kinds: dict[str, list[NDArray[np.float64]]] = {"before": [], "after": []}
    for log_odds_N in row.log_odds_NS.T:
        logits_NK = np.stack([np.zeros_like(log_odds_N), log_odds_N], axis=1)
        kinds["before"].append(log_odds_N)
        kinds["after"].append(to_log_odds(cross_calibrate(logits_NK, targets_N)))
    lines = [
        "A temperature, fitted on one half of these clips and measured on the other, changes the"
        " last one so (AUC moves only where the two halves' temperatures differ):",
        "",
        f"| calibration | {' | '.join(metrics)} |",
        "|---|---|---|---|---|",
    ]
    for kind, columns in kinds.items():
        log_odds_NS = np.stack(columns, axis=1)
        cells = [
            _words(_of_seeds(MEASURES[x]), to_scores(x, log_odds_NS, prior), targets_N)
            for x in metrics
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def _gained(row: Row, before: Row | None, targets_N: NDArray[np.int64]) -> Interval | None:
    """Return how much better the AUC is than before, of the seeds that both have."""
    if before is None or not (both := set(row.seeds) & set(before.seeds)):
        return None
    columns = [one.log_odds_NS[:, [seed in both for seed in one.seeds]] for one in (row, before)]
    return estimate_difference(_of_seeds(MEASURES["auc"]), *columns, targets_N)


def _words(measure: Measure, log_odds: NDArray[np.float64], targets_N: NDArray[np.int64]) -> str:
    return words_of(estimate(measure, log_odds, targets_N))


def _of_seeds(measure: Measure) -> Measure:
    """Return the mean over seeds of a metric, for log-odds (N, S)."""
    return lambda log_odds_NS, targets_N: float(
        np.mean([measure(log_odds_N, targets_N) for log_odds_N in log_odds_NS.T])
    )
