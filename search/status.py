"""How a study stands: counts, best so far against the baseline, workers, time left."""

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import typer
from optuna.trial import FrozenTrial, TrialState
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.budget import FAIL_REASON
from search.claim import trial_prefix, worker_prefix
from search.console import make_console
from search.study import BASELINE, Study
from storage.leases import Leases
from trainer.objectives import sign_of

_WATCH_SECONDS = 2.0
_COUNTS = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "waiting": TrialState.WAITING,
}


def read_status(study: Study) -> dict[str, Any]:
    """Return how the study stands now, as `melsearch status --json` prints it.

    Raises:
        DatabaseUnavailableError
    """
    with study.database.connection():
        return _read_status(study)


def _read_status(study: Study) -> dict[str, Any]:
    trials = study.trials()
    budget = study.budget()
    counts = {
        name: sum(trial.state == state for trial in trials) for name, state in _COUNTS.items()
    }
    workers = _workers(study, trials)
    num_training = sum(worker["device"] is not None for worker in workers)
    return {
        "study": study.name,
        "budget": budget,
        "counts": counts,
        "best": _best(study, trials),
        "baseline": _baseline(study, trials),
        "workers": workers,
        "eta_seconds": _eta_seconds(trials, budget, num_training),
        "versions": count_versions(trials),
    }


