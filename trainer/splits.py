"""The two halves of the validation split: one chooses, the other is only reported on."""

import hashlib

import numpy as np

from trainer.cache import ClipSet
from trainer.errors import DataError
from trainer.objectives import Holdout

FEWEST_CLIPS = 2
"""Of each class, so that each half has both."""


def divide(val: ClipSet, holdout: Holdout) -> tuple[ClipSet, ClipSet]:
    """Return the validation clips to choose by, and those to calibrate and to report on.

    With `half` each class falls into halves by a hash of the clips' names, so neither order nor
    numbering decides; with `none` both are all clips, and what is reported was chosen by.

    Raises:
        DataError: a class has too few clips for two halves.
    """
    if holdout == "none":
        return val, val
    require_halves(val.targets.tolist(), holdout)
    digests = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in val.names]
    order = sorted(range(len(val)), key=lambda number: digests[number])
    classes = [[number for number in order if val.targets[number] == target] for target in (0, 1)]
    choose, report = (
        val.select(np.sort(np.concatenate([members[start::2] for members in classes])))
        for start in (0, 1)
    )
    return choose, report


def require_halves(targets: list[int], holdout: Holdout) -> None:
    """Refuse validation clips that are too few for two halves with both classes.

    Raises:
        DataError: says how many there are.
    """
    num_fake = sum(targets)
    num_real = len(targets) - num_fake
    if holdout == "half" and min(num_real, num_fake) < FEWEST_CLIPS:
        raise DataError(
            f"the validation split needs at least {FEWEST_CLIPS} clips of each class to be halved,"
            f" it has {num_real} real and {num_fake} fake; add clips, or set holdout (of a recipe:"
            ' origin.holdout) = "none" and report on the clips that were chosen by'
        )
