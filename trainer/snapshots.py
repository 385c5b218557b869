"""A training's folder: its newest checkpoints, and the best epochs' weights that they name."""

import errno
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_scalars,
    remove_stale_temporaries,
    save_checkpoint,
)
from trainer.durable import make_folder
from trainer.faults import is_out_of_memory

logger = logging.getLogger(__name__)

NUM_KEPT = 2
"""Checkpoints: the newest, and the one before in case that it is damaged."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Position(NamedTuple):
    """How far a training is: the epoch that is going on, from 1, and the steps done in it."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


def checkpoint_path(folder: Path, position: Position) -> Path:
    """Return where the state at a position is kept. The names sort as the positions do."""
    return folder / f"checkpoint-{position.epoch:05d}-{position.step:08d}.safetensors"


def best_path(folder: Path, epoch: int) -> Path:
    """Return where an epoch's weights are kept if it is the best one."""
    return folder / f"best-{epoch:05d}.safetensors"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folder's checkpoints, the newest last."""
    return sorted(folder.glob("checkpoint-*.safetensors"))


def load_best(folder: Path, epoch: int, identity: str) -> dict[str, Tensor]:
    """Return a training's weights after its best epoch.

    Raises:
        FileNotFoundError: there are none of this epoch.
        CheckpointError: they are damaged, or of another training.
        OSError: they can't be read here.
    """
    weights, scalars = load_checkpoint(best_path(folder, epoch))
    if (scalars.get("epoch"), scalars.get("identity")) != (epoch, identity):
        raise CheckpointError(f"they are not those of epoch {epoch} of this training")
    return weights


def remove_checkpoints(folder: Path) -> None:
    """Remove what an ended training needs no more: all but the best epoch's weights."""
    checkpoints = list_checkpoints(folder)
    if named := _named_by(checkpoints[-1:]):
        _remove_best(folder, named)
    for path in checkpoints:
        path.unlink(missing_ok=True)


