"""What an error of the driver means: come back later, ask a person, or a fault of ours."""

from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from storage.errors import DatabaseRefusedError, DatabaseUnavailableError, StorageError

_REFUSALS = ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf")
_PASSING_CLASSES = (
    "08",  # the connection failed
    "40",  # deadlock, serialization
    "53",  # no space, no memory, too many connections
    "57",  # shut down, starting, cancelled, idle for too long
    "58",  # input or output error on the server
)
_OF_ONE = (
    "55P03",  # a lock can't be had now
    "57014",  # cancelled
)
_PASSING = (
    "25006",  # read-only: a standby, until it is promoted
    "25P03",  # idle in a transaction for too long
)


def translate(error: BaseException, address: str) -> StorageError:
    """Return our error for one of SQLAlchemy's; no message holds a password."""
    lines = str(getattr(error, "orig", error)).strip().split("\n")
    refusals = [line for line in lines if any(word in line for word in _REFUSALS)]
    if isinstance(error, OperationalError) and refusals:  # of any of the host's addresses
        return DatabaseRefusedError(
            f"{address} refused us: {refusals[0]}; set MELSEARCH_STORAGE (and the password) right"
        )
    if _passes(error):
        return DatabaseUnavailableError(f"{address} can't be reached or used: {lines[0]}")
    return StorageError(f"{address} failed: {lines[0]}")


def is_outage(error: BaseException) -> bool:
    """Tell whether the database is away, or can take nothing, for everybody."""
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "pgcode", None) or ""
    is_of_one = code[:2] == "40" or code in _OF_ONE
    return _passes(error) and not is_of_one


def _passes(error: BaseException) -> bool:
    """Tell whether the same statement may succeed later."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return True
    if isinstance(error, PendingRollbackError):  # Optuna went on with a connection that was lost
        return True
    if not isinstance(error, DBAPIError):
        return False
    code = getattr(error.orig, "pgcode", None)
    if code is None:  # the driver's own complaint, as of an answer that broke off
        return error.connection_invalidated or type(error) in (DBAPIError, DatabaseError)
    return code[:2] in _PASSING_CLASSES or code in _PASSING + _OF_ONE
