"""How a worker keeps what it holds, and gives it back: through outages, and when told to stop."""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from threading import Event, Lock, Thread
from typing import Self

from storage.errors import (
    DatabaseRefusedError,
    DatabaseUnavailableError,
    LeaseLostError,
    StorageError,
)
from storage.leases import Lease, Leases
from storage.outage import persist

logger = logging.getLogger(__name__)

_STOP_SECONDS = 6.0  # `docker stop` and `up` are patient for ten and for eight
_GIVE_BACK_SECONDS = 1.5
_RETRY_SECONDS = 1.0


class Keeper:
    """Renews all that a worker holds, in one thread, by one connection.

    No outage of the database ends the thread: it goes on trying, as eagerly as those who wait for a
    lease, and only a lease that somebody else has taken is lost.
    """

    def __init__(self, leases: Leases, renew_seconds: float) -> None:
        self._leases, self._renew_seconds = leases, renew_seconds
        self._lock = Lock()
        self._held: dict[Lease, tuple[Event, bool]] = {}
        self._round = Lock()
        self._done = Event()
        self._thread = Thread(target=self._run, name="renew", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @contextmanager
    def keep(self, lease: Lease, *, make: bool = False) -> Iterator[Event]:
        """Renew the lease while the block runs; yields an event that says it is lost.

        `make` it again if it was swept: one by which its holder only says that it is there.
        """
        lost = Event()
        with self._lock:
            self._held[lease] = lost, make
        try:
            yield lost
        finally:
            # What is made again must not be when it has been ended.
            with self._round if make else nullcontext(), self._lock:
                del self._held[lease]

    def _run(self) -> None:
        wait_seconds = self._renew_seconds
        while not self._done.wait(wait_seconds * random.uniform(0.7, 1.0)):  # noqa: S311
            wait_seconds = min(_RETRY_SECONDS, self._renew_seconds)
            with suppress(StorageError), self._round:
                self._renew()
                wait_seconds = self._renew_seconds

    def _renew(self) -> None:
        with self._lock:
            held = dict(self._held)
        with self._leases.database.connection():
            for lease, (lost, make) in held.items():
                if not self._leases.renew(lease, make=make):
                    lost.set()


class Standstill:
    """Notices that this process stood still for so long that its lease may be somebody else's.

    Frozen or swapped out, the renewing thread stands still too, and wakes no sooner than the
    training. An outage of the database is no standstill.
    """

    def __init__(self, leases: Leases, lease: Lease, lost: Event, allowed_seconds: float) -> None:
        self._leases, self._lease, self._lost = leases, lease, lost
        self._allowed_seconds = allowed_seconds
        self._is_unsure = False
        self._last = _now()
        self._ask_at = 0.0

    def require_lease(self) -> None:
        """Return if the lease is ours, as far as is known; asks the database after a standstill.

        Raises:
            LeaseLostError
        """
        self._is_unsure = self._is_unsure or _now() - self._last > self._allowed_seconds
        if self._is_unsure and not self._lost.is_set() and _now() >= self._ask_at:
            self._ask_at = _now() + _RETRY_SECONDS
            with suppress(StorageError):
                if not self._leases.renew(self._lease):
                    self._lost.set()
                self._is_unsure = False
        self._last = _now()
        if self._lost.is_set():
            raise LeaseLostError(f"{self._lease.resource} was taken over")

    def require_certainty(self) -> None:
        """Return if the lease is ours for sure, as far as a process can know that.

        Raises:
            LeaseLostError
            OSError: it stood still, and nobody can be asked: no file may be replaced now.
        """
        self._ask_at = 0.0
        self.require_lease()
        if self._is_unsure:
            raise OSError("after a standstill the database can't be asked whose the trial is")


@contextmanager
def leave_in_time(
    stop: Event, holder: str, give_back: Callable[[], None], exit_code: Callable[[], int]
) -> Iterator[None]:
    """Leave the process if the block still runs _STOP_SECONDS after `stop` was set.

    One step may be longer than `docker stop` is patient, and endless on a GPU that is gone. What
    `holder` holds is given back, so that others go on at once from the last checkpoint.
    """
    done = Event()

    def try_to_give_back() -> None:
        with suppress(StorageError):  # untold, the leases end by themselves
            give_back()

    def watch() -> None:
        while not stop.wait(1.0):
            if done.is_set():
                return
        if done.wait(_STOP_SECONDS):
            return
        logger.warning("worker_cut_off", extra={"worker": holder, "seconds": _STOP_SECONDS})
        code = exit_code()
        giving = Thread(target=try_to_give_back, daemon=True)
        giving.start()
        giving.join(_GIVE_BACK_SECONDS)
        os._exit(code)

    Thread(target=watch, name="leave in time", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def until_told(tell: Callable[[], object], stop: Event) -> bool:
    """Call `tell` until the database has taken it; False if `stop` came first.

    Raises:
        LeaseLostError, StorageError: by `tell`, for good.
    """
    try:
        persist(tell, stop)
    except (DatabaseUnavailableError, DatabaseRefusedError):
        return False
    return True


def _now() -> float:
    """Return a time that goes on while the host sleeps, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
