"""What a search judges by: metrics, which way each is better, on which clips. Imports no numpy."""

from typing import Literal

Objective = Literal[
    "accuracy", "balanced_accuracy", "auc", "eer", "tpr_at_fpr_1e-2", "tpr_at_fpr_1e-3",
    "min_dcf", "cllr", "nll", "brier", "ece",
]  # fmt: skip
"""Every metric of `trainer.measures.MEASURES`."""

CALIBRATED: tuple[Objective, ...] = ("nll", "cllr", "ece")
"""What a temperature can change; it leaves the order of the clips as it is."""

Holdout = Literal["half", "none"]
"""Which part of the validation clips chooses nothing."""

_LOWER_IS_BETTER = frozenset(
    {"loss", "train_loss", "eer", "min_dcf", "cllr", "nll", "brier", "ece"}
)


def sign_of(metric: str) -> int:
    """Return 1 for a metric of which more is better, -1 for one of which less is."""
    return -1 if metric in _LOWER_IS_BETTER else 1
