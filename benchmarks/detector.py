"""Measure what each step from the notebook's recipe to ours is worth, side by side in one run.

The rows are those of benchmarks/recipes.py. All train from random weights, with the same seeds for
as many epochs, and are scored after their last epoch on the whole validation split: no epoch is
picked for its score. What is done is kept in SCORES, a file for each training, so the same command
goes on where it was, and a row whose values were changed is trained anew. Remove SCORES after a
change of code. With several jobs each training has its share of the cores.

.venv/bin/python -m benchmarks.detector DATA --work build/detector --out docs/detector.md
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.detector_page import PICTURE, Row, draw, to_markdown
from benchmarks.recipes import FRAME_SIZE, SAMPLE_RATE, recipes
from search.progress import show_progress
from trainer.cache import ClipSet, WaveformCache
from trainer.config import TrainConfig
from trainer.durable import replacing
from trainer.frontend import build_frontend
from trainer.fusion import build_detector
from trainer.inference import predict_logits
from trainer.loop import fit
from trainer.manifest import find_manifest
from trainer.measures import to_log_odds
from trainer.model import to_channels_last
from trainer.prepare import prepare
from trainer.snapshots import load_best

# Shape suffixes: N clips, K classes, S seeds.

CPU = torch.device("cpu")
MAX_SEEDS = 16
"""So many are looked for."""


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
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2], choices=range(MAX_SEEDS), metavar="SEED"
    )
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
    tells_N = _tells(arguments.data, val)
    share_of_fakes = float(np.mean(cache.split("train").targets))
    text = to_markdown(rows, val.targets, tells_N, arguments.epochs, share_of_fakes)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    picture = arguments.out.parent / PICTURE
    picture.parent.mkdir(exist_ok=True)
    picture.write_bytes(draw(rows, val.targets))
    print(text)


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
    with replacing(done) as fresh:
        fresh.write_text(json.dumps(kept) + "\n", encoding="utf-8")


def _read_all(epochs: int, cache: WaveformCache, scores: Path) -> Iterator[Row]:
    """Yield each recipe that was trained, over all its seeds."""
    for recipe in recipes(epochs):
        kept: dict[int, Any] = {}
        for seed in range(MAX_SEEDS):
            place = _place(recipe.config.model_copy(update={"seed": seed}), cache, scores)
            if place.is_file():
                kept[seed] = json.loads(place.read_text(encoding="utf-8"))
        if kept:
            log_odds_NS = np.array([one["log_odds"] for one in kept.values()]).T
            seconds = float(np.mean([one["seconds"] for one in kept.values()]))
            yield Row(recipe, tuple(kept), log_odds_NS, seconds)


def _tells(data: Path, val: ClipSet) -> NDArray[np.bool_]:
    """Tell of which clips the sound is real or fake as a whole: no picture-only fakes (N,)."""
    manifest = find_manifest(data)
    if manifest is None or "audio_fake" not in manifest.columns:
        return np.ones(len(val), np.bool_)
    is_fake_sound_N = np.array(manifest.values("audio_fake", val.names)) == "1"
    tells_N: NDArray[np.bool_] = (val.targets == 0) | is_fake_sound_N
    return tells_N


if __name__ == "__main__":
    main()
