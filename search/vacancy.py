"""The wait for a slot: what a worker wants, what of it is free, and who holds the rest."""

import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Event

from search.cores import core_pool, told_workers
from storage.errors import StorageError
from storage.leases import Lease, Leases
from trainer.device import refuse_hidden_gpus, require_cuda
from trainer.errors import DeviceError
from trainer.gpus import FAKE_GPUS, Gpu, list_gpus, select_gpus

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_TELL_EVERY_SECONDS = 60.0
_ASK_EVERY_SECONDS = 5.0
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


def settle(wish: SlotWish) -> SlotWish:
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


def await_slot(
    leases: Leases, wish: SlotWish, holder: str, stop: Event, has_work: Callable[[], bool]
) -> tuple[Lease, Gpu | None] | None:
    """Take a slot, or wait until one is free; None if `stop` or the end of all work came first.

    Waits outages out.
    """
    notice = _Notice(leases, holder)
    ask_at = time.monotonic()
    while not stop.is_set():
        with suppress(StorageError), leases.database.connection():
            now = time.monotonic()
            if now >= ask_at:
                if not has_work():
                    return None
                ask_at = now + _ASK_EVERY_SECONDS
            if taken := _take(leases, wish, holder, notice):
                return taken
        stop.wait(_POLL_SECONDS)
    return None


def _take(
    leases: Leases, wish: SlotWish, holder: str, notice: "_Notice"
) -> tuple[Lease, Gpu | None] | None:
    if wish.device == "cpu":
        leases.sweep("cpu:")  # of those that died, and of former boots
        lease = leases.take(cpu_prefix() + holder, holder)
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


def cpu_prefix() -> str:
    return f"cpu:{core_pool()}:"
