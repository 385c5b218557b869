"""An outage of the database in the log: one line when it begins, one when it ends."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import LeaseLostError, StorageError

logger = logging.getLogger(__name__)


class Outage:
    """Whether the database is lost, as the one who goes on trying sees it."""

    def __init__(self) -> None:
        self._lasts = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Log that the block lost the database, or has it back; its errors pass through."""
        try:
            yield
        except LeaseLostError:
            raise
        except StorageError as error:
            if not self._lasts:
                logger.warning("database_lost", extra={"reason": str(error)})
            self._lasts = True
            raise
        if self._lasts:
            logger.warning("database_back")
        self._lasts = False
