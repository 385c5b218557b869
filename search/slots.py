"""A worker's slot: the GPU, or the share of the cores, that it leases for its life.

Compose gives every replica all GPUs and can't share them out. So each worker leases one slot of one
GPU, `gpu:<uuid>:<slot>`, in the database that all of them share, whatever studies they work on.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

from search.cores import count_cores, share_of, shares_host, told_workers
from search.errors import GpuLostError
from search.holding import Keeper
from search.vacancy import RESTING, SlotWish, await_slot, cpu_prefix, settle
from storage.errors import StorageError
from storage.leases import Lease, Leases
from trainer.device import limit_threads, use_gpu
from trainer.faults import find_damage, find_gpu_fault, find_mismatch
from trainer.gpus import Gpu, is_lost, list_gpus

logger = logging.getLogger(__name__)

_LOOK_EVERY_SECONDS = 1.0
_TAKEN_OVER = "another worker took its slot over while this one was out of touch"


@dataclass
class Trouble:
    """Why a worker can't use its slot any more, once it is so."""

    reason: str | None = None
    trial: int | None = None
    """The trial that it gives back."""

    def require_none(self) -> None:
        """Tell a worker's trouble as its end.

        Raises:
            GpuLostError
        """
        if self.reason is None:
            return
        goes_on = "" if self.trial is None else f"; its trial {self.trial} goes on elsewhere"
        raise GpuLostError(
            f"this worker lost its GPU: {self.reason}{goes_on}; start the worker again"
        )


@dataclass(frozen=True)
class Slot:
    """What a worker computes on, as long as its lease holds."""

    lease: Lease
    wish: SlotWish
    gpu: Gpu | None
    device: Any
    num_gpus: int
    """How many GPUs the host had when it was taken."""
    leases: Leases
    stop: Event
    trouble: Trouble

    @property
    def description(self) -> str:
        """The slot for people, such as `gpu:GPU-3f2a8c11-...:0 NVIDIA L4`, or `cpu`."""
        return f"{self.lease.resource} {self.gpu.name}" if self.gpu else "cpu"

    def begin_trial(self) -> bool:
        """Compute in as many threads as are the slot's by now; False if it is another's."""
        with suppress(StorageError):  # an outage changes nothing
            if self.gpu and not self.leases.renew(self.lease):
                self.lose(_TAKEN_OVER)
                return False
            limit_threads(self.num_threads())
        return True

    def num_threads(self) -> int:
        """Count this worker's share of the cores as it is now.

        Raises:
            StorageError
        """
        if self.gpu is not None:
            sharing = self.num_gpus * self.wish.workers_per_gpu if shares_host() else 1
            return share_of(count_cores(), sharing)
        told = told_workers(self.wish.environ)
        return share_of(count_cores(), told or self._count_workers())

    def find_fault(self, error: BaseException) -> str | None:
        """Return the GPU's fault that made a training fail with `error`; None: the trial's own."""
        if self.gpu is None:
            return None
        if self.gpu.is_fake:
            return str(error) if is_lost(self.gpu, self.wish.environ) else None
        return find_gpu_fault(error, self.device)

    def lose(self, reason: str) -> None:
        """Use the slot no more: the worker stops as if it had been told to. Safe from threads."""
        if self.trouble.reason is None:
            self.trouble.reason = reason
            logger.warning("gpu_lost", extra={"slot": self.lease.resource, "reason": reason})
        self.stop.set()

    def _count_workers(self) -> int:
        """Count the workers that share these cores, itself included."""
        held = self.leases.held(cpu_prefix())
        return 1 + sum(other.holder != self.lease.holder for other in held)


@contextmanager
def hold_slot(
    leases: Leases,
    wish: SlotWish,
    holder: str,
    keeper: Keeper,
    stop: Event,
    trouble: Trouble,
    has_work: Callable[[], bool],
) -> Iterator[Slot | None]:
    """Take a slot, wait for one if all are held, and hold it while the block runs.

    Yields None if `stop` came, or there was no work any more, before there was one. A slot that
    can't be used any more sets `stop`, and its `trouble`; its GPU then rests for a ttl.

    Raises:
        ConfigError, DeviceError: this host has no such device.
        StudyFailedError: by `has_work`.
    """
    wish = settle(wish)
    taken = await_slot(leases, wish, holder, stop, has_work)
    if taken is None:
        yield None
        return
    lease, gpu = taken
    logger.info("slot_taken", extra={"worker": holder, "slot": lease.resource})
    try:
        num_gpus = len(list_gpus(wish.environ)) if gpu else 0
        slot = Slot(lease, wish, gpu, use_gpu(gpu), num_gpus, leases, stop, trouble)
        with keeper.keep(lease, make=gpu is None) as lost, _watched(slot, lost):
            if damage := find_damage(slot.device) or find_mismatch(gpu, slot.device):
                slot.lose(f"it doesn't work: {damage}")
            yield slot
    finally:
        with suppress(StorageError):  # untold, it ends by itself
            rest_if_troubled(leases, holder, trouble)
            leases.release(lease) if gpu else leases.end(lease)


def rest_if_troubled(leases: Leases, holder: str, trouble: Trouble) -> None:
    """Keep a GPU that has failed free for a ttl, so that its worker comes back to another one.

    Raises:
        StorageError
    """
    if trouble.reason:
        leases.hand_over(holder, "gpu:", RESTING + trouble.reason)


@contextmanager
def _watched(slot: Slot, lost: Event) -> Iterator[None]:
    """Look from time to time whether the slot's GPU and lease are still there."""
    done = Event()

    def watch() -> None:
        num_missed = 0
        while slot.gpu and not done.wait(_LOOK_EVERY_SECONDS):
            num_missed = num_missed + 1 if is_lost(slot.gpu, slot.wish.environ) else 0
            if done.is_set():
                return
            if lost.is_set():
                slot.lose(_TAKEN_OVER)
            elif num_missed > 1:  # one look may have met a driver that was busy
                slot.lose("it is gone from this host")
            else:
                continue
            return

    # Nobody waits for its end: a driver may never answer a look at a GPU that has left its bus.
    Thread(target=watch, name=f"watch {slot.lease.resource}", daemon=True).start()
    try:
        yield
    finally:
        done.set()
