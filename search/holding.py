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
_CERTAINTY_SECONDS = 3.0
_LOOK_SECONDS = 0.05


class Hold(Event):
    """What a worker knows of a lease that it holds: set, once that is lost."""

    def __init__(self, ask: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.ask = ask
        """Let it be renewed at once."""
        self.renewed_at = _now()
        """When the newest renewal that succeeded was begun."""


class Keeper:
    """Renews all that a worker holds, in one thread, by one connection.

    No outage of the database ends the thread: it goes on trying, as eagerly as those who wait for a
    lease, and only a lease that somebody else has taken is lost.
    """

    def __init__(self, leases: Leases, renew_seconds: float) -> None:
        self._leases, self._renew_seconds = leases, renew_seconds
        self._lock = Lock()
        self._held: dict[Lease, tuple[Hold, bool]] = {}
        self._round = Lock()
        self._done, self._wake = Event(), Event()
        self._thread = Thread(target=self._run, name="renew", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._wake.set()
        self._thread.join()

    @contextmanager
    def keep(self, lease: Lease, *, make: bool = False) -> Iterator[Hold]:
        """Renew the lease while the block runs.

        `make` it again if it was swept: one by which its holder only says that it is there.
        """
        hold = Hold(self._wake.set)
        with self._lock:
            self._held[lease] = hold, make
        try:
            yield hold
        finally:
            # What is made again must not be when it has been ended.
            with self._round if make else nullcontext(), self._lock:
                del self._held[lease]

    def _run(self) -> None:
        wait_seconds = self._renew_seconds
        while True:
            self._wake.wait(wait_seconds * random.uniform(0.7, 1.0))  # noqa: S311  (no secret)
            if self._done.is_set():
                return
            self._wake.clear()
            wait_seconds = min(_RETRY_SECONDS, self._renew_seconds)
            with suppress(StorageError), self._round:
                self._renew()
                wait_seconds = self._renew_seconds

    def _renew(self) -> None:
        with self._lock:
            held = dict(self._held)
        with self._leases.database.connection():
            for lease, (hold, make) in held.items():
                begun = _now()
                if self._leases.renew(lease, make=make):
                    hold.renewed_at = begun
                else:
                    hold.set()


class Standstill:
    """Notices that this process stood still for so long that its lease may be somebody else's.

    Frozen or swapped out, the renewing thread stands still too, and asks when both wake. An outage
    of the database is no standstill.
    """

    def __init__(self, lease: Lease, hold: Hold, allowed_seconds: float) -> None:
        self._lease, self._hold, self._allowed_seconds = lease, hold, allowed_seconds
        self._last = _now()
        self._woke_at = self._asked_at = 0.0

    def require_lease(self) -> None:
        """Return if the lease is ours, as far as is known; never waits.

        Raises:
            LeaseLostError
        """
        now = _now()
        if now - self._last > self._allowed_seconds:
            self._woke_at = now
        self._last = now
        if self._hold.is_set():
            raise LeaseLostError(f"{self._lease.resource} was taken over")

    def require_certainty(self) -> None:
        """Return if the lease is ours for sure: after a standstill, if it was renewed since.

        Raises:
            LeaseLostError
            OSError: it was not, after some seconds: no file may be written now.
        """
        self.require_lease()
        deadline = time.monotonic()
        if self._hold.renewed_at < self._woke_at and self._asked_at < self._woke_at:
            self._asked_at = _now()
            self._hold.ask()
            deadline += _CERTAINTY_SECONDS
        while self._hold.renewed_at < self._woke_at and not self._hold.is_set():
            if time.monotonic() > deadline:
                self._last = _now()  # this wait was no standstill
                raise OSError("after a standstill the database can't be asked whose the trial is")
            self._hold.wait(_LOOK_SECONDS)
        self._last = _now()
        self.require_lease()


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
