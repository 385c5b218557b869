"""How a worker keeps what it holds, and gives it back: through outages, and when told to stop."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from search.outage import Outage
from storage.errors import LeaseLostError, StorageError
from storage.leases import Lease, Leases

logger = logging.getLogger(__name__)

_STOP_SECONDS = 6.0  # `docker stop` and `up` are patient for ten and for eight
_GIVE_BACK_SECONDS = 1.5
_RETRY_SECONDS = 1.0


@contextmanager
def keep_alive(leases: Leases, lease: Lease, renew_seconds: float) -> Iterator[Event]:
    """Renew the lease in a thread while the block runs; yields an event that says it is lost.

    No outage of the database ends the thread: it goes on trying, as eagerly as those who wait for
    the lease, and only a lease that somebody else has taken is lost.
    """
    lost, done, outage = Event(), Event(), Outage()

    def renew() -> None:
        wait_seconds = renew_seconds
        while not done.wait(wait_seconds):
            wait_seconds = min(_RETRY_SECONDS, renew_seconds)
            with suppress(StorageError), outage.noted():
                if not leases.renew(lease):
                    lost.set()
                    return
                wait_seconds = renew_seconds

    thread = Thread(target=renew, name=f"renew {lease.resource}", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        done.set()
        thread.join()


class Standstill:
    """Notices that this process stood still for so long that its lease may be somebody else's.

    Frozen or swapped out, the renewing thread stands still too, and wakes no sooner than the
    training. An outage of the database is no standstill.
    """

    def __init__(self, leases: Leases, lease: Lease, lost: Event, allowed_seconds: float) -> None:
        self._leases, self._lease, self._lost = leases, lease, lost
        self._allowed_seconds = allowed_seconds
        self._last = time.monotonic()

    def require_lease(self) -> None:
        """Return if the lease is ours, as far as is known; asks the database after a standstill.

        Raises:
            LeaseLostError
        """
        stood_still = time.monotonic() - self._last > self._allowed_seconds
        if stood_still and not self._lost.is_set():
            with suppress(StorageError):
                if not self._leases.renew(self._lease):
                    self._lost.set()
        self._last = time.monotonic()
        if self._lost.is_set():
            raise LeaseLostError(f"{self._lease.resource} was taken over")


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


def until_told(tell: Callable[[], object], stop: Event, retry_seconds: float = 1.0) -> bool:
    """Call `tell` until the database has taken it; False if `stop` came first."""
    outage = Outage()
    while True:
        try:
            with outage.noted():
                tell()
            return True
        except LeaseLostError:
            raise
        except StorageError:
            if stop.wait(retry_seconds):
                return False
