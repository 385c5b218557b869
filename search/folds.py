"""`cross-validate`: a recipe's figures on clips that it never saw, as a table and as a file."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from search.console import make_console, print_plain
from search.final import open_cache, require_backbones
from search.home import Home
from search.progress import show_progress
from search.signals import stop_on_signals
from trainer.device import choose_device
from trainer.durable import replacing, require_writable
from trainer.folds import CrossValidation, cross_validate
from trainer.intervals import Interval, estimate, words_of
from trainer.measures import MEASURES, to_log_odds, to_scores
from trainer.recipe import Recipe


def cross_validate_recipe(
    recipe: Recipe,
    num_folds: int,
    group: str | None,
    out: Path,
    data: Path | None,
    device: str,
    home: Home,
) -> None:
    """Train and score each fold, print every metric with its interval, and write them.

    Raises:
        RecipeError: it names a backbone that timm lacks.
        ContractError: the data are not here.
        DataError: they can't be cut into such folds, or `out` can't be written.
        TrainingStoppedError: by SIGINT or SIGTERM; the same call goes on.
    """
    require_backbones([recipe])
    require_writable(out)
    chosen = choose_device(device)
    cache = open_cache([recipe], data, home)
    work = out.absolute().with_name(f".{out.name}.training")
    stop = stop_on_signals()
    with show_progress("train") as progress:
        found = cross_validate(
            recipe.config,
            cache,
            num_folds,
            group,
            data=data or cache.root,
            work=work,
            device=chosen,
            progress=progress,
            should_stop=stop.is_set,
        )
    figures = _measure(found, num_folds, group)
    with replacing(out) as fresh:
        fresh.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)
    _show(figures)
    print_plain(make_console(), f"figures: {out}")


def _measure(found: CrossValidation, num_folds: int, group: str | None) -> dict[str, Any]:
    log_odds_N, targets_N = to_log_odds(found.logits_NK), found.clips.targets
    metrics = {}
    for name, measure in MEASURES.items():
        scores_N = to_scores(name, log_odds_N, found.prior_log_odds_N)
        metrics[name] = asdict(estimate(measure, scores_N, targets_N))
    folds = []
    for fold in range(num_folds):
        is_in_N = found.folds_N == fold
        folds.append(
            {
                "real": int(np.sum(targets_N[is_in_N] == 0)),
                "fake": int(np.sum(targets_N[is_in_N] == 1)),
                "auc": MEASURES["auc"](log_odds_N[is_in_N], targets_N[is_in_N]),
                "accuracy": MEASURES["accuracy"](log_odds_N[is_in_N], targets_N[is_in_N]),
            }
        )
    return {"group": group, "num_groups": found.num_groups, "metrics": metrics, "folds": folds}


def _show(figures: dict[str, Any]) -> None:
    console = make_console()
    group, num_groups = figures["group"], figures["num_groups"]
    apart = f"no {group} of {num_groups} is in two of them" if group else "cut by clip"
    print_plain(console, f"{len(figures['folds'])} folds, {apart}")
    table = Table("metric", "95 % interval", box=None, header_style="dim")
    for name, interval in figures["metrics"].items():
        table.add_row(name, words_of(Interval(**interval)))
    for number, fold in enumerate(figures["folds"], 1):
        head = f"fold {number} ({fold['real']} real, {fold['fake']} fake)"
        table.add_row(head, f"AUC {fold['auc']:.3f}, accuracy {fold['accuracy']:.3f}")
    console.print(table)
