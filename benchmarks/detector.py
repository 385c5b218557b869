"""Measure what each step from the notebook's recipe to ours is worth, side by side in one run.

Every row changes a few values of the row that it builds on: the one before, but for those that are
measured and not built on. All train from random weights, with the same seeds for as many epochs,
and are scored after their last epoch on the whole validation split: no epoch is picked for its
score. What is done is kept in SCORES, a file for each training, so the same command goes on where
it was, and a row whose values were changed is trained anew. Remove SCORES after a change of code.
With several jobs each training has its share of the cores.

.venv/bin/python -m benchmarks.detector DATA --work build/detector --out docs/detector.md
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from search.progress import show_progress
from trainer.cache import ClipSet, WaveformCache
from trainer.calibration import cross_calibrate
from trainer.config import TrainConfig, notebook_recipe
from trainer.frontend import build_frontend
from trainer.fusion import build_detector
from trainer.inference import predict_logits
from trainer.intervals import Interval, estimate, estimate_difference, words_of
from trainer.loop import fit
from trainer.manifest import find_manifest
from trainer.measures import MEASURES, Measure, to_log_odds
from trainer.model import to_channels_last
from trainer.objectives import Objective
from trainer.page import to_svg
from trainer.prepare import prepare
from trainer.snapshots import load_best

# Shape suffixes: N clips, K classes, S seeds.

COLOURS = {"audio": "tab:blue", "video": "tab:green", "both": "tab:red"}
METRICS: tuple[Objective, ...] = ("auc", "eer", "accuracy")
CPU = torch.device("cpu")
SAMPLE_RATE = 16_000
"""Hz."""


@dataclass(frozen=True)
class Step:
    """One row: what it changes of the row that it builds on."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    is_built_on: bool = True


STEPS = (
    Step("the notebook's recipe, from random weights", {"weights": "none", "precision": "bf16"}),
    Step(
        "windows of the waveform, not a stretched image",
        {
            "frontend": "logmel",
            "augmentation": "none",
            "window_seconds": 2.5,
            "n_fft": 512,
            "hop_length": 160,
            "n_mels": 80,
        },
    ),
    Step(
        "AdamW, a cosine with warm-up, an average of the weights",
        {
            "optimizer": "adamw",
            "weight_decay": 0.02,
            "schedule": "cosine",
            "ema_decay": 0.98,
            "batch_size": 32,
        },
    ),
    Step("a smaller backbone", {"backbone": "resnet10t"}),
    Step("masks, shifts and gain", {"augmentation": "spec", "strength": 0.5}),
    Step("how the phase runs on", {"phase": True}),
    Step(
        "fine high frequencies",
        {"frontend": "logstft", "n_fft": 320, "normalisation": "set"},
        is_built_on=False,
    ),
    Step("rooms, noise, bands and clipping", {"augmentation": "channel"}, is_built_on=False),
    Step("RawBoost, mixup and cutmix", {"augmentation": "full"}, is_built_on=False),
    # The picture's backbone, all depthwise convolutions, is slower in bf16 on a CPU.
    Step("the picture alone", {"modality": "video", "precision": "fp32"}, is_built_on=False),
    Step(
        "picture and sound, side by side",
        {"modality": "both", "fusion": "concat", "precision": "fp32"},
    ),
    Step("a gate between them", {"fusion": "gated"}),
    Step("streams that are missing at times", {"modality_dropout": 0.2}),
    Step("the lag between them", {"synchrony": True}),
    Step("each cue judges alone: a noisy-or", {"fusion": "noisy-or"}),
)
PICTURE = "images/detector.svg"
"""Beside the page."""
FRAME_SIZE = 64
MAX_SEEDS = 16
"""So many are looked for."""


@dataclass(frozen=True)
class Recipe:
    """A step as a training."""

    number: int
    """From 1."""
    on: int
    """The number of the recipe that it builds on; 0 for none."""
    name: str
    config: TrainConfig


@dataclass(frozen=True)
class Row:
    """What a recipe came to, over all seeds."""

    recipe: Recipe
    log_odds_NS: NDArray[np.float64]
    seconds: float
    """Of training, a seed."""


