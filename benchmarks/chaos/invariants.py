"""What must be true after the storm. Each check yields its breaches in words."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from optuna.trial import TrialState

from benchmarks.chaos.audit import Change, unix_time
from benchmarks.chaos.evidence import Evidence
from benchmarks.chaos.stage import TTL_SECONDS
from search.claim import trial_prefix

_FINISHED = ("COMPLETE", "PRUNED", "FAIL")
Check = Callable[[Evidence], Iterator[str]]


def each_study_ends(evidence: Evidence) -> Iterator[str]:
    """Once it is calm, all workers leave by themselves."""
    for study in evidence.studies:
        if not study.has_ended:
            yield f"{study.config.name} has not ended"


def budget_is_exact(evidence: Evidence) -> Iterator[str]:
    """COMPLETE and PRUNED trials are as many as were asked for."""
    for study in evidence.studies:
        ended, budget = len(study.ended_well), study.config.trials
        if ended != budget:
            yield f"{study.config.name}: {ended} trials ended well, asked were {budget}"


def none_is_left(evidence: Evidence) -> Iterator[str]:
    """No trial is RUNNING or WAITING at the end, and no number is missing."""
    for study in evidence.studies:
        if [trial.number for trial in study.trials] != list(range(len(study.trials))):
            yield f"{study.config.name}: numbers {[trial.number for trial in study.trials]}"
        for trial in study.trials:
            if not trial.state.is_finished():
                yield f"{study.config.name}: trial {trial.number} is {trial.state.name}"


def each_is_told_once(evidence: Evidence) -> Iterator[str]:
    """Every trial was ended by exactly one tell, and nothing of that was changed afterwards."""
    tells: Counter[int] = Counter()
    for change in evidence.of("trials", "trial_values"):
        trial = change.row["trial_id"]
        if change.source == "trials" and change.old.get("state") not in _FINISHED:
            tells[trial] += change.new.get("state") in _FINISHED
        elif change.deed != "insert" and change.old != change.new:
            yield f"{_name(evidence, trial)}: {change.old} became {change.new}"
    for trial in evidence.names:
        if tells[trial] != 1:
            yield f"{_name(evidence, trial)} was told {tells[trial]} times"


def no_parameters_end_twice(evidence: Evidence) -> Iterator[str]:
    """No two trials that ended well have the same parameters: nothing was trained twice over."""
    for study in evidence.studies:
        counts = Counter(str(sorted(trial.params.items())) for trial in study.ended_well)
        for params, count in counts.items():
            if count > 1:
                yield f"{study.config.name}: {count} trials ended well with {params}"


def no_report_is_missing(evidence: Evidence) -> Iterator[str]:
    """A COMPLETE trial has a report of each epoch, a PRUNED one of each up to its last."""
    for study in evidence.studies:
        for trial in study.ended_well:
            is_complete = trial.state == TrialState.COMPLETE
            steps = sorted(trial.intermediate_values)
            last = study.trained(trial).epochs if is_complete else len(steps)
            if not steps or steps != list(range(1, last + 1)):
                yield (
                    f"{study.config.name}: {trial.state.name} trial {trial.number} has reports of "
                    f"{len(steps)} epochs, {steps[:1]} to {steps[-1:]}"
                )


def no_report_is_altered(evidence: Evidence) -> Iterator[str]:
    """A report, once committed, is neither changed nor deleted."""
    for change in evidence.of("trial_intermediate_values"):
        if change.deed != "insert" and change.old != change.new:
            trial = _name(evidence, change.row["trial_id"])
            yield f"{trial}: {change.deed} of {change.old}, now {change.new}"


def no_two_hold_a_lease(evidence: Evidence) -> Iterator[str]:
    """A trial's lease changes hands only when it was given back or its time was over."""
    for change in evidence.of("melsearch_lease"):
        if change.deed != "update" or not change.row["resource"].startswith("trial:"):
            continue
        before, after = change.old["holder"], change.new["holder"]
        if before is None or after is None or before == after:
            continue
        if change.at < (free_at := _free_at(change)):
            yield f"{change.row['resource']}: {after} took it {free_at - change.at:.3f} s early"


def tokens_rise_by_one(evidence: Evidence) -> Iterator[str]:
    """A lease's token never falls, and each new holder has the next one."""
    for change in evidence.of("melsearch_lease"):
        if change.deed != "update":
            continue
        step = change.new["token"] - change.old["token"]
        is_taken = change.new["holder"] not in (None, change.old["holder"])
        if step not in ((1,) if is_taken else (0, 1)):
            yield f"{change.row['resource']}: token {change.old['token']} + {step}"


def only_holders_write(evidence: Evidence) -> Iterator[str]:
    """Every report and every tell was written by the worker that held the trial's lease then."""
    workers = {str(life.pid): f"w{life.worker}" for life in evidence.arm.exposed.crew.lives}
    holders: dict[str, str] = {}
    for change in evidence.changes:
        row = change.row
        if change.source == "melsearch_lease":
            holders[row["resource"]] = change.new.get("holder") or ""
        elif _is_write(change):
            study, number = evidence.names[row["trial_id"]]
            holder = holders.get(trial_prefix(study) + str(number), "")
            writer = workers.get(holder.split("-")[-2] if holder else "")
            if writer != change.writer:
                yield f"{study}/{number}: {change.writer} wrote, held by {holder or 'nobody'}"


def _is_write(change: Change) -> bool:
    if change.source == "trial_intermediate_values":
        return True
    is_end = change.source == "trials" and change.new.get("state") in _FINISHED
    return is_end and change.old != change.new


def _free_at(change: Change) -> float:
    """Return from when on others may take the lease; its time starts anew with the server's."""
    expires = unix_time(change.old["expires_at"])
    if expires == float("-inf"):
        return expires
    return max(expires, change.server_started + _ttl(change.old))


def _ttl(lease: dict[str, Any]) -> float:
    return float(lease.get("ttl_seconds", TTL_SECONDS))


def _name(evidence: Evidence, trial: int) -> str:
    study, number = evidence.names[trial]
    return f"{study}: trial {number}"


GENERAL: tuple[Check, ...] = (
    each_study_ends,
    budget_is_exact,
    none_is_left,
    each_is_told_once,
    no_parameters_end_twice,
    no_report_is_missing,
    no_report_is_altered,
)
OF_LEASES: tuple[Check, ...] = (no_two_hold_a_lease, tokens_rise_by_one, only_holders_write)
"""For ours alone: plain Optuna has no leases."""
EQUAL_TO_CALM = "metrics_equal_calm"
"""What calm.py finds; here only its name."""
EXPLAINED = {
    EQUAL_TO_CALM: "Each report, and the value told, is bit for bit that of a calm training.",
    **{check.__name__: (check.__doc__ or "").strip() for check in (*GENERAL, *OF_LEASES)},
}


def check(evidence: Evidence) -> dict[str, list[str]]:
    """Return the breaches of each invariant that the arm can be held to."""
    checks = GENERAL + (OF_LEASES if evidence.arm.name == "ours" else ())
    return {check.__name__: list(check(evidence)) for check in checks}
