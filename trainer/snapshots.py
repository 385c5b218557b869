"""A training's folder: the newest checkpoint and the best epoch's weights, which always agree."""

import errno
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint import (
    CheckpointError,
    load_checkpoint,
    remove_stale_temporaries,
    rename_checkpoint,
    save_checkpoint,
)

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = "checkpoint.safetensors"
BEST_NAME = "best.safetensors"
NEXT_BEST_NAME = "best.next.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


class Snapshots:
    """Saves and loads one training's state.

    New best weights are written beside the old ones first, then the checkpoint that names their
    epoch, then they take the old ones' place: a kill at any moment leaves a pair that agrees, or
    one that load() can complete. One process writes at a time.
    """

    def __init__(
        self, folder: Path, identity: str, before_replace: Callable[[], None] = lambda: None
    ) -> None:
        self.folder = folder
        self.identity = identity
        self._before_replace = before_replace
        self._unsaved: tuple[int, dict[str, Tensor]] | None = None

    def keep_best(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Copy an epoch's weights; the next save writes them."""
        self._unsaved = (epoch, {name: _copy(value) for name, value in weights.items()})

    def save(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> bool:
        """Write the state, and the best weights if there are new ones.

        A disk that is full costs the checkpoint, not the training: it is logged, the old state
        stays and False comes back.
        """
        try:
            if self._unsaved is not None:
                epoch, weights = self._unsaved
                best = {"epoch": epoch, "identity": self.identity}
                save_checkpoint(self.folder / NEXT_BEST_NAME, weights, best, self._before_replace)
            state = {**scalars, "identity": self.identity}
            save_checkpoint(self.folder / CHECKPOINT_NAME, tensors, state, self._before_replace)
            if self._unsaved is not None:
                rename_checkpoint(self.folder / NEXT_BEST_NAME, self.folder / BEST_NAME)
                self._unsaved = None
        except OSError as error:
            context = {"folder": str(self.folder), "reason": str(error)}
            logger.warning("checkpoint_failed", extra=context)
            return False
        return True

    def load(self) -> Snapshot | None:
        """Return the newest state, None if there is none that can be gone on from.

        A damaged checkpoint, or one of another training, is logged and ignored.

        Raises:
            OSError: the folder can't be written, now and hence at the end of every epoch.
        """
        self._try_writing()
        remove_stale_temporaries(self.folder)
        path = self.folder / CHECKPOINT_NAME
        if not path.exists():
            return None
        try:
            tensors, scalars = load_checkpoint(path)
        except CheckpointError as error:
            self._ignore(str(error))
            return None
        if scalars.get("identity") != self.identity:
            self._ignore("it is of other parameters or other clips")
        elif not self._complete_best(scalars.get("best_epoch")):
            self._ignore("the best epoch's weights are missing or damaged")
        else:
            return Snapshot(tensors, scalars)
        return None

    def _try_writing(self) -> None:
        """Find out before the training whether its checkpoints can be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # space may come back
                raise

    def _complete_best(self, best_epoch: int | None) -> bool:
        """Make best.safetensors agree with a checkpoint; False if that is impossible."""
        if best_epoch is None:
            return True
        if self._read_epoch(NEXT_BEST_NAME) == best_epoch:
            rename_checkpoint(self.folder / NEXT_BEST_NAME, self.folder / BEST_NAME)
        (self.folder / NEXT_BEST_NAME).unlink(missing_ok=True)
        return self._read_epoch(BEST_NAME) == best_epoch

    def _read_epoch(self, name: str) -> int | None:
        try:
            _, scalars = load_checkpoint(self.folder / name)
        except (FileNotFoundError, CheckpointError):
            return None
        return scalars.get("epoch") if scalars.get("identity") == self.identity else None

    def _ignore(self, reason: str) -> None:
        context = {"folder": str(self.folder), "reason": reason}
        logger.warning("checkpoint_ignored", extra=context)


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu").clone(memory_format=torch.preserve_format)
