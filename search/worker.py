"""The worker: claim a trial, train it, report, tell, until the budget is spent."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from search.budget import has_work
from search.claim import ClaimedTrial, Claims, worker_prefix
from search.create import require_copies
from search.errors import ContractError, GpuLostError, SearchError, WorkerFailedError
from search.holding import Keeper, Standstill, leave_in_time, until_told
from search.home import Home
from search.outcome import Outcome, training_ended, training_failed
from search.reporting import Reporter
from search.slots import Slot, Trouble, hold_slot, rest_if_troubled
from search.study import Study
from search.vacancy import SlotWish
from search.version import check_versions
from storage.artifacts import Artifacts
from storage.errors import LeaseLostError, StorageError
from storage.leases import Lease, Leases
from storage.schema import forget_old_commits
from trainer.cache import WaveformCache, find_cache, list_caches
from trainer.device import count_threads
from trainer.errors import CacheDamagedError, WeightsError
from trainer.loop import Ending, EpochResult, FitResult, fit
from trainer.snapshots import remove_checkpoints
from trainer.splits import divide

logger = logging.getLogger(__name__)

HOST_FAULTS = (OSError, CacheDamagedError)
"""What is this host's fault, not the trial's: it is given back for another one to train."""
UNSURE_FAULTS = (MemoryError, WeightsError)
"""What may be the trial's fault on every host: given back, too, but it counts as an attempt."""


@dataclass(frozen=True)
class Worker:
    """One worker process on one study."""

    study: Study
    leases: Leases
    keeper: Keeper
    claims: Claims
    cache: WaveformCache
    artifacts: Artifacts
    slot: Slot
    stop: Event

    def run(self) -> int:
        """Train trials until the budget is spent or `stop` is set; return how many ended here.

        Raises:
            StudyFailedError: too many trials have failed.
        """
        num_ended = 0
        while (claimed := self.claims.next_trial(self.stop)) is not None:
            context = {"trial": claimed.number, "token": claimed.lease.token}
            settings = self.study.config.lease
            try:
                with self.keeper.keep(claimed.lease) as hold:
                    allowed = settings.ttl_seconds - settings.renew_seconds
                    still = Standstill(claimed.lease, hold, allowed)
                    ended = self._train(claimed, still)
            except LeaseLostError:
                logger.warning("lease_lost", extra=context)
                continue
            num_ended += ended
            logger.info("trial_ended" if ended else "trial_released", extra=context)
        return num_ended

    def _train(self, claimed: ClaimedTrial, still: Standstill) -> bool:
        """Train a claimed trial; return whether it ended (else it was given back)."""
        outcome = self._outcome(claimed, still) if self._begin(claimed) else None
        if outcome is None:
            self.slot.trouble.trial = claimed.number
            until_told(lambda: self.leases.release(claimed.lease), self.stop)
            return False
        ended = until_told(lambda: self._tell(claimed, outcome), self.stop)
        if ended:
            self._tidy(claimed)
        return ended

    def _begin(self, claimed: ClaimedTrial) -> bool:
        """Make the slot ready for the trial; False if it is another worker's by now."""
        if not self.slot.begin_trial():
            return False
        context = {"trial": claimed.number, "token": claimed.lease.token}
        facts = {"threads": count_threads(), "config": claimed.config.model_dump()}
        logger.info("trial_started", extra=context | facts)
        return True

    def _tell(self, claimed: ClaimedTrial, outcome: Outcome) -> None:
        """Send the reports that an outage or a dead worker kept back, then end the trial."""
        while self.claims.report(claimed, outcome.reports):
            pass  # an epoch of an ended training is no longer worth pruning
        self.claims.finish(claimed, outcome.state, outcome.value, outcome.attributes)

    def _outcome(self, claimed: ClaimedTrial, still: Standstill) -> Outcome | None:
        """Fit; None if the training was stopped before its end.

        Raises:
            LeaseLostError: right out of the training, which then writes no checkpoint either.
            WorkerFailedError: files or memory are not what a training needs here.
        """
        reporter = Reporter(
            lambda values: self.claims.report(claimed, values),
            self.study.database.outage,
            claimed.number,
        )
        try:
            with reporter.closing():
                result = self._fit(claimed, still, reporter)
        except StorageError:
            raise
        except (*HOST_FAULTS, *UNSURE_FAULTS) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, UNSURE_FAULTS):
                self._give_up(claimed, reason)
            else:
                until_told(lambda: self.leases.release(claimed.lease), self.stop)
            raise WorkerFailedError(f"this host can't train: {reason}") from error
        except Exception as error:
            if self._blame_gpu(claimed, error):
                return None
            return training_failed(claimed.number, error)  # it is recorded; the others go on
        if result.ending is Ending.STOPPED and not reporter.is_poor():
            return None
        return training_ended(self.study, claimed.config, result)

    def _fit(self, claimed: ClaimedTrial, still: Standstill, reporter: Reporter) -> FitResult:
        objective = self.study.config.objective

        def report(history: Sequence[EpochResult]) -> bool:
            last = history[-1]
            context = {"trial": claimed.number, "epoch": last.epoch, "metrics": last.metrics}
            logger.info("epoch_ended", extra=context)
            return reporter.report([epoch.metrics[objective] for epoch in history])

        def should_stop() -> bool:
            still.require_lease()
            return self.stop.is_set() or reporter.is_poor()

        choose, _ = divide(self.cache.split("val"), self.study.config.holdout)
        return fit(
            claimed.config,
            self.cache.split("train"),
            choose,
            folder=self._folder(claimed),
            device=self.slot.device,
            objective=objective,
            on_epoch=report,
            should_stop=should_stop,
            before_replace=still.require_certainty,
        )

    def _blame_gpu(self, claimed: ClaimedTrial, error: Exception) -> bool:
        """Tell whether the GPU made the training fail; the worker then leaves, the trial goes on.

        A trial that may have broken the GPU is given up as if its worker had died of it, so that
        it can't break one after the other.
        """
        if self.slot.trouble.reason:  # it was gone before
            return True
        fault = self.slot.find_fault(error)
        if fault is None:
            return False
        self._give_up(claimed, fault)
        self.slot.lose(fault)
        return True

    def _give_up(self, claimed: ClaimedTrial, reason: str) -> None:
        """Give a trial back as if its worker had died of it: it comes back max_attempts times."""
        with suppress(LeaseLostError):  # it is given back already, or another's
            until_told(lambda: self.claims.give_up(claimed, reason), self.stop)

    def _folder(self, claimed: ClaimedTrial) -> Path:
        return self.artifacts.trial_folder(self.study.name, claimed.number)

    def _tidy(self, claimed: ClaimedTrial) -> None:
        """An ended trial needs no checkpoint to resume from."""
        try:
            remove_checkpoints(self._folder(claimed))
        except OSError as error:
            context = {"trial": claimed.number, "reason": str(error)}
            logger.warning("checkpoints_not_removed", extra=context)


