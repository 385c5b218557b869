"""An outage of the database: waited out, with a line in the log when it begins and when it ends."""

import logging
import math
import time
from collections.abc import Callable
from threading import Event, Lock, Thread, current_thread
from typing import TypeVar

from tenacity import (
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_random_exponential,
)

from storage.errors import DatabaseRefusedError, DatabaseUnavailableError, StorageError

logger = logging.getLogger(__name__)

_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0
_RETRIES_WITHIN_SECONDS = 30.0
"""Who doesn't try again for so long has given up."""

T = TypeVar("T")


class Outage:
    """Whether the database is lost, as all threads of this process see it together.

    A server may be lost to some alone: with a full disk it takes no report, and renews a lease. So
    it is back when all who missed it have got through or given up.
    """

    def __init__(self) -> None:
        self.is_patient = False
        """Whether a database that has never answered is waited for, as by those who stay long."""
        self._lock = Lock()
        self._missed_at: dict[Thread, float] = {}
        self._was_reached = False
        self._lasts = False
        self._end = -math.inf

    @property
    def lasts(self) -> bool:
        """Whether the database was there before, and the last call didn't get through."""
        return self._lasts

    @property
    def was_reached(self) -> bool:
        """Whether the database has ever answered."""
        return self._was_reached

    @property
    def seconds_since(self) -> float:
        """How long ago the last one ended, as far as is known; inf if there was none."""
        return 0.0 if self._lasts else time.monotonic() - self._end

    def ends(self) -> None:
        """Note that the database has answered this thread."""
        with self._lock:
            self._was_reached = True
            self._missed_at.pop(current_thread(), None)
            is_over = self._lasts and not self._is_missed()
            if is_over:
                self._lasts, self._end = False, time.monotonic()
        if is_over:
            logger.warning("database_back")

    def begins(self, reason: str) -> None:
        """Note that it didn't; who doesn't wait for it says so in other ways."""
        with self._lock:
            self._missed_at[current_thread()] = time.monotonic()
            is_news = not self._lasts and (self._was_reached or self.is_patient)
            self._lasts = self._lasts or is_news
        if is_news:
            logger.warning("database_lost", extra={"reason": reason})

    def _is_missed(self) -> bool:
        """Tell whether a thread is left that will try again."""
        since = time.monotonic() - _RETRIES_WITHIN_SECONDS
        self._missed_at = {
            thread: missed_at
            for thread, missed_at in self._missed_at.items()
            if thread.is_alive() and missed_at > since
        }
        return bool(self._missed_at)


_OUTAGES = (DatabaseUnavailableError, DatabaseRefusedError)


def persist(
    operation: Callable[[], T], stop: Event, errors: tuple[type[StorageError], ...] = _OUTAGES
) -> T:
    """Do what is safe to repeat until the database has taken it; waits between, up to seconds.

    Raises:
        One of `errors`: `stop` was set before.
        Whatever else the operation raises, at once.
    """
    # The waits are random, so that many workers don't come back in one moment.
    retrying = Retrying(
        retry=retry_if_exception_type(errors),
        wait=wait_random_exponential(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS),
        stop=stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        reraise=True,
    )
    return retrying(operation)
