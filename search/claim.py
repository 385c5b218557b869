"""Which trial does this worker train now? How a trial is claimed, reported and ended.

Claims of all workers stand in a row behind one advisory lock a study, so the budget is exact. A
trial is RUNNING from its first claim to its end, whoever works on it; the lease says who does.
"""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from threading import Event
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from search.budget import FAIL_REASON, has_room, stop_if_failing
from search.errors import StudyError
from search.pruning import judge
from search.space import config_from_params, suggest, suggest_baseline
from search.study import BASELINE, Study, make_sampler
from storage.errors import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    LeaseLostError,
    StorageError,
)
from storage.leases import Lease, Leases
from trainer.config import TrainConfig

logger = logging.getLogger(__name__)

GIVEN_UP = "given_up"
"""The user attribute that says why the last worker which gave a trial up did so."""


class Nothing(Enum):
    """Why there is nothing to claim."""

    WAIT = "others work on the last trials, and one of them may be orphaned yet"
    SPENT = "the budget is spent"


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this worker may train, as long as its lease holds."""

    trial: Trial
    lease: Lease
    config: TrainConfig
    is_baseline: bool
    judged: set[int] = field(default_factory=set)
    """The epochs of which it is known whether the trial is to be pruned."""
    notes: dict[str, Any] = field(default_factory=dict)
    """The pruner's on a trial that is to be pruned; written when it ends."""

    @property
    def number(self) -> int:
        """The trial's number in its study."""
        return self.trial.number