def open_cache(study: Study, cache_root: Path) -> WaveformCache:
    """Open the waveform cache that holds exactly the study's data, and all that trials read of it.

    Raises:
        ContractError: there is none; says what there is instead.
    """
    path = find_cache(cache_root, study.data_fingerprint)
    if path is not None:
        cache = WaveformCache.open(path)
        fix = "run `melsearch prepare DATA --study STUDY.toml` on this host"
        require_copies(study.config, cache, fix)
        return cache
    found = [
        f"  data_fingerprint: study {study.data_fingerprint}, here {fingerprint} ({root})"
        for _, root, fingerprint in list_caches(cache_root)
    ]
    raise ContractError(
        f"the data of study {study.name!r} are not here:\n"
        + "\n".join(found or [f"  no waveform cache in {cache_root}"])
        + "\nrun `melsearch prepare DATA --study STUDY.toml` on the folder that it was created with"
    )


def run_worker(
    study: Study, home: Home, wish: SlotWish, stop: Event, *, allow_mismatch: bool = False
) -> int:
    """Join a study as one more worker, once a slot is free; return how many trials ended here.

    Raises:
        ContractError: the data or the code here are not those of the study.
        ConfigError, DeviceError: this host has no such device.
        StudyFailedError: too many trials have failed.
        GpuLostError: the GPU can't be used any more.
        WorkerFailedError: files or memory are not what a training needs here.
        DatabaseUnavailableError: `stop` was set in an outage, before this worker had joined.
    """
    check_versions(study.name, study.contract, allow_mismatch)
    cache = open_cache(study, home.cache)
    lease = study.config.lease
    leases, trouble = Leases(study.database, lease.ttl_seconds), Trouble()
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def give_back() -> None:
        rest_if_troubled(leases, name, trouble)
        leases.release_all(name)

    def exit_code() -> int:
        return GpuLostError.EXIT_CODE if trouble.reason else 0

    num_ended = 0
    with (
        leave_in_time(stop, name, give_back, exit_code),
        Keeper(leases, lease.renew_seconds) as keeper,
        _present(study, leases, keeper, name),
        hold_slot(leases, wish, name, keeper, stop, trouble, lambda: has_work(study)) as slot,
    ):
        if slot is not None:
            context = {"study": study.name, "worker": name}
            logger.info("worker_joined", extra=context | {"device": slot.description})
            claims = Claims(study, leases, name, slot.description)
            worker = Worker(study, leases, keeper, claims, cache, home.artifacts, slot, stop)
            num_ended = worker.run()
            logger.info("worker_left", extra=context | {"ended": num_ended})
    trouble.require_none()
    return num_ended


@contextmanager
def _present(study: Study, leases: Leases, keeper: Keeper, name: str) -> Iterator[None]:
    """Let the study know that this worker is there, waiting or training, while the block runs."""

    def announce() -> Lease | None:
        leases.sweep(worker_prefix(study.name))  # of those that died
        forget_old_commits(study.database)
        return leases.take(worker_prefix(study.name) + name, name)

    presence = study.database.repeat(announce)
    if presence is None:
        raise SearchError(f"another worker is called {name}; start this one again")
    try:
        with keeper.keep(presence, make=True):
            yield
    finally:
        with suppress(StorageError):  # unsaid, the presence ends by itself
            leases.end(presence)
