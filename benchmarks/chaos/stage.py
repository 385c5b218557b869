"""What is trained in the storm: noise with labels, and studies of trainings that take seconds."""

import wave
from pathlib import Path
from typing import Any

import numpy as np

from search.config import StudyConfig, parse_study
from trainer.cache import prepare

TTL_SECONDS = 6.0
RENEW_SECONDS = 1.0
MAX_ATTEMPTS = 20
"""Deaths that a trial survives, in both arms: the weather kills workers, not the trial."""
SAMPLE_RATE = 4000
"""Hz."""
_TRAINING: dict[str, Any] = {
    "backbone": "test_resnet",
    "sample_rate": SAMPLE_RATE,
    "window_seconds": 0.5,
    "eval_windows": 1,
    "n_fft": 128,
    "hop_length": 64,
    "n_mels": 32,
    "batch_size": 8,
    "epochs": 60,
    "optimizer": "adam",
}
_BASELINE = _TRAINING | {"frontend": "logmel", "augmentation": "none", "weights": "none"}


def storm_study(name: str, trials: int, seed: int) -> StudyConfig:
    """Return a study whose leases are short; ASHA prunes about half of what it sees."""
    document: dict[str, Any] = {
        "name": name,
        "objective": "auc",
        "holdout": "none",
        "trials": trials,
        "seed": seed % 2**31,
        "max_failed_trials": 1000,
        "sampler": {"name": "random"},
        "pruner": {"name": "asha", "min_epochs": 15, "reduction": 2},
        "lease": {
            "ttl_seconds": TTL_SECONDS,
            "renew_seconds": RENEW_SECONDS,
            "max_attempts": MAX_ATTEMPTS,
        },
        "training": _TRAINING,
        "baseline": _BASELINE,
        "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
    }
    return parse_study(document, "storm")


def make_cache(folder: Path, cache: Path) -> str:
    """Make the waveform cache of clips that can't be told apart; return their fingerprint.

    Noise, so that the objective wanders from epoch to epoch and one wrong bit shows.
    """
    random = np.random.default_rng(0)
    for split, num_clips in (("train", 16), ("val", 32)):
        (folder / f"{split}set").mkdir(parents=True)
        rows = ["video_name,target"]
        for number in range(num_clips):
            name = f"{number:03}.wav"
            noise_T = 6000 * random.standard_normal(SAMPLE_RATE // 2)
            with wave.open(str(folder / f"{split}set" / name), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                file.writeframes(noise_T.astype("<i2").tobytes())
            rows.append(f"{name},{number % 2}")
        (folder / f"{split}set_label.txt").write_text("\n".join(rows) + "\n")
    report = prepare(
        folder, cache, sample_rate=SAMPLE_RATE, notebook_images=False, num_processes=1
    )  # fmt: skip
    return report.data_fingerprint