class Snapshots:
    """Saves and loads one training's state.

    A file is named by its position, written once and never replaced: the best weights first, then
    the checkpoint that names their epoch, then what nobody needs any more is removed. So a kill at
    any moment leaves a checkpoint with its weights, and a process that slept and writes late
    spoils nothing that is newer. One process loads at a time.

    `needs_best` takes no checkpoint whose best weights are lost.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        before_replace: Callable[[], None] = lambda: None,
        *,
        needs_best: bool = False,
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.needs_best = needs_best
        self._before_replace = before_replace
        self._best: tuple[int, dict[str, Tensor]] | None = None
        """Epoch and weights; in memory too, until the next ones: a folder may be lost."""

    def keep_best(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Copy an epoch's weights; the next save writes them."""
        self._best = (epoch, {name: _copy(value) for name, value in weights.items()})

    def save(
        self, position: Position, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
    ) -> bool:
        """Write the state at a position, and the best weights if there are new ones.

        A folder that can't be written, or memory that is lacking for it, costs the checkpoint, not
        the training: it is logged and False comes back. On a full disk the older checkpoints make
        room first.
        """
        best_epoch = None if self._best is None else self._best[0]
        named = {best_epoch, scalars.get("best_epoch")}
        try:
            try:
                self._write(position, tensors, scalars)
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                self._prune(position, named, keep=1)
                self._write(position, tensors, scalars)
            self._prune(position, named, keep=NUM_KEPT)
        except (OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = str(error) or type(error).__name__
            logger.warning("checkpoint_failed", extra=self._context(reason))
            return False
        return True

    def load(self) -> Snapshot | None:
        """Return the newest whole state, None if there is none that can be gone on from.

        What is damaged, or of another training, is logged and removed, unless `before_replace`
        raises.

        Raises:
            OSError: the folder can't be written, now and hence at the end of every epoch, or a
                file in it can't be read.
        """
        self._before_replace()
        self._try_writing()
        remove_stale_temporaries(self.folder)
        snapshots = map(self._read, reversed(list_checkpoints(self.folder)))
        snapshot = next((each for each in snapshots if each is not None), None)
        _remove_best(self.folder, _named_by(list_checkpoints(self.folder)))
        return snapshot

    def forget(self, reason: str) -> None:
        """Remove all states and best weights, for a training that starts over."""
        self._before_replace()
        logger.warning("checkpoint_ignored", extra=self._context(reason))
        for path in list_checkpoints(self.folder):
            path.unlink(missing_ok=True)
        _remove_best(self.folder, ())
        self._best = None

    def _write(
        self, position: Position, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
    ) -> None:
        if self._best is not None:
            epoch, weights = self._best
            best = {"epoch": epoch, "identity": self.identity}
            self._write_once(best_path(self.folder, epoch), weights, best)
        state = {**scalars, "identity": self.identity}
        self._write_once(checkpoint_path(self.folder, position), tensors, state)

    def _write_once(
        self, path: Path, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
    ) -> None:
        if not path.exists():
            save_checkpoint(path, tensors, scalars, self._before_replace)

    def _prune(self, position: Position, named: Iterable[int | None], keep: int) -> None:
        """Remove what neither the newest checkpoints up to `position` nor later ones need."""
        name = checkpoint_path(self.folder, position).name
        older = [path for path in list_checkpoints(self.folder) if path.name <= name]
        for path in older[:-keep]:
            path.unlink(missing_ok=True)
        named = {*named, *_named_by(list_checkpoints(self.folder))}
        _remove_best(self.folder, named, before=position.epoch)

    def _read(self, path: Path) -> Snapshot | None:
        """Return a checkpoint's state; remove a file that can't be gone on from."""
        try:
            snapshot = Snapshot(*load_checkpoint(path))
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            logger.warning("checkpoint_damaged", extra=self._context(str(error), path))
            path.unlink(missing_ok=True)
            return None
        fault = self._find_fault(snapshot.scalars)
        if fault is not None:
            logger.warning("checkpoint_ignored", extra=self._context(fault, path))
            path.unlink(missing_ok=True)
            return None
        return snapshot

    def _find_fault(self, scalars: Mapping[str, Any]) -> str | None:
        if scalars.get("identity") != self.identity:
            return "it is of other parameters or other clips"
        epoch = scalars.get("best_epoch")
        if epoch is not None and not self._has_best(epoch) and self.needs_best:
            return f"the weights of epoch {epoch}, the best one, are lost"
        return None

    def _has_best(self, epoch: int) -> bool:
        path = best_path(self.folder, epoch)
        try:
            self._best = (epoch, load_best(self.folder, epoch, self.identity))
        except (FileNotFoundError, CheckpointError) as error:
            self._best = None
            logger.warning("best_weights_lost", extra=self._context(str(error), path))
            path.unlink(missing_ok=True)
            return False
        return True

    def _context(self, reason: str, path: Path | None = None) -> dict[str, str]:
        file = {} if path is None else {"file": path.name}
        return {"folder": str(self.folder), "reason": reason, **file}

    def _try_writing(self) -> None:
        """Find out before the training whether its checkpoints can be written."""
        try:
            make_folder(self.folder)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            if error.errno not in _NO_SPACE:  # space may come back
                raise


def _named_by(checkpoints: Iterable[Path]) -> set[int]:
    """Return the epochs whose weights the checkpoints name as the best."""
    named: set[int | None] = set()
    for path in checkpoints:
        with suppress(FileNotFoundError, CheckpointError):  # a damaged one will be no loss
            named.add(read_scalars(path).get("best_epoch"))
    return {epoch for epoch in named if epoch is not None}


def _remove_best(folder: Path, named: Iterable[int | None], before: int | None = None) -> None:
    """Remove the weights of the epochs (before the given one) that are not named."""
    kept = {best_path(folder, epoch).name for epoch in named if epoch is not None}
    limit = None if before is None else best_path(folder, before).name
    for path in folder.glob("best-*.safetensors"):
        if path.name not in kept and (limit is None or path.name < limit):
            path.unlink(missing_ok=True)


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu").clone(memory_format=torch.preserve_format)
