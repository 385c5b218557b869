"""A worker's slot: the GPU, or the share of the cores, that it leases for its life.

Compose gives every replica all GPUs and can't share them out. So each worker leases one slot of one
GPU, `gpu:<uuid>:<slot>`, in the database that all of them share, whatever studies they work on.
"""

import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Event, Thread
from typing import Any

from search.cores import core_pool, count_cores, share_of, told_workers
from search.errors import GpuLostError
from search.holding import keep_alive
from search.outage import Outage
from storage.errors import StorageError
from storage.leases import Lease, Leases
from trainer.device import limit_threads, refuse_hidden_gpus, require_cuda, use_gpu
from trainer.errors import DeviceError
from trainer.faults import GpuFault, find_damage, find_gpu_fault
from trainer.gpus import FAKE_GPUS, Gpu, is_lost, list_gpus, select_gpus

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_TELL_EVERY_SECONDS = 60.0
_LOOK_EVERY_SECONDS = 2.0
_TAKEN_OVER = "another worker took its slot over while this one was out of touch"


@dataclass(frozen=True)
class SlotWish:
    """What a worker wants to compute on."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or the beginning of a UUID."""
    workers_per_gpu: int = 1
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """As the user left it: `use_gpu` narrows it for this process."""

    def gpus(self) -> list[Gpu]:
        """List the GPUs that would do now, none for the CPU.

        Raises:
            DeviceError: there is none, and the CPU won't do.
        """
        return select_gpus(self.device, list_gpus(self.environ))

    def slots(self) -> dict[str, Gpu]:
        """Name all slots that would do now, spread over the GPUs: the first of each one first."""
        gpus: list[Gpu] = []
        with suppress(DeviceError):  # it may come back
            gpus = self.gpus()
        return {
            f"gpu:{gpu.uuid}:{slot}": gpu for slot in range(self.workers_per_gpu) for gpu in gpus
        }


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
            num_gpus = len(list_gpus(self.wish.environ))
            return share_of(count_cores(), num_gpus * self.wish.workers_per_gpu)
        told = told_workers(self.wish.environ)
        return share_of(count_cores(), told or self._count_workers())

    def find_fault(self, error: BaseException) -> GpuFault | None:
        """Return the GPU's fault that made a training fail with `error`; None: the trial's own."""
        if self.gpu is None:
            return None
        if self.gpu.is_fake:
            gone = is_lost(self.gpu, self.wish.environ)
            return GpuFault(str(error), is_suspect=True) if gone else None
        fault = find_gpu_fault(error, self.device)
        if fault and self.wish.workers_per_gpu > 1:  # the others may be ours, and not go away
            return replace(fault, is_suspect=True)
        return fault

    def lose(self, reason: str) -> None:
        """Use the slot no more: the worker stops as if it had been told to. Safe from threads."""
        if self.trouble.reason is None:
            self.trouble.reason = reason
            logger.warning("gpu_lost", extra={"slot": self.lease.resource, "reason": reason})
        self.stop.set()

    def _count_workers(self) -> int:
        """Count the workers that share these cores, itself included."""
        held = self.leases.held(_cpu_prefix())
        return 1 + sum(other.holder != self.lease.holder for other in held)


@contextmanager
def hold_slot(
    leases: Leases,
    wish: SlotWish,
    holder: str,
    renew_seconds: float,
    stop: Event,
    trouble: Trouble,
) -> Iterator[Slot | None]:
    """Take a slot, wait for one if all are held, and hold it while the block runs.

    Yields None if `stop` came before there was one. A slot that can't be used any more sets `stop`,
    and its `trouble`; its lease is then left to expire, so that a sick GPU rests for a ttl.

    Raises:
        ConfigError, DeviceError: this host has no such device.
    """
    wish = _settle(wish)
    taken = _await_slot(leases, wish, holder, stop)
    if taken is None:
        yield None
        return
    lease, gpu = taken
    logger.info("slot_taken", extra={"worker": holder, "slot": lease.resource})
    slot = Slot(lease, wish, gpu, use_gpu(gpu), leases, stop, trouble)
    try:
        with keep_alive(leases, lease, renew_seconds) as lost, _watched(slot, lost):
            if damage := find_damage(slot.device):
                slot.lose(f"it doesn't work: {damage}")
            yield slot
    finally:
        if trouble.reason is None:
            with suppress(StorageError):  # untold, it ends by itself
                leases.release(lease) if gpu else leases.end(lease)


def _settle(wish: SlotWish) -> SlotWish:
    """Decide on GPU or CPU for good, and on the UUID of a GPU that was named by its place.

    Raises:
        ConfigError, DeviceError
    """
    told_workers(wish.environ)
    gpus = wish.gpus()
    if gpus:
        if not gpus[0].is_fake:
            require_cuda()
        return wish if wish.device in ("auto", "cuda") else replace(wish, device=gpus[0].uuid)
    if wish.device != "cpu" and FAKE_GPUS not in wish.environ:
        refuse_hidden_gpus()
    return replace(wish, device="cpu")


def _await_slot(
    leases: Leases, wish: SlotWish, holder: str, stop: Event
) -> tuple[Lease, Gpu | None] | None:
    """Take a slot, or wait until one is free; None if `stop` came first. Waits outages out."""
    outage, notice = Outage(), _Notice(leases, holder)
    while not stop.is_set():
        with suppress(StorageError), outage.noted():
            if wish.device == "cpu":
                leases.sweep("cpu:")  # of those that died, and of former boots
                if lease := leases.take(_cpu_prefix() + holder, holder):
                    return lease, None
            elif taken := take_free(leases, wish.slots(), holder):
                return taken
            else:
                notice.give(wish.slots())
        stop.wait(_POLL_SECONDS)
    return None


def take_free(leases: Leases, slots: Mapping[str, Gpu], holder: str) -> tuple[Lease, Gpu] | None:
    """Take the first of the slots that is free, None if none is."""
    held = {lease.resource for lease in leases.held("gpu:")}
    for name, gpu in slots.items():
        if name not in held and (lease := leases.take(name, holder)):
            return lease, gpu
    return None


class _Notice:
    """Says from time to time that a worker waits for a slot, and who holds them."""

    def __init__(self, leases: Leases, holder: str) -> None:
        self._leases, self._holder = leases, holder
        self._next = time.monotonic()

    def give(self, slots: Collection[str]) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _TELL_EVERY_SECONDS
        held = self._leases.held("gpu:")
        held_by = {lease.resource: lease.holder for lease in held if lease.resource in slots}
        logger.info("slot_awaited", extra={"worker": self._holder, "held_by": held_by})


@contextmanager
def _watched(slot: Slot, lost: Event) -> Iterator[None]:
    """Look from time to time whether the slot's GPU and lease are still there."""
    done = Event()

    def watch() -> None:
        while slot.gpu and not done.wait(_LOOK_EVERY_SECONDS):
            if lost.is_set():
                slot.lose(_TAKEN_OVER)
            elif is_lost(slot.gpu, slot.wish.environ):
                slot.lose("it is gone from this host")
            else:
                continue
            return

    thread = Thread(target=watch, name=f"watch {slot.lease.resource}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _cpu_prefix() -> str:
    return f"cpu:{core_pool()}:"
