"""A worker's slot: the GPU, or the share of the cores, that it leases for its life.

Compose gives every replica all GPUs and can't share them out. So each worker leases one slot of one
GPU, `gpu:<uuid>:<slot>`, in the database that all of them share, whatever studies they work on.
"""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Event, Thread
from typing import Any

from search.cores import core_pool, count_cores, share_of, shares_host, told_workers
from search.errors import GpuLostError
from search.holding import keep_alive
from search.outage import Outage
from storage.errors import StorageError
from storage.leases import Lease, Leases
from trainer.device import limit_threads, refuse_hidden_gpus, require_cuda, use_gpu
from trainer.errors import DeviceError
from trainer.faults import find_damage, find_gpu_fault, find_mismatch
from trainer.gpus import FAKE_GPUS, Gpu, is_lost, list_gpus, select_gpus

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_TELL_EVERY_SECONDS = 60.0
_LOOK_EVERY_SECONDS = 1.0
_ASK_EVERY_SECONDS = 5.0
_TAKEN_OVER = "another worker took its slot over while this one was out of touch"
RESTING = "rests after: "
"""How the holder's name begins where a GPU that has just failed is kept free."""


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
    has_work: Callable[[], bool],
) -> Iterator[Slot | None]:
    """Take a slot, wait for one if all are held, and hold it while the block runs.

    Yields None if `stop` came, or there was no work any more, before there was one. A slot that
    can't be used any more sets `stop`, and its `trouble`; its GPU then rests for a ttl.

    Raises:
        ConfigError, DeviceError: this host has no such device.
        StudyFailedError: by `has_work`.
    """
    wish = _settle(wish)
    taken = _await_slot(leases, wish, holder, stop, has_work)
    if taken is None:
        yield None
        return
    lease, gpu = taken
    logger.info("slot_taken", extra={"worker": holder, "slot": lease.resource})
    try:
        num_gpus = len(list_gpus(wish.environ)) if gpu else 0
        slot = Slot(lease, wish, gpu, use_gpu(gpu), num_gpus, leases, stop, trouble)
        with keep_alive(leases, lease, renew_seconds) as lost, _watched(slot, lost):
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


def _settle(wish: SlotWish) -> SlotWish:
    """Decide on GPU or CPU for good, and on the UUID of a GPU that was named by its place.

    Raises:
        ConfigError, DeviceError
    """
    told_workers(wish.environ)
    gpus = wish.gpus()
    if gpus:
        require_cuda(gpus)
        return wish if wish.device in ("auto", "cuda") else replace(wish, device=gpus[0].uuid)
    if wish.device != "cpu" and not wish.environ.get(FAKE_GPUS):
        refuse_hidden_gpus()
    return replace(wish, device="cpu")


def _await_slot(
    leases: Leases, wish: SlotWish, holder: str, stop: Event, has_work: Callable[[], bool]
) -> tuple[Lease, Gpu | None] | None:
    """Take a slot, or wait until one is free; None if `stop` or the end of all work came first.

    Waits outages out. After one, nobody's lease is taken before he had a ttl to renew it.
    """
    outage, notice = Outage(), _Notice(leases, holder)
    not_before = ask_at = time.monotonic()
    while not stop.is_set():
        now = time.monotonic()
        try:
            with outage.noted():
                if now >= ask_at:
                    if not has_work():
                        return None
                    ask_at = now + _ASK_EVERY_SECONDS
                may_take = wish.device == "cpu" or now >= not_before  # a core is nobody's alone
                if may_take and (taken := _take(leases, wish, holder, notice)):
                    return taken
        except StorageError:
            not_before = time.monotonic() + leases.ttl_seconds
        stop.wait(_POLL_SECONDS)
    return None


def _take(
    leases: Leases, wish: SlotWish, holder: str, notice: "_Notice"
) -> tuple[Lease, Gpu | None] | None:
    if wish.device == "cpu":
        leases.sweep("cpu:")  # of those that died, and of former boots
        lease = leases.take(_cpu_prefix() + holder, holder)
        return (lease, None) if lease else None
    slots = wish.slots()
    taken = take_free(leases, slots, holder)
    if taken is None:
        notice.give(slots)
    return taken


def take_free(leases: Leases, slots: Mapping[str, Gpu], holder: str) -> tuple[Lease, Gpu] | None:
    """Take the first of the slots that is free, None if none is. All of a GPU rest together."""
    held = {lease.resource: lease.holder for lease in leases.held("gpu:")}
    resting = {_uuid_of(name) for name, by in held.items() if by.startswith(RESTING)}
    for name, gpu in slots.items():
        is_free = name not in held and gpu.uuid not in resting
        if is_free and (lease := leases.take(name, holder)):
            return lease, gpu
    return None


def _uuid_of(resource: str) -> str:
    return resource.removeprefix("gpu:").rpartition(":")[0]


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
        num_missed = 0
        while slot.gpu and not done.wait(_LOOK_EVERY_SECONDS):
            num_missed = num_missed + 1 if is_lost(slot.gpu, slot.wish.environ) else 0
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


def _cpu_prefix() -> str:
    return f"cpu:{core_pool()}:"
