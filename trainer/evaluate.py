"""Evaluate a model folder on a labelled set: every metric with its interval, for each group too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.dataset import Clip, Reject, Split, read_dataset
from trainer.decode import DecodedClip
from trainer.errors import DataError
from trainer.folder import LoadedDetector, load_detector
from trainer.index import short_digest
from trainer.intervals import Interval, estimate
from trainer.known_clips import read_known
from trainer.manifest import Manifest, find_manifest
from trainer.measures import MEASURES, summarize, to_log_odds, to_scores
from trainer.metrics import MetricUndefinedError
from trainer.objectives import CALIBRATED, Objective
from trainer.scoring import Logits, score_files

# Shape suffixes: N clips, K classes.

Progress = Callable[[int, int], None]
MOST_GROUPS = 30
"""A column of the manifest with more values than this, such as an id, makes no groups."""
FEWEST_CLIPS = 5
"""Of each class that a group's metric is of; of fewer it says nothing."""


@dataclass(frozen=True)
class Group:
    """The clips that share a value of the manifest."""

    column: str
    value: str
    num_real: int
    num_fake: int
    against: str
    """Whose other class AUC and EER are measured against: its own, or that of all clips."""
    metrics: dict[str, Interval]
    """Without those that have too few clips of a class. The accuracy is of its own clips alone, so
    of one class it is the share of them that is told."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a detector is worth on a set."""

    detector: LoadedDetector
    clips: tuple[Clip, ...]
    """Those that could be scored."""
    logits_NK: NDArray[np.float64]
    """Not calibrated."""
    rejects: tuple[Reject, ...]
    metrics: dict[str, Interval | None]
    """Calibrated; None where the set lacks a class that the metric needs."""
    calibration: dict[str, tuple[float, float]]
    """Before and after the temperature."""
    groups: tuple[Group, ...]
    known: dict[str, int] | None
    """As KnownClips.count; None if the model folder doesn't say."""

    @property
    def targets_N(self) -> NDArray[np.int64]:
        """Return the clips' targets, 1 is fake."""
        return np.array([clip.target for clip in self.clips], np.int64)

    @property
    def log_odds_N(self) -> NDArray[np.float64]:
        """Return the calibrated log-odds of fake."""
        return to_log_odds(self.logits_NK) / self.detector.temperature


def evaluate(
    model_dir: Path,
    data: Path,
    splits: Sequence[Split] = ("val",),
    *,
    tta: int = 1,
    device: torch.device,
    progress: Progress = lambda done, total: None,
    num_processes: int | None = None,
) -> Evaluation:
    """Score the labelled clips of some splits of an FFDV folder, and measure every metric.

    The folder's manifest, if it has one, makes groups. A file that can't be read is a reject, and
    counts in no metric.

    Raises:
        ModelError: the model folder lacks a file, or one is damaged.
        DataError: the data can't be used, or none of its files can be read.
    """
    detector = load_detector(model_dir, device)
    known = read_known(model_dir)
    dataset = read_dataset(data, splits)
    manifest = find_manifest(data)
    found: dict[Path, Logits | str] = {}
    digests: dict[Path, str] = {}

    def on_decoded(path: Path, clip: DecodedClip) -> None:
        digests[path] = short_digest(clip.source_digest)

    paths = list(dict.fromkeys(clip.path for clip in dataset.clips))
    for some in score_files(
        detector, paths, tta=tta, num_processes=num_processes, on_decoded=on_decoded
    ):
        found |= some
        progress(len(found), len(paths))
    scored = [(clip, found[clip.path]) for clip in dataset.clips]
    clips = tuple(clip for clip, outcome in scored if not isinstance(outcome, str))
    unreadable = [
        Reject(clip.split, clip.name, outcome)
        for clip, outcome in scored
        if isinstance(outcome, str)
    ]
    if not clips:
        raise DataError(f"none of the {len(paths)} labelled files in {data} can be read")
    logits_NK = np.stack([outcome for _, outcome in scored if not isinstance(outcome, str)])
    counts = None if known is None else known.count([digests[clip.path] for clip in clips])
    rejects = (*dataset.rejects, *unreadable)
    return _measure(detector, clips, logits_NK, rejects, manifest, counts)


def _measure(
    detector: LoadedDetector,
    clips: tuple[Clip, ...],
    logits_NK: NDArray[np.float64],
    rejects: tuple[Reject, ...],
    manifest: Manifest | None,
    known: dict[str, int] | None,
) -> Evaluation:
    targets_N = np.array([clip.target for clip in clips], np.int64)
    calibrated_NK = logits_NK / detector.temperature
    log_odds_N = to_log_odds(calibrated_NK)
    prior = detector.prior_log_odds
    before, after = (summarize(x, targets_N, prior) for x in (logits_NK, calibrated_NK))
    return Evaluation(
        detector,
        clips,
        logits_NK,
        rejects,
        {name: _estimate(name, to_scores(name, log_odds_N, prior), targets_N) for name in MEASURES},
        {name: (before[name], after[name]) for name in CALIBRATED},
        tuple(_groups(manifest, clips, log_odds_N, targets_N)) if manifest is not None else (),
        known,
    )


def _estimate(
    name: Objective, scores_N: NDArray[np.float64], targets_N: NDArray[np.int64]
) -> Interval | None:
    try:
        return estimate(MEASURES[name], scores_N, targets_N)
    except MetricUndefinedError:
        return None


def _groups(
    manifest: Manifest,
    clips: Sequence[Clip],
    log_odds_N: NDArray[np.float64],
    targets_N: NDArray[np.int64],
) -> list[Group]:
    """Return the groups of all columns that have a few values, in the manifest's order."""
    names = [clip.name for clip in clips]
    groups = []
    for column in manifest.columns:
        values_N = np.array(manifest.values(column, names), dtype=object)
        values = sorted(set(values_N.tolist()) - {""})
        if 1 < len(values) <= MOST_GROUPS:
            groups += [_group(column, x, values_N == x, log_odds_N, targets_N) for x in values]
    return groups


def _group(
    column: str,
    value: str,
    is_in_N: NDArray[np.bool_],
    log_odds_N: NDArray[np.float64],
    targets_N: NDArray[np.int64],
) -> Group:
    """Measure a group; AUC and EER of a single class are against the other class of all clips.

    Its accuracy is not: that would be mostly the accuracy of those others.
    """
    num_real, num_fake = (int((is_in_N & (targets_N == target)).sum()) for target in (0, 1))
    is_ranked_N, against = is_in_N, "its own"
    if not num_fake:
        is_ranked_N, against = is_in_N | (targets_N == 1), "all fakes"
    elif not num_real:
        is_ranked_N, against = is_in_N | (targets_N == 0), "all bona fide"
    measured: dict[Objective, NDArray[np.bool_]]
    measured = {"accuracy": is_in_N, "auc": is_ranked_N, "eer": is_ranked_N}
    metrics: dict[str, Interval] = {}
    for name, chosen_N in measured.items():
        counts = np.bincount(targets_N[chosen_N])
        if counts[counts > 0].min() >= FEWEST_CLIPS:
            found = _estimate(name, log_odds_N[chosen_N], targets_N[chosen_N])
            if found is not None:
                metrics[name] = found
    return Group(column, value, num_real, num_fake, against, metrics)
