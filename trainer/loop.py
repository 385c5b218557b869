"""fit(): one training, from random weights or a checkpoint to its last epoch.

A resumed training equals an uninterrupted one bit for bit on the CPU, because nothing random
outlives a step: permutation and crops are drawn from (seed, epoch), augmentation and dropout from
(seed, epoch, step). So a checkpoint needs no state of a random generator.
"""

import enum
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from trainer.batches import check_copies, check_images
from trainer.cache import ClipSet
from trainer.config import TrainConfig
from trainer.device import prepare_device
from trainer.errors import DataError, TrainerError, TrainingDivergedError
from trainer.faults import find_damage
from trainer.history import EpochResult, Progress, best_of
from trainer.inference import predict_logits
from trainer.measures import summarize
from trainer.memory import must_fit
from trainer.model import count_parameters, reason_of
from trainer.pictures import check_frames
from trainer.snapshots import Position, Snapshot, Snapshots
from trainer.training import Training

__all__ = [
    "Ending",
    "EpochResult",
    "FitResult",
    "TrainingDivergedError",
    "best_of",
    "fit",
    "predict_logits",
]

logger = logging.getLogger(__name__)

History = Sequence[EpochResult]


class Ending(enum.Enum):
    """Why a training ended."""

    FINISHED = "finished"
    """After its last epoch."""
    PRUNED = "pruned"
    """on_epoch said so."""
    STOPPED = "stopped"
    """should_stop said so; it goes on from its checkpoint."""
    DIVERGED = "diverged"
    """The loss or the logits became infinite or nan after at least one whole epoch."""


@dataclass(frozen=True)
class FitResult:
    """How a training ended, and all its epochs, those before a resumption included."""

    ending: Ending
    history: tuple[EpochResult, ...]
    best: EpochResult | None
    num_parameters: int
    identity: str
    """Of the training; its checkpoint and its best weights name it."""
    micro_batch: int
    """Images that went through the model at once in the end; batch_size if that fits in memory."""
    reason: str | None = None
    """Why it diverged, if it did."""


def fit(
    config: TrainConfig,
    train: ClipSet,
    val: ClipSet | None,
    *,
    folder: Path,
    device: torch.device,
    objective: str = "accuracy",
    on_start: Callable[[History], None] = lambda history: None,
    on_epoch: Callable[[History], bool] = lambda history: False,
    should_stop: Callable[[], bool] = lambda: False,
    before_replace: Callable[[], None] = lambda: None,
    needs_best: bool = False,
) -> FitResult:
    """Train a detector, going on from the checkpoint in `folder` if there is one of this training.

    `folder` gets the two newest states, checkpoint-EPOCH-STEP.safetensors, and the weights of the
    best epoch (of the last one without validation clips), best-EPOCH.safetensors. If the newest
    state is damaged, the one before is gone on from; if it doesn't fit this code, the training
    starts over. `needs_best` takes no state whose best weights are lost.

    `on_start` gets the history of a resumed training, empty for a new one. `on_epoch` gets the
    history when its newest epoch is in the checkpoint already; True prunes. `should_stop` is asked
    before each step and before each batch of an evaluation; True writes a checkpoint and ends.
    `before_replace` is called before anything in the folder is removed, and right before a written
    file gets its name.
    An exception raised in any of them passes through, and nothing more is written.

    Raises:
        TrainingDivergedError: the loss became infinite or nan in the first epoch.
        DoesNotFitError: the device's memory is too small, even for the smallest micro-batches.
        DataError: the clips can't be trained on.
        ModelError: the backbone or its weights can't be had, or it can't read such images.
        TrainerError: the objective is no metric of the validation clips.
        OSError: the folder can't be written; a disk that is full is no reason to end.
    """
    _check_clips(config, train, val)
    if val is not None:
        _check_objective(objective)
    prepare_device(device)
    identity = _identify(config, train, val, objective)
    snapshots = Snapshots(folder, identity, before_replace, needs_best=needs_best)
    log = _begin(config, train, val, device, snapshots, objective)
    on_start(log.history)
    reason = None
    try:
        ending = _run(log.training, log, on_epoch, should_stop)
    except TrainingDivergedError as error:
        if not log.history:
            raise
        ending, reason = Ending.DIVERGED, str(error)
    return FitResult(
        ending=ending,
        history=tuple(log.history),
        best=log.best,
        num_parameters=count_parameters(log.training.model),
        identity=identity,
        micro_batch=log.training.progress.micro_batch,
        reason=reason,
    )