def main() -> None:
    """Train whatever is missing, then write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a folder in the FFDV layout")
    parser.add_argument("--work", type=Path, default=Path("build/detector"))
    parser.add_argument("--scores", type=Path, default=Path("benchmarks/scores"))
    parser.add_argument("--out", type=Path, default=Path("build/detector.md"))
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, nargs="*", help="train only these, counted from 1")
    parser.add_argument("--jobs", type=int, default=1, help="so many trainings at once")
    arguments = parser.parse_args()
    with show_progress("decode") as progress:
        report = prepare(
            arguments.data, arguments.work / "cache", sample_rate=SAMPLE_RATE,
            notebook_images=True, frame_size=FRAME_SIZE, progress=progress,
        )  # fmt: skip
    cache = WaveformCache.open(report.cache)
    seeded = [
        recipe.config.model_copy(update={"seed": seed})
        for seed in arguments.seeds
        for recipe in recipes(arguments.epochs)
        if recipe.number in (arguments.rows or [recipe.number])
    ]
    _train_all(seeded, cache, arguments.work, arguments.scores, arguments.jobs)
    rows = list(_read_all(arguments.epochs, cache, arguments.scores))
    val = cache.split("val")
    text = to_markdown(rows, val.targets, _tells(arguments.data, val), arguments.epochs)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    picture = arguments.out.parent / PICTURE
    picture.parent.mkdir(exist_ok=True)
    picture.write_bytes(draw(rows, val.targets))
    print(text)


def recipes(epochs: int) -> Iterator[Recipe]:
    """Yield what each step trains."""
    values = notebook_recipe().model_dump() | {
        "epochs": epochs, "sample_rate": SAMPLE_RATE, "frame_size": FRAME_SIZE,
    }  # fmt: skip
    on = 0
    for number, step in enumerate(STEPS, 1):
        changed = values | step.changes
        yield Recipe(number, on, step.name, TrainConfig.model_validate(changed))
        if step.is_built_on:
            on, values = number, changed


def _train_all(
    configs: Sequence[TrainConfig], cache: WaveformCache, work: Path, scores: Path, num_jobs: int
) -> None:
    """Train and score whatever was not done before."""
    todo = [config for config in configs if not _place(config, cache, scores).is_file()]
    context = multiprocessing.get_context("spawn")
    num_threads = max(1, len(os.sched_getaffinity(0)) // num_jobs)
    with (
        show_progress("train") as progress,
        ProcessPoolExecutor(num_jobs, context, torch.set_num_threads, (num_threads,)) as pool,
    ):
        running = [pool.submit(_train, config, cache.path, work, scores) for config in todo]
        for number, done in enumerate(as_completed(running), 1):
            done.result()
            progress(number, len(todo))


def _place(config: TrainConfig, cache: WaveformCache, scores: Path) -> Path:
    """Return where the scores of a training lie."""
    # Without defaults, so that a hyperparameter that is new changes no recipe of before.
    text = f"{config.model_dump_json(exclude_defaults=True)} {cache.data_fingerprint}"
    return scores / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _train(config: TrainConfig, cache_path: Path, work: Path, scores: Path) -> None:
    """Train on the training split, score the validation split, and keep the scores."""
    started = time.perf_counter()
    cache = WaveformCache.open(cache_path)
    done = _place(config, cache, scores)
    folder = work / "training" / done.stem
    result = fit(config, cache.split("train"), None, folder=folder, device=CPU)
    seconds = time.perf_counter() - started
    assert result.best is not None
    frontend = build_frontend(config)
    model = build_detector(config, frontend.num_channels)
    model.load_state_dict(load_best(folder, result.best.epoch, result.identity))
    logits_NK = predict_logits(to_channels_last(model), frontend, cache.split("val"), config, CPU)
    assert logits_NK is not None
    kept = {
        "config": config.model_dump(exclude_defaults=True),
        "seconds": round(seconds),
        "log_odds": np.round(to_log_odds(logits_NK), 4).tolist(),
    }
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(kept) + "\n", encoding="utf-8")


def _read_all(epochs: int, cache: WaveformCache, scores: Path) -> Iterator[Row]:
    """Yield each recipe that was trained, over all its seeds."""
    for recipe in recipes(epochs):
        seeded = (recipe.config.model_copy(update={"seed": seed}) for seed in range(MAX_SEEDS))
        places = [_place(config, cache, scores) for config in seeded]
        kept = [json.loads(path.read_text(encoding="utf-8")) for path in places if path.is_file()]
        if kept:
            log_odds_NS = np.array([one["log_odds"] for one in kept]).T
            yield Row(recipe, log_odds_NS, float(np.mean([one["seconds"] for one in kept])))


def _tells(data: Path, val: ClipSet) -> NDArray[np.bool_]:
    """Tell of which clips the sound is real or fake as a whole: no picture-only fakes (N,)."""
    manifest = find_manifest(data)
    if manifest is None or "audio_fake" not in manifest.columns:
        return np.ones(len(val), np.bool_)
    is_fake_sound_N = np.array(manifest.values("audio_fake", val.names)) == "1"
    tells_N: NDArray[np.bool_] = (val.targets == 0) | is_fake_sound_N
    return tells_N


def _of_seeds(measure: Measure) -> Measure:
    """Return the mean over seeds of a metric, for log-odds (N, S)."""
    return lambda log_odds_NS, targets_N: float(
        np.mean([measure(log_odds_N, targets_N) for log_odds_N in log_odds_NS.T])
    )


def to_markdown(
    rows: Sequence[Row], targets_N: NDArray[np.int64], tells_N: NDArray[np.bool_], epochs: int
) -> str:
    """Return the page; `tells_N` are the clips whose sound tells the label."""
    auc = _of_seeds(MEASURES["auc"])
    lines = [
        "# What each step is worth",
        "",
        f"{len(rows)} of {len(STEPS)} recipes from random weights, each building on another one:"
        f" {epochs} epochs, scored after the last one on all {len(targets_N)} validation clips."
        " Means over the seeds; in brackets 95 % intervals over the clips."
        " Sound alone is computed in bf16, which is slow on a CPU without AVX512-BF16, pictures in"
        " fp32; the minutes are of whichever machine trained them. "
        f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}.",
        "",
        "`python -m benchmarks.detector DATA --out docs/detector.md` trains what is missing.",
        "",
        f"![AUC of each recipe, with its interval]({PICTURE})",
        "",
        "| | on | recipe | AUC | EER | accuracy | AUC where the sound tells | gained | seeds"
        " | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    before = {row.recipe.number: row.log_odds_NS for row in rows}
    for row in rows:
        cells = [_words(_of_seeds(MEASURES[x]), row.log_odds_NS, targets_N) for x in METRICS]
        cells.append(_words(auc, row.log_odds_NS[tells_N], targets_N[tells_N]))
        gained: Interval | None = None
        if row.recipe.on in before:
            gained = estimate_difference(auc, row.log_odds_NS, before[row.recipe.on], targets_N)
        cells.append(words_of(gained) if gained else "")
        cells += [str(row.log_odds_NS.shape[1]), f"{row.seconds / 60:.1f}"]
        head = f"| {row.recipe.number} | {row.recipe.on or ''} | {row.recipe.name}"
        lines.append(f"{head} | {' | '.join(cells)} |")
    for members in _ensembles(rows):
        together_N = np.concatenate([row.log_odds_NS for row in members], axis=1).mean(axis=1)
        cells = [_words(MEASURES[x], together_N, targets_N) for x in METRICS]
        cells.append(_words(MEASURES["auc"], together_N[tells_N], targets_N[tells_N]))
        numbers = " and ".join(str(row.recipe.number) for row in members)
        lines.append(f"|  | {numbers} | all seeds, averaged | {' | '.join(cells)} | | | |")
    lines += ["", *_calibration(rows[-1], targets_N)]
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


def _calibration(row: Row, targets_N: NDArray[np.int64]) -> list[str]:
    """Return what a temperature does to the last row, on clips that it was not fitted on."""
    metrics: tuple[Objective, ...] = ("nll", "cllr", "ece", "auc")
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
        cells = [_words(_of_seeds(MEASURES[x]), log_odds_NS, targets_N) for x in metrics]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def _words(measure: Measure, log_odds: NDArray[np.float64], targets_N: NDArray[np.int64]) -> str:
    return words_of(estimate(measure, log_odds, targets_N))


if __name__ == "__main__":
    main()