class Claims:
    """The claims of one worker on one study."""

    def __init__(self, study: Study, leases: Leases, worker: str, device: str) -> None:
        self._study = study
        self._leases = leases
        self._worker = worker
        self._device = device
        self._is_unsure = False
        """Whether a claim broke off, so that this worker may hold a lease it doesn't know of."""

    def next_trial(self, stop: Event, poll_seconds: float = 1.0) -> ClaimedTrial | None:
        """Claim a trial; wait for one while others still work; None if there will be none.

        An outage of the database is waited out, and so is a server that refuses us for a while.

        Raises:
            StudyFailedError: too many trials have failed.
        """
        while not stop.is_set():
            claimed: ClaimedTrial | Nothing = Nothing.WAIT
            with suppress(DatabaseUnavailableError, DatabaseRefusedError, LeaseLostError):
                claimed = self.claim()
            if isinstance(claimed, ClaimedTrial):
                return claimed
            if claimed is Nothing.SPENT:
                return None
            stop.wait(poll_seconds * random.uniform(0.5, 1.5))  # noqa: S311  (no secret)
        return None

    def claim(self) -> ClaimedTrial | Nothing:
        """Take over an orphaned trial, or else ask for a new one if the budget allows it.

        All of it happens on the one connection that holds the lock: without the lock, nothing.

        Raises:
            StudyFailedError: too many trials have failed.
            DatabaseUnavailableError
        """
        try:
            with (
                self._study.database.locked(f"melsearch:claim:{self._study.name}"),
                _ended_means_lost(),
            ):
                return self._claim()
        except StorageError:
            self._is_unsure = True
            raise

    def _claim(self) -> ClaimedTrial | Nothing:
        if self._is_unsure:
            self._leases.release_all(self._worker, trial_prefix(self._study.name))
            self._is_unsure = False
        trials = self._study.trials()
        for orphan in trials:
            if orphan.state == TrialState.RUNNING and (claimed := self._take_over(orphan)):
                return claimed
        trials = self._study.trials()
        stop_if_failing(self._study, trials)
        if has_room(trials, self._study.budget()):
            return self._ask(len(trials))
        running = any(trial.state == TrialState.RUNNING for trial in trials)
        return Nothing.WAIT if running else Nothing.SPENT

    def report(self, claimed: ClaimedTrial, values: Sequence[float]) -> bool:
        """Send the epochs' objective values that the database lacks; tell whether to prune.

        `values[i]` belongs to epoch i + 1. The baseline is never pruned, nor is a trial at its last
        epoch: there is nothing left to save. A decision that an outage, or a dead worker, kept back
        is taken with the next call.

        Raises:
            LeaseLostError, DatabaseUnavailableError
        """
        with self._study.database.connection(), self._leases.fence(claimed.lease):
            known = self._read(claimed.trial._trial_id)
            for epoch, value in enumerate(values, start=1):
                if epoch not in known.intermediate_values:
                    claimed.trial.report(value, epoch)
                elif epoch != known.last_step:
                    continue
                if self._judge(claimed, epoch):
                    return True
        return False

    def _judge(self, claimed: ClaimedTrial, epoch: int) -> bool:
        """Tell whether the newest report is a reason to prune; once for each epoch.

        A pruner notes which rungs a trial has reached, and judges them no more. So its notes on a
        poor trial are written when that ends: if its worker dies before, the next one judges it.
        """
        if claimed.is_baseline or epoch >= claimed.config.epochs or epoch in claimed.judged:
            return False
        is_poor, notes = judge(self._study.optuna, self._read(claimed.trial._trial_id))
        if is_poor:
            claimed.notes.update(notes)
        else:
            self._note(claimed.trial, notes)
        claimed.judged.add(epoch)
        return is_poor

    def _note(self, trial: Trial, notes: Mapping[str, Any]) -> None:
        for key, note in notes.items():
            self._study.optuna._storage.set_trial_system_attr(trial._trial_id, key, note)

    def finish(
        self,
        claimed: ClaimedTrial,
        state: TrialState,
        value: float | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        """End the trial and its lease; idempotent.

        Raises:
            LeaseLostError, DatabaseUnavailableError
        """
        with self._study.database.connection():
            self._end(claimed.trial, claimed.lease, state, value, attributes or {}, claimed.notes)

    def give_up(self, claimed: ClaimedTrial, reason: str) -> None:
        """Leave the trial to the next worker as if this one had died of it; tell of what.

        Raises:
            LeaseLostError, DatabaseUnavailableError
        """
        with self._study.database.connection():
            with self._leases.fence(claimed.lease):
                claimed.trial.set_user_attr(GIVEN_UP, reason)
            self._leases.abandon(claimed.lease)

    def _end(
        self,
        trial: Trial,
        lease: Lease,
        state: TrialState,
        value: float | None,
        attributes: Mapping[str, Any],
        notes: Mapping[str, Any],
    ) -> None:
        with self._leases.fence(lease):
            if not self._read(trial._trial_id).state.is_finished():
                self._note(trial, notes)
                for key, attribute in attributes.items():
                    trial.set_user_attr(key, attribute)
                self._study.optuna.tell(trial.number, value, state)
        self._leases.end(lease)

    def _fail(self, trial: Trial, lease: Lease, reason: str) -> None:
        """End a trial that nobody can or may train."""
        self._end(trial, lease, TrialState.FAIL, None, {FAIL_REASON: reason}, {})
        logger.warning("trial_failed", extra={"trial": trial.number, "reason": reason})

    def _take(self, orphan: FrozenTrial) -> tuple[Trial, Lease] | None:
        """Take the lease of a RUNNING trial, unless its worker lives or has just ended it."""
        lease = self._leases.take(trial_prefix(self._study.name) + str(orphan.number), self._worker)
        if lease is None:
            return None
        if self._read(orphan._trial_id).state.is_finished():
            self._leases.end(lease)
            return None
        return Trial(self._study.optuna, orphan._trial_id), lease

    def _take_over(self, orphan: FrozenTrial) -> ClaimedTrial | None:
        taken = self._take(orphan)
        if taken is None:
            return None
        trial, lease = taken
        if lease.attempts >= self._study.config.lease.max_attempts:
            reason = orphan.user_attrs.get(GIVEN_UP, "its worker died")
            self._fail(trial, lease, f"given up after {lease.attempts} attempts: {reason}")
            return None
        context = {"trial": orphan.number, "token": lease.token, "attempts": lease.attempts}
        logger.info("trial_taken_over", extra=context)
        return self._join(trial, lease)

    def _read(self, trial_id: int) -> FrozenTrial:
        return self._study.optuna._storage.get_trial(trial_id)

    def _ask(self, number: int) -> ClaimedTrial | Nothing:
        self._study.optuna.sampler = make_sampler(self._study.config, number)
        trial = self._study.optuna.ask()
        with suppress(StudyError):  # _join meets it again, and records it
            self._suggest(trial)
        lease = self._leases.take(trial_prefix(self._study.name) + str(trial.number), self._worker)
        if lease is None:
            raise LeaseLostError(f"trial {trial.number} was taken over while it was claimed")
        return self._join(trial, lease) or Nothing.WAIT

    def _join(self, trial: Trial, lease: Lease) -> ClaimedTrial | None:
        """Complete the suggestions that a dead worker may not have come to, and sign the trial.

        A trial whose parameters make no training ends FAIL here.
        """
        self._study.optuna.sampler = make_sampler(self._study.config, trial.number)
        try:
            config = self._suggest(trial)
        except StudyError as error:
            self._fail(trial, lease, str(error))
            return None
        with self._leases.fence(lease):
            trial.set_user_attr("worker", self._worker)
            trial.set_user_attr("device", self._device)
        return ClaimedTrial(trial, lease, config, _is_baseline(trial))

    def _suggest(self, trial: Trial) -> TrainConfig:
        suggested = suggest_baseline if _is_baseline(trial) else suggest
        return suggested(trial, self._study.config)


def trial_prefix(study: str) -> str:
    """Return what the names of the study's trial leases start with; the number follows."""
    return f"trial:{study}:"


def worker_prefix(study: str) -> str:
    """Return what the leases start with by which the study's workers say that they are there."""
    return f"worker:{study}:"


def trained_config(study: Study, trial: FrozenTrial) -> TrainConfig:
    """Return what a trial trains, from what the database knows of it."""
    return config_from_params(study.config, trial.params, _is_baseline(trial))


def _is_baseline(trial: Trial | FrozenTrial) -> bool:
    return bool(trial.user_attrs.get(BASELINE, False))


@contextmanager
def _ended_means_lost() -> Iterator[None]:
    """Say LeaseLostError where Optuna refuses to change a trial that somebody else has ended."""
    try:
        yield
    except UpdateFinishedTrialError as error:
        raise LeaseLostError("the trial was ended while it was claimed") from error
