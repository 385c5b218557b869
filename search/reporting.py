"""A trial's reports on their way to the database, in a thread, so that no training waits for it."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event

from storage.errors import DatabaseRefusedError, DatabaseUnavailableError
from storage.outage import Outage, persist

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 5.0
"""For a database that is there: whether to prune is best known before the next epoch."""
_LOOK_EVERY_SECONDS = 0.1

Values = Sequence[float]


class Reporter:
    """Sends the objective of each epoch, and again until the database has taken it.

    What an outage keeps back is sent once it is over; `send` tells whether to prune.
    """

    def __init__(self, send: Callable[[Values], bool], outage: Outage, trial: int) -> None:
        self._send, self._outage, self._trial = send, outage, trial
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._closing = Event()
        self._values: Values = ()
        self._answer: Future[bool] | None = None

    def report(self, values: Values) -> bool:
        """Send the values of all epochs so far; tell whether to prune, as far as is known by now.

        Raises:
            LeaseLostError, StorageError: by `send`, for good.
        """
        if self.is_poor():
            return True
        self._values = values
        deadline = time.monotonic()  # who was waited for in vain is not waited for again
        if self._answer is None or self._answer.done():
            self._answer = self._executor.submit(persist, self._send_newest, self._closing)
            deadline += _PATIENCE_SECONDS
        while not self._answer.done():
            if self._outage.lasts or time.monotonic() > deadline:
                context = {"trial": self._trial, "epoch": len(values)}
                logger.warning("report_delayed", extra=context)
                return False
            wait([self._answer], _LOOK_EVERY_SECONDS)
        return self.is_poor()

    def is_poor(self) -> bool:
        """Tell whether an answer that has come by now says to prune.

        Raises:
            LeaseLostError, StorageError: by `send`, for good.
        """
        if self._answer is None or not self._answer.done():
            return False
        try:
            return self._answer.result()
        except (DatabaseUnavailableError, DatabaseRefusedError):  # until the end
            return False

    @contextmanager
    def closing(self) -> Iterator["Reporter"]:
        """Send while the block runs."""
        try:
            yield self
        finally:
            self._closing.set()
            self._executor.shutdown()

    def _send_newest(self) -> bool:
        return self._send(self._values)
