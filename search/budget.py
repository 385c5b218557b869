"""What is left of a study's budget, and when too much has failed to go on."""

from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from search.errors import StudyFailedError
from search.study import Study

FAIL_REASON = "fail_reason"
"""The user attribute that says why a trial ended FAIL."""
_ENDED_WELL = (TrialState.COMPLETE, TrialState.PRUNED)


def has_work(study: Study) -> bool:
    """Tell whether the study's budget is not spent yet.

    Raises:
        StudyFailedError: too many trials have failed.
        DatabaseUnavailableError
    """
    with study.database.connection():
        trials, budget = study.trials(), study.budget()
    stop_if_failing(study, trials)
    return sum(trial.state in _ENDED_WELL for trial in trials) < budget


def has_room(trials: Sequence[FrozenTrial], budget: int) -> bool:
    """Tell whether one more trial may be asked for; those that wait are never left out."""
    if any(trial.state == TrialState.WAITING for trial in trials):
        return True
    return _count(trials) < budget


def _count(trials: Sequence[FrozenTrial]) -> int:
    """Count the trials that take their share of the budget."""
    return sum(trial.state != TrialState.FAIL for trial in trials)


def stop_if_failing(study: Study, trials: Sequence[FrozenTrial]) -> None:
    """Return if a study may go on.

    Raises:
        StudyFailedError: more trials have failed than it allows.
    """
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    limit = study.config.max_failed_trials
    if len(failed) > limit:
        reasons = Counter(
            trial.user_attrs.get(FAIL_REASON, "no reason was recorded") for trial in failed
        )
        reason, num_times = reasons.most_common(1)[0]
        raise StudyFailedError(
            f"study {study.name!r} stopped: {len(failed)} trials failed, allowed are "
            f"max_failed_trials = {limit}; {num_times} of them: {reason}"
        )