def best_trial(study: Study, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the complete trial with the best value, the earlier one of equals."""
    return next(iter(best_trials(study, trials)), None)


def best_trials(study: Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the complete trials, the best first, the earlier ones of equals."""
    sign = sign_of(study.config.objective)
    complete = [
        (sign * trial.value, -trial.number, trial)
        for trial in trials
        if trial.state == TrialState.COMPLETE and trial.value is not None
    ]
    return [trial for *_, trial in sorted(complete, reverse=True)]


def count_versions(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Count the trained trials by what trained them, e.g. `0.1.0+3f2a90c1 (timm 1.0.33)`."""
    trained = (trial.user_attrs for trial in trials if "code_version" in trial.user_attrs)
    return dict(Counter(map(_version_words, trained)))


def mixed_words(versions: Mapping[str, int]) -> str:
    """Return a line that says what trained how many of a study's trials."""
    counts = ", ".join(f"{number} by {words}" for words, number in versions.items())
    return f"mixed, so trials may not compare: {counts}"


def _version_words(attributes: Mapping[str, Any]) -> str:
    code, libraries = attributes["code_version"], attributes.get("libraries", {})
    others = ", ".join(f"{name} {version}" for name, version in libraries.items())
    return f"{code} ({others})" if others else code


def _best(study: Study, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    best = best_trial(study, trials)
    if best is None:
        return None
    return {
        "trial": best.number,
        "value": best.value,
        "params": best.params,
        "metrics": best.user_attrs.get("metrics", {}),
    }


def _baseline(study: Study, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    sign = sign_of(study.config.objective)
    for trial in trials:
        if trial.user_attrs.get(BASELINE):
            so_far = max(
                trial.intermediate_values.values(), key=lambda value: sign * value, default=None
            )
            value = trial.value if trial.state == TrialState.COMPLETE else so_far
            failed = {"failed": trial.user_attrs.get(FAIL_REASON, "no reason was recorded")}
            is_failed = trial.state == TrialState.FAIL
            return {"trial": trial.number, "value": value} | (failed if is_failed else {})
    return None


def _workers(study: Study, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    ttl_seconds = study.config.lease.ttl_seconds
    leases = Leases(study.database, ttl_seconds)
    running = {trial.number: trial for trial in trials if trial.state == TrialState.RUNNING}
    trial_of = {
        held.holder: running.get(int(held.resource.rsplit(":", 1)[1]))
        for held in leases.held(trial_prefix(study.name))
    }
    slot_of = {held.holder: "cpu" for held in leases.held("cpu:")}
    slot_of |= {held.holder: held.resource for held in leases.held("gpu:")}
    return [
        {
            "id": held.holder,
            "trial": trial.number if trial else None,
            "epoch": (trial.last_step or 0) if trial else None,
            "device": (trial and trial.user_attrs.get("device")) or slot_of.get(held.holder),
            "seen_seconds_ago": round(max(0.0, ttl_seconds - held.seconds_left), 1),
        }
        for held in leases.held(worker_prefix(study.name))
        for trial in [trial_of.get(held.holder)]
    ]


def _eta_seconds(trials: Sequence[FrozenTrial], budget: int, num_workers: int) -> float | None:
    """Expect of each trial to come what the ended ones took on average; None if unknown."""
    ended = [
        trial.duration.total_seconds()
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.duration
    ]
    to_come = budget - len(ended)
    if to_come <= 0:
        return 0.0
    if not ended or not num_workers:
        return None
    return round(to_come * sum(ended) / len(ended) / min(num_workers, to_come), 1)


def show_status(study: Study, *, as_json: bool) -> None:
    """Print how the study stands now, for people or as one JSON object.

    Raises:
        DatabaseUnavailableError
    """
    status = study.database.repeat(lambda: read_status(study))
    if as_json:
        typer.echo(json.dumps(status, default=str))
    else:
        make_console().print(render_status(status))


def watch_status(study: Study, *, as_json: bool) -> NoReturn:
    """Print it again and again, until a signal or an error ends it.

    Raises:
        DatabaseUnavailableError
    """
    while as_json:
        show_status(study, as_json=True)
        time.sleep(_WATCH_SECONDS)
    with Live(console=make_console(), auto_refresh=False) as live:
        while True:
            status = study.database.repeat(lambda: read_status(study))
            live.update(render_status(status), refresh=True)
            time.sleep(_WATCH_SECONDS)


def render_status(status: dict[str, Any], no_worker: str = "no worker is there") -> RenderableType:
    """Draw a status for a terminal."""
    counts = status["counts"]
    ended = counts["complete"] + counts["pruned"]
    head = Table.grid(padding=(0, 2))
    head.add_row("study", Text(status["study"], style="bold"))
    head.add_row("trials", f"{ended} of {status['budget']} ended   {_count_words(counts)}")
    head.add_row("baseline", _value_words(status["baseline"]))
    head.add_row("best so far", Text(_value_words(status["best"]), style="bold green"))
    if best := status["best"]:
        words = ", ".join(f"{name} {_short(value)}" for name, value in best["params"].items())
        head.add_row("", words)
    if len(status["versions"]) > 1:
        head.add_row("versions", Text(mixed_words(status["versions"]), style="yellow"))
    head.add_row("time left", _duration_words(status["eta_seconds"]))
    workers = _worker_table(status["workers"]) if status["workers"] else Text(no_worker)
    return Group(head, Text(), workers)


def _worker_table(workers: Sequence[dict[str, Any]]) -> RenderableType:
    table = Table("worker", "trial", "epoch", "device", "seen", box=None, header_style="dim")
    for worker in workers:
        table.add_row(
            worker["id"],
            _doing(worker),
            "" if worker["epoch"] is None else str(worker["epoch"]),
            _short_uuid(worker["device"] or ""),
            f"{worker['seen_seconds_ago']:.0f} s ago",
        )
    return table


def _doing(worker: dict[str, Any]) -> str:
    if worker["device"] is None:
        return "waits for a GPU"
    return "waits" if worker["trial"] is None else str(worker["trial"])


def _count_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number)


def _value_words(of: dict[str, Any] | None) -> str:
    if of is not None and "failed" in of:
        return f"failed (trial {of['trial']}): {of['failed']}"
    if of is None or of["value"] is None:
        return "none yet"
    return f"{of['value']:.4f} (trial {of['trial']})"


def _duration_words(seconds: float | None) -> str:
    if seconds is None:
        return "not known yet"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _short_uuid(device: str) -> str:
    """Return the device with as much of its UUID as tells GPUs apart."""
    return re.sub(r"\b((?:GPU|MIG)-\w{8})-[\w-]+", r"\1", device)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
