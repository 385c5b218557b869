"""What can go wrong in the storage; drivers' errors become these."""


class StorageError(Exception):
    """Root of the storage's errors."""


class DatabaseUnavailableError(StorageError):
    """The database can't be reached now; the same call may succeed later."""


class DatabaseRefusedError(StorageError):
    """The database's address, user, password or name is wrong; only a person can mend that."""


class EmbeddedServerError(StorageError):
    """The embedded PostgreSQL can't be set up or started."""


class WrongTablesError(StorageError):
    """The database's tables are of another version; only a person can mend that."""


class LeaseLostError(StorageError):
    """Somebody else holds the lease now, or it has ended: write nothing more."""