def _begin(
    config: TrainConfig,
    train: ClipSet,
    val: ClipSet | None,
    device: torch.device,
    snapshots: Snapshots,
    objective: str,
) -> "_Log":
    """Return a training at its newest checkpoint; at its start without one that fits."""

    def build(config: TrainConfig) -> _Log:
        with must_fit(config, device):
            return _Log(Training(config, train, val, device), snapshots, objective)

    snapshot = snapshots.load()
    if snapshot is None:
        return build(config)
    # A checkpoint holds all weights, so those of the start are not read, or downloaded, again.
    log = build(config.model_copy(update={"weights": "none"}))
    fault = log.resume(snapshot)
    if fault is None:
        return log
    del log  # half of it is the checkpoint's, and a new one needs its memory
    snapshots.forget(fault)
    return build(config)


def _run(
    training: Training,
    log: "_Log",
    on_epoch: Callable[[History], bool],
    should_stop: Callable[[], bool],
) -> Ending:
    """Train epoch after epoch, and keep each one before anybody hears of it."""
    while training.progress.epoch <= training.config.epochs:
        with must_fit(training.config, training.device):
            metrics = training.run_epoch(should_stop)
        if metrics is None:
            log.save_midway()
            return Ending.STOPPED
        log.add(metrics)
        if on_epoch(log.history):
            return Ending.PRUNED
    return Ending.FINISHED


class _Log:
    """The history of a training, and its way to the disk and back."""

    def __init__(self, training: Training, snapshots: Snapshots, objective: str) -> None:
        self.training, self.snapshots, self.objective = training, snapshots, objective
        self.history: list[EpochResult] = []
        self.saved: Position | None = None
        """Of the newest checkpoint on the disk."""

    @property
    def best(self) -> EpochResult | None:
        return best_of(self.history, self.objective)

    def resume(self, snapshot: Snapshot) -> str | None:
        """Take over the state of a checkpoint; return why that doesn't fit, None if it does.

        One of other code or libraries may not. What is half taken over can't be trained.
        """
        device = self.training.device
        try:
            with must_fit(self.training.config, device):
                self.training.restore(snapshot.tensors, snapshot.scalars["progress"])
            self.history = [EpochResult(**result) for result in snapshot.scalars["history"]]
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            if find_damage(device) is not None:
                raise
            return f"it doesn't fit, {type(error).__name__}: {reason_of(error)}"
        self.saved = self._position()
        context = {"epoch": self.training.progress.epoch, "step": self.training.progress.step}
        logger.info("training_resumed", extra=context)
        return None

    def add(self, metrics: dict[str, float]) -> None:
        """Add the epoch that has just ended, and write the checkpoint."""
        epoch = self.training.progress.epoch
        self.history.append(EpochResult(epoch, metrics))
        self.training.progress = Progress(self.training.progress.micro_batch, epoch + 1)
        if self.best is self.history[-1]:
            self.snapshots.keep_best(epoch, self.training.evaluated.state_dict())
        self._save()

    def save_midway(self) -> None:
        """Write the checkpoint if anything has happened since the newest one."""
        if self.saved != self._position():
            self._save()

    def _save(self) -> None:
        scalars = {
            "progress": asdict(self.training.progress),
            "history": [asdict(result) for result in self.history],
            "best_epoch": None if self.best is None else self.best.epoch,
        }
        if self.snapshots.save(self._position(), self.training.tensors(), scalars):
            self.saved = self._position()

    def _position(self) -> Position:
        return Position(self.training.progress.epoch, self.training.progress.step)


def _check_clips(config: TrainConfig, train: ClipSet, val: ClipSet | None) -> None:
    splits = [("training", train, 2)] + ([("validation", val, 1)] if val is not None else [])
    for name, clips, fewest in splits:
        if len(clips) < fewest:
            raise DataError(f"the {name} split needs at least {fewest} clips, got {len(clips)}")
        check_images(clips, config)
        check_frames(clips, config)
    check_copies(train, config)


def _check_objective(objective: str) -> None:
    allowed = summarize(np.zeros((1, 2)), np.zeros(1))
    if objective not in allowed:
        raise TrainerError(
            f"objective must be one of {', '.join(allowed)}, got {objective!r} (a recipe's is in"
            " its origin table)"
        )


def _identify(config: TrainConfig, train: ClipSet, val: ClipSet | None, objective: str) -> str:
    """Return a fingerprint of all that a training depends on, for its checkpoint."""
    digest = hashlib.sha256(f"{config.model_dump_json()} {objective}".encode())
    for clips in (train, val):
        if clips is not None:
            digest.update(clips.data_fingerprint.encode())
            digest.update("\0".join(clips.names).encode(errors="surrogateescape"))
            digest.update(np.ascontiguousarray(clips.targets).data)
            digest.update(np.ascontiguousarray(clips.num_samples).data)
        digest.update(b"\1")
    return digest.hexdigest()
