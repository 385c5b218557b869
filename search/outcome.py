"""How a trial's training ended, as the database shall remember it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from search.budget import FAIL_REASON
from search.study import Study
from search.version import trained_by
from trainer.config import TrainConfig
from trainer.loop import Ending, FitResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a trial is told with."""

    state: TrialState
    value: float | None
    attributes: dict[str, Any]
    reports: Sequence[float] = ()
    """The objective after each epoch."""


def training_failed(number: int, error: Exception) -> Outcome:
    """Return the outcome of a training that raised what is the trial's own fault."""
    reason = f"{type(error).__name__}: {error}"
    logger.warning("trial_failed", extra={"trial": number, "reason": reason}, exc_info=True)
    return Outcome(TrialState.FAIL, None, {FAIL_REASON: reason})


def training_ended(study: Study, config: TrainConfig, result: FitResult) -> Outcome:
    """Return the outcome of a training that came to its end, was pruned or ran away."""
    assert result.best is not None  # an ended training has had an epoch
    objective = study.config.objective
    attributes = {
        "metrics": result.best.metrics,
        "best_epoch": result.best.epoch,
        "seconds": sum(epoch.metrics["seconds"] for epoch in result.history),
        "num_parameters": result.num_parameters,
        **trained_by(study.contract),
    }
    if result.micro_batch < config.batch_size:
        attributes["micro_batch"] = result.micro_batch
    if result.reason is not None:
        attributes["reason"] = result.reason
        logger.warning("trial_diverged", extra={"reason": result.reason})
    reports = [epoch.metrics[objective] for epoch in result.history]
    if result.ending is Ending.FINISHED:
        return Outcome(TrialState.COMPLETE, result.best.metrics[objective], attributes, reports)
    return Outcome(TrialState.PRUNED, None, attributes, reports)
