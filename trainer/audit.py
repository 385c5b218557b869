"""Audit a data folder: how well its labels can be told without listening."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from trainer.dataset import SPLITS, Clip, Reject, Split, read_dataset
from trainer.decode import read_all
from trainer.errors import DataError
from trainer.intervals import Interval, estimate
from trainer.metrics import roc_auc
from trainer.shortcuts import GROUPS, SAMPLE_RATE, WORDS, Shortcuts, measure_shortcuts

# Shape suffixes: N clips, K classes, D features.

WARN_ABOVE = 0.7
"""An AUC above this is a shortcut that a detector will find."""
ALL = "all together"
NUM_FOLDS = 5
NUM_TREES, LEAF = 300, 10
PARTS = 10
"""A leaf needs at most one of so many parts of what is learned from: few clips must split too."""
SUREST = 1e-6
FEWEST_CLIPS = 10
"""Of each class, in what is learned from and in what is measured on."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """How well a group of shortcuts tells the label."""

    group: str
    auc: Interval | None
    """On clips that weren't learned from; None if the shortcuts are the same for all clips."""
    telling: str
    """The shortcut of the group that orders the classes best by itself."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What gives the labels of a folder away."""

    clips: tuple[Clip, ...]
    """Those that can be read."""
    columns: dict[str, NDArray[Any]]
    """Each shortcut of all clips (N,): numbers, nan where there is none, or words."""
    findings: tuple[Finding, ...]
    alone: dict[str, float]
    """AUC of each shortcut that is a number and varies, by itself, the higher way round."""
    rejects: tuple[Reject, ...]
    how: str
    """What was learned from and what was measured on."""

    @property
    def worst(self) -> float:
        """Return the highest AUC of all groups."""
        return max((x.auc.value for x in self.findings if x.auc is not None), default=0.5)


def audit(
    data: Path,
    *,
    seed: int = 0,
    num_processes: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Audit:
    """Measure each clip's shortcuts, and how well a classifier tells the labels by them.

    It learns from the training split and is measured on the validation split; of a folder with
    one split alone it is cross-validated.

    Raises:
        DataError: the data can't be used, or a class has too few clips.
    """
    splits = [split for split in SPLITS if (data / f"{split}set").is_dir()] or SPLITS
    dataset = read_dataset(data, splits)
    clips, rows, unreadable = _measure(dataset.clips, num_processes, progress)
    _require_enough(clips, splits)
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    columns["place"] = _places(clips)
    targets_N = np.array([clip.target for clip in clips], np.int64)
    alone = _measure_alone(columns, targets_N)
    is_train_N = np.array([clip.split == "train" for clip in clips])

    def judge(group: str, names: Sequence[str]) -> Finding:
        varying = [name for name in names if _varies(columns[name])]
        if not varying:
            return Finding(group, None, "")
        features_ND = _to_features([columns[name] for name in varying])
        log_odds_N, measured_N = _tell(features_ND, targets_N, is_train_N, seed)
        telling = max(varying, key=lambda name: alone.get(name, 0.0))
        return Finding(group, estimate(roc_auc, log_odds_N, measured_N, seed=seed), telling)

    findings = [judge(group, names) for group, names in GROUPS.items()]
    findings.append(judge(ALL, [name for names in GROUPS.values() for name in names]))
    how = "learned from train, measured on val" if len(splits) > 1 else "cross-validated"
    return Audit(clips, columns, tuple(findings), alone, (*dataset.rejects, *unreadable), how)


def _measure(
    clips: Sequence[Clip], num_processes: int | None, progress: Progress
) -> tuple[tuple[Clip, ...], list[Shortcuts], list[Reject]]:
    """Return the clips that can be read with their shortcuts, and the others with the reason."""
    paths = [clip.path for clip in clips]
    num_processes = min(num_processes or len(os.sched_getaffinity(0)), max(1, len(paths)))
    read, rows, rejects = [], [], []
    with closing(read_all(paths, SAMPLE_RATE, num_processes, measure_shortcuts)) as outcomes:
        for done, (clip, found) in enumerate(zip(clips, outcomes, strict=True), 1):
            if isinstance(found, str):
                rejects.append(Reject(clip.split, clip.name, found))
            else:
                read.append(clip)
                rows.append(found)
            progress(done, len(clips))
    return tuple(read), rows, rejects


def _require_enough(clips: Sequence[Clip], splits: Sequence[Split]) -> None:
    """Refuse what no classifier could learn from.

    Raises:
        DataError: a class has too few clips.
    """
    for split in splits:
        targets = [clip.target for clip in clips if clip.split == split]
        num_fake = sum(targets)
        num_real = len(targets) - num_fake
        if min(num_real, num_fake) < FEWEST_CLIPS:
            raise DataError(
                f"an audit needs at least {FEWEST_CLIPS} readable clips of each class in each"
                f" split, {split} has {num_real} real and {num_fake} fake"
            )


def _places(clips: Sequence[Clip]) -> NDArray[np.float64]:
    """Return where in the order of its split's names each clip stands, from 0 to 1."""
    place_of: dict[tuple[str, str], float] = {}
    for split in SPLITS:
        names = sorted(clip.name for clip in clips if clip.split == split)
        place_of |= {(split, name): n / (len(names) - 1) for n, name in enumerate(names)}
    return np.array([place_of[clip.split, clip.name] for clip in clips])


def _tell(
    features_ND: NDArray[np.float64],
    targets_N: NDArray[np.int64],
    is_train_N: NDArray[np.bool_],
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return log-odds of fake for clips that weren't learned from, and these clips' targets.

    By a forest, as a shortcut need not be monotone: fakes may be those of middle length.
    """
    from sklearn.ensemble import RandomForestClassifier  # takes long to import
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    is_cross_validated = is_train_N.all() or not is_train_N.any()
    num_learned = int(is_train_N.sum())
    if is_cross_validated:
        num_learned = len(targets_N) * (NUM_FOLDS - 1) // NUM_FOLDS
    leaf = max(1, min(LEAF, num_learned // PARTS))
    forest = RandomForestClassifier(NUM_TREES, min_samples_leaf=leaf, random_state=seed)
    if is_cross_validated:
        folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
        probs_NK = cross_val_predict(
            forest, features_ND, targets_N, cv=folds, method="predict_proba"
        )
        return logit(np.clip(probs_NK[:, 1], SUREST, 1 - SUREST)), targets_N
    forest.fit(features_ND[is_train_N], targets_N[is_train_N])
    probs_NK = forest.predict_proba(features_ND[~is_train_N])
    return logit(np.clip(probs_NK[:, 1], SUREST, 1 - SUREST)), targets_N[~is_train_N]


def _to_features(columns: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Return numbers as they are, and a column of 0 and 1 for each word that occurs."""
    features = []
    for values_N in columns:
        if values_N.dtype.kind == "U":
            features += [values_N == word for word in np.unique(values_N)]
        else:
            features.append(values_N)
    return np.column_stack(features).astype(np.float64)


def _measure_alone(
    columns: dict[str, NDArray[Any]], targets_N: NDArray[np.int64]
) -> dict[str, float]:
    """Return each varying number's AUC over all clips; one that is missing is the lowest."""
    aucs = {}
    for name, values_N in columns.items():
        if name not in WORDS and _varies(values_N):
            auc = roc_auc(np.nan_to_num(values_N, nan=-1e9), targets_N)
            aucs[name] = max(auc, 1 - auc)
    return aucs


def _varies(values_N: NDArray[Any]) -> bool:
    return len(np.unique(values_N)) > 1
