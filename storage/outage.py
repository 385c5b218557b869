"""An outage of the database: waited out, with a line in the log when it begins and when it ends."""

import logging
import math
import time
from collections.abc import Callable
from threading import Event, Lock
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
_QUIET_SECONDS = 1.0
"""A server that is full, or just back, lets one in and refuses the next."""

T = TypeVar("T")


class Outage:
    """Whether the database is lost, as all threads of this process see it together."""

    def __init__(self) -> None:
        self.is_patient = False
        """Whether a database that has never answered is waited for, as by those who stay long."""
        self._lock = Lock()
        self._was_reached = False
        self._lasts = False
        self._last_failure = self._end = -math.inf

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
        """Note that the database has answered; the end is told after a moment without failure."""
        now = time.monotonic()
        with self._lock:
            self._was_reached = True
            is_over = self._lasts and now - self._last_failure > _QUIET_SECONDS
            if is_over:
                self._lasts, self._end = False, now
        if is_over:
            logger.warning("database_back")

    def begins(self, reason: str) -> None:
        """Note that it didn't; who doesn't wait for it says so in other ways."""
        with self._lock:
            self._last_failure = time.monotonic()
            is_news = not self._lasts and (self._was_reached or self.is_patient)
            self._lasts = self._lasts or is_news
        if is_news:
            logger.warning("database_lost", extra={"reason": reason})


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
