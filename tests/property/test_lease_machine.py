"""Workers that claim, die, wake up, release, report and end trials in any order, on PostgreSQL."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from optuna.trial import TrialState

from search.claim import ClaimedTrial, Claims, Nothing, trial_prefix
from search.config import StudyConfig, parse_study
from search.study import Study, create_study
from storage.database import Database
from storage.errors import LeaseLostError
from storage.leases import Leases
from tests.waiting import wait_until

TTL_SECONDS = 1.0
"""Shorter than the server has been up; what shall live on has its end moved by an hour."""
MAX_ATTEMPTS = 2
WORKERS = ("a", "b", "c")
ENDED_WELL = (TrialState.COMPLETE, TrialState.PRUNED)
_studies = itertools.count()


def study_config(name: str, trials: int) -> StudyConfig:
    """A study whose trials all fit in one hand."""
    document: dict[str, Any] = {
        "name": name,
        "trials": trials,
        "max_failed_trials": 1000,
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
        "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
        "lease": {"ttl_seconds": 3600.0, "max_attempts": MAX_ATTEMPTS},
    }
    return parse_study(document, "study.toml")


@dataclass
class Hold:
    """A claim that somebody was given, and whether he still lives."""

    worker: str
    claimed: ClaimedTrial
    is_alive: bool = True


@dataclass
class Model:
    """What must be true of a study, kept beside it."""

    budget: int
    newest: dict[int, Hold] = field(default_factory=dict)
    """The newest claim of each trial that goes on."""
    released: set[int] = field(default_factory=set)
    abandoned: set[int] = field(default_factory=set)
    attempts: dict[int, int] = field(default_factory=dict)
    ended: dict[int, tuple[TrialState, float | None]] = field(default_factory=dict)
    reports: dict[int, dict[int, float]] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    stale: list[Hold] = field(default_factory=list)
    """Claims that somebody else has taken over, or that have ended."""

    def busy(self) -> dict[str, Hold]:
        return {hold.worker: hold for hold in self.newest.values() if hold.is_alive}

    def dead(self) -> list[int]:
        return sorted(
            number
            for number, hold in self.newest.items()
            if not hold.is_alive and number not in self.released | self.abandoned
        )

    def orphans(self) -> list[int]:
        return sorted(number for number, hold in self.newest.items() if not hold.is_alive)

    def num_kept(self) -> int:
        failed = sum(state == TrialState.FAIL for state, _ in self.ended.values())
        return len(self.newest) + len(self.ended) - failed

    def expect(self) -> int | Nothing:
        """Return what the next claim must give, and end what it must end."""
        for number in self.orphans():
            if number not in self.released:
                self.attempts[number] += 1
            if self.attempts[number] < MAX_ATTEMPTS:
                return number
            self.end(number, TrialState.FAIL, None)
        if self.num_kept() < self.budget:
            return len(self.newest) + len(self.ended)
        return Nothing.WAIT if self.newest else Nothing.SPENT

    def begin(self, worker: str, claimed: ClaimedTrial) -> None:
        number = claimed.number
        if number in self.newest:
            self.stale.append(self.newest[number])
        self.newest[number] = Hold(worker, claimed)
        self.released.discard(number)
        self.abandoned.discard(number)
        self.attempts.setdefault(number, 0)
        self.reports.setdefault(number, {})
        assert claimed.lease.token > self.tokens.get(number, 0), "tokens rise"
        self.tokens[number] = claimed.lease.token

    def end(self, number: int, state: TrialState, value: float | None) -> None:
        assert number not in self.ended, "a trial ends once"
        self.stale.append(self.newest.pop(number))
        self.released.discard(number)
        self.abandoned.discard(number)
        self.ended[number] = (state, value)


class LeaseMachine(RuleBasedStateMachine):
    """Three workers on one study; one step is one thing that one of them does."""

    database: Database

    @initialize(budget=st.integers(2, 5))
    def create(self, budget: int) -> None:
        self.name = f"s{next(_studies)}"
        self.study: Study = create_study(self.database, study_config(self.name, budget), "data")
        self.leases = Leases(self.database, TTL_SECONDS)
        self.claims = {w: Claims(self.study, self.leases, w, "cpu") for w in WORKERS}
        self.model = Model(budget)

    # What living workers do.

    @precondition(lambda self: len(self.model.busy()) < len(WORKERS))
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        idle = [worker for worker in WORKERS if worker not in self.model.busy()]
        self._claim(data.draw(st.sampled_from(idle), label="worker"))

    @precondition(lambda self: self.model.busy())
    @rule(data=st.data(), values=st.lists(st.floats(0, 1), max_size=4))
    def report(self, data: st.DataObject, values: list[float]) -> None:
        hold = self._draw_busy(data)
        self.claims[hold.worker].report(hold.claimed, values)
        known = self.model.reports[hold.claimed.number]
        self.model.reports[hold.claimed.number] = dict(enumerate(values, start=1)) | known

    @precondition(lambda self: self.model.busy())
    @rule(data=st.data(), state=st.sampled_from([*ENDED_WELL, TrialState.FAIL]))
    def finish(self, data: st.DataObject, state: TrialState) -> None:
        hold = self._draw_busy(data)
        number = hold.claimed.number
        value = number / 8 if state == TrialState.COMPLETE else None
        self.claims[hold.worker].finish(hold.claimed, state, value)
        if state == TrialState.PRUNED and (known := self.model.reports[number]):
            value = known[max(known)]  # Optuna gives a pruned trial its newest report
        self.model.end(number, state, value)

    @precondition(lambda self: self.model.busy())
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        hold = self._draw_busy(data)
        assert self.leases.renew(hold.claimed.lease)
        self._set_expiry(hold.claimed, "+1 hour")

    @precondition(lambda self: self.model.busy())
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        hold = self._draw_busy(data)
        assert self.leases.release(hold.claimed.lease)
        hold.is_alive = False
        self.model.released.add(hold.claimed.number)

    @precondition(lambda self: self.model.busy())
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        hold = self._draw_busy(data)
        assert self.leases.abandon(hold.claimed.lease)
        hold.is_alive = False
        self.model.abandoned.add(hold.claimed.number)
        self.model.tokens[hold.claimed.number] += 1

    @precondition(lambda self: self.model.busy())
    @rule(data=st.data())
    def is_cut_off(self, data: st.DataObject) -> None:
        hold = self._draw_busy(data)
        self.leases.release_all(hold.worker)
        hold.is_alive = False
        # A dead worker of the same name, in this test alone, loses what it held before too.
        self.model.released |= {
            number
            for number, other in self.model.newest.items()
            if other.worker == hold.worker and not other.is_alive
        } - self.model.abandoned

    @precondition(lambda self: len(self.model.ended) >= self.model.budget)
    @rule()
    def grow_budget(self) -> None:
        self.model.budget += 1
        create_study(self.database, study_config(self.name, self.model.budget), "data")

    # What dead workers and zombies do.

    @precondition(lambda self: self.model.busy())
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        hold = self._draw_busy(data)
        hold.is_alive = False
        self._set_expiry(hold.claimed, "-1 hour")

    @precondition(lambda self: self.model.dead())
    @rule(data=st.data())
    def wake_up_in_time(self, data: st.DataObject) -> None:
        hold = self.model.newest[data.draw(st.sampled_from(self.model.dead()))]
        if hold.worker in self.model.busy():
            return
        assert self.leases.renew(hold.claimed.lease), "nobody has taken it over yet"
        self._set_expiry(hold.claimed, "+1 hour")
        hold.is_alive = True

    @precondition(lambda self: self.model.stale or self.model.released | self.model.abandoned)
    @rule(data=st.data())
    def zombie_writes(self, data: st.DataObject) -> None:
        free = sorted(self.model.released | self.model.abandoned)
        given_back = [self.model.newest[number] for number in free]
        zombies = [*self.model.stale, *given_back]
        assert not any(self.leases.renew(zombie.claimed.lease) for zombie in zombies)
        zombie = data.draw(st.sampled_from(zombies), label="zombie")
        claims, lease = self.claims[zombie.worker], zombie.claimed.lease
        with pytest.raises(LeaseLostError):
            claims.report(zombie.claimed, [0.9] * 9)
        with pytest.raises(LeaseLostError):
            claims.finish(zombie.claimed, TrialState.COMPLETE, 0.99)
        assert not self.leases.release(lease)
        assert not self.leases.end(lease)

    # What is always true.

    @invariant()
    def holders_are_the_living_ones(self) -> None:
        held = self.leases.held(trial_prefix(self.name))
        assert {(h.resource, h.holder) for h in held} == {
            (hold.claimed.lease.resource, worker) for worker, hold in self.model.busy().items()
        }
        with self.database.engine.begin() as connection:
            rows = connection.execute(
                sa.text(
                    "select resource, token from melsearch_lease "
                    "where starts_with(resource, :prefix)"
                ),
                {"prefix": trial_prefix(self.name)},
            ).all()
        tokens = {int(row.resource.rpartition(":")[2]): row.token for row in rows}
        assert tokens == {number: self.model.tokens[number] for number in self.model.newest}

    @invariant()
    def trials_are_as_they_were_left(self) -> None:
        trials = self.study.trials()
        num_kept = sum(trial.state != TrialState.FAIL for trial in trials)
        assert num_kept <= self.model.budget, "the budget is never overshot"
        for trial in trials:
            if trial.number in self.model.ended:
                assert (trial.state, trial.value) == self.model.ended[trial.number]
            else:
                assert not trial.state.is_finished()
            assert trial.intermediate_values == self.model.reports.get(trial.number, {})

    def teardown(self) -> None:
        """Let all die, and one worker do the rest: then exactly the budget has ended well."""
        if not hasattr(self, "model"):
            return
        for hold in self.model.busy().values():
            hold.is_alive = False
            self._set_expiry(hold.claimed, "-1 hour")
        while (claimed := self._claim("a")) is not None:
            self.claims["a"].finish(claimed, TrialState.COMPLETE, 0.5)
            self.model.end(claimed.number, TrialState.COMPLETE, 0.5)
        trials = self.study.trials()
        assert sum(trial.state in ENDED_WELL for trial in trials) == self.model.budget
        assert all(trial.state.is_finished() for trial in trials)
        assert [trial.number for trial in trials] == list(range(len(trials)))

    def _claim(self, worker: str) -> ClaimedTrial | None:
        expected = self.model.expect()
        found = self.claims[worker].claim()
        if not isinstance(found, ClaimedTrial):
            assert found is expected
            return None
        assert found.number == expected
        self._set_expiry(found, "+1 hour")
        self.model.begin(worker, found)
        return found

    def _draw_busy(self, data: st.DataObject) -> Hold:
        busy = self.model.busy()
        return busy[data.draw(st.sampled_from(sorted(busy)), label="worker")]

    def _set_expiry(self, claimed: ClaimedTrial, distance: str) -> None:
        statement = sa.text(
            "update melsearch_lease set expires_at = "
            "clock_timestamp() + cast(:distance as interval) where resource = :resource"
        )
        values = {"distance": distance, "resource": claimed.lease.resource}
        with self.database.engine.begin() as connection:
            assert connection.execute(statement, values).rowcount == 1


def test_no_order_of_events_loses_or_doubles_a_trial(kept: Database) -> None:
    """Whatever workers do, each trial has one holder, ends once, and the budget is exact."""
    up = sa.text("select clock_timestamp() - pg_postmaster_start_time() > interval '1.5 s'")
    with kept.engine.begin() as connection:
        wait_until(lambda: connection.execute(up).scalar())
    machine = type("Machine", (LeaseMachine,), {"database": kept})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # so few steps are read sooner than they are shrunk
            suppress_health_check=list(HealthCheck),
        ),
    )
