"""The storm in figures, for one arm."""

from collections import Counter
from itertools import pairwise

from optuna.trial import TrialState

from benchmarks.chaos.evidence import Evidence, StudyEvidence


def figures(evidence: Evidence) -> dict[str, float | int | str]:
    """Return what the report's table shows, by its rows' names."""
    states = Counter(trial.state for study in evidence.studies for trial in study.trials)
    asked = sum(study.config.trials for study in evidence.studies)
    ended_well = states[TrialState.COMPLETE] + states[TrialState.PRUNED]
    lives = evidence.arm.exposed.crew.lives
    num_epochs = sum(len(study.epochs) for study in evidence.studies)
    num_twice = num_epochs - sum(len(set(study.epochs)) for study in evidence.studies)
    num_lost = num_epochs - sum(map(_num_useful, evidence.studies))
    logs = [log for study in evidence.studies for log in study.logs]
    return {
        "studies": len(evidence.studies),
        "trials asked": asked,
        "complete": states[TrialState.COMPLETE],
        "pruned": states[TrialState.PRUNED],
        "failed": states[TrialState.FAIL],
        "left RUNNING or WAITING": states[TrialState.RUNNING] + states[TrialState.WAITING],
        "ended well beyond the budget": sum(
            max(0, len(study.ended_well) - study.config.trials) for study in evidence.studies
        ),
        "ended well with parameters of another": ended_well
        - sum(
            len({str(sorted(trial.params.items())) for trial in study.ended_well})
            for study in evidence.studies
        ),
        "epochs trained": num_epochs,
        "epochs trained twice": f"{num_twice} ({_share(num_twice, num_epochs)})",
        "work lost: epochs twice, or of trials that failed": (
            f"{num_lost} ({_share(num_lost, num_epochs)})"
        ),
        "longest gap in reports, seconds": round(longest_gap(evidence), 1),
        "trials that ended well a minute": round(ended_well / _minutes(evidence), 2),
        "starts of a worker": len(lives),
        "left with exit code 0": sum(life.code == 0 for life in lives),
        "killed by a signal": sum((life.code or 0) < 0 for life in lives),
        "died by themselves": sum((life.code or 0) > 0 for life in lives),
        "logs with a traceback": sum("Traceback (most recent" in log for log in logs),
        "logs with StorageInternalError": sum("StorageInternalError" in log for log in logs),
        "logs with AssertionError": sum("AssertionError" in log for log in logs),
    }


def longest_gap(evidence: Evidence) -> float:
    """Return the longest time between two reports of one study that the storm had a part in."""
    first, last = evidence.arm.span
    times: dict[str, list[float]] = {}
    for change in evidence.of("trial_intermediate_values"):
        if change.deed == "insert":
            study, _ = evidence.names[change.row["trial_id"]]
            times.setdefault(study, []).append(change.at)
    pairs = (pair for found in times.values() for pair in pairwise(found))
    gaps = (later - sooner for sooner, later in pairs if later > first and sooner < last)
    return max(gaps, default=0.0)


def _minutes(evidence: Evidence) -> float:
    """Return how long the arm had workers, from the storm's beginning on."""
    ends = [life.ended for life in evidence.arm.exposed.crew.lives if life.ended is not None]
    return (max(ends) - evidence.arm.span[0]) / 60


def _num_useful(study: StudyEvidence) -> int:
    """Count the distinct epochs that were trained for trials that ended well."""
    numbers = {trial.system_attrs.get("failed_trial", trial.number) for trial in study.ended_well}
    return len({epoch for epoch in study.epochs if epoch[0] in numbers})


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"
