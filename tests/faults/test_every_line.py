"""A worker that is killed at each line, one after the other, from its claim to its trial's end."""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from optuna.trial import TrialState

import search.claim
import storage.leases
from search.claim import ClaimedTrial, Claims, Nothing, trial_prefix
from search.config import parse_study
from search.study import Study, create_study, open_study
from storage.database import Database, parse_url
from storage.leases import Leases

BUDGET = 2
TRACED = {search.claim.__file__, storage.leases.__file__}
_TTL_SECONDS = 0.001  # so that the next worker need not wait


def document(name: str) -> dict[str, Any]:
    """A study whose trials end at once, with a parameter that depends on another."""
    return {
        "name": name,
        "trials": BUDGET,
        "sampler": {"name": "random"},
        "pruner": {"name": "asha", "min_epochs": 1},
        "space": {
            "optimizer": {"type": "categorical", "choices": ["adam", "sgd"]},
            "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "momentum": {"type": "float", "low": 0.5, "high": 0.9, "when": {"optimizer": "sgd"}},
        },
    }


def work(study: Study, worker: str) -> None:
    """Claim trials, report two epochs of each and end it, until the budget is spent."""
    claims = Claims(study, Leases(study.database, _TTL_SECONDS), worker, "cpu")
    while (found := claims.claim()) is not Nothing.SPENT:
        if isinstance(found, ClaimedTrial):
            claims.report(found, [0.25])
            claims.report(found, [0.25, 0.5])
            claims.finish(found, TrialState.COMPLETE, 0.5, {"who": worker})


def run_killed(act: Callable[[], None], line: int) -> bool:
    """Run it in a process that kills itself at the line-th new line; tell whether it got so far."""
    child = os.fork()
    if child == 0:
        seen: set[tuple[str, int]] = set()

        def trace(frame: FrameType, event: str, _: object) -> Any:
            if frame.f_code.co_filename not in TRACED:
                return None
            if event == "line":
                seen.add((frame.f_code.co_filename, frame.f_lineno))
                if len(seen) == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            act()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_death_at_any_line_loses_and_doubles_nothing(kept: Database, database_url: str) -> None:
    """Whatever line was the last one, the next worker ends exactly the budget, each trial once."""
    for line in itertools.count(1):
        study = create_study(kept, parse_study(document(f"s{line}"), "study.toml"), "data")

        def act(name: str = study.name) -> None:
            work(open_study(Database(parse_url(database_url, {})), name), "killed")

        was_killed = run_killed(act, line)
        work(study, "next")
        trials = study.trials()
        assert [trial.number for trial in trials] == list(range(BUDGET)), line
        assert all(trial.state == TrialState.COMPLETE for trial in trials), line
        assert all(trial.value == 0.5 for trial in trials), line
        assert all(trial.intermediate_values == {1: 0.25, 2: 0.5} for trial in trials), line
        assert Leases(kept, 60).held(trial_prefix(study.name)) == [], line
        if not was_killed:
            break
    assert line > 80, "all of claim, report and finish was walked through"
