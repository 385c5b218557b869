"""The address of a PostgreSQL database, and the password that goes with it."""

import os
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from storage.errors import DatabaseRefusedError

_DRIVER = "postgresql+psycopg2"
_SCHEMES = ("postgresql", "postgres", _DRIVER)


def parse_url(text: str, environ: Mapping[str, str] = os.environ) -> sa.URL:
    """Return the address of a PostgreSQL database, with its password put in from a secret file.

    The file is named by `MELSEARCH_STORAGE_PASSWORD_FILE`; a password in the URL wins over it.

    Raises:
        DatabaseRefusedError: not a PostgreSQL URL, or the secret file can't be read.
    """
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError) as error:
        raise DatabaseRefusedError(
            "MELSEARCH_STORAGE must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE; "
            "what it holds is no URL"
        ) from error
    if url.drivername not in _SCHEMES:
        raise DatabaseRefusedError(
            f"MELSEARCH_STORAGE must be a postgresql:// URL, got {url.drivername}://"
        )
    if "@" in (url.host or ""):  # else a part of the password would go for the host's name
        raise DatabaseRefusedError(
            "MELSEARCH_STORAGE has more than one @; write one in a password as %40"
        )
    if password := url.query.get("password"):
        # Where SQLAlchemy knows to hide it.
        url = url.difference_update_query(["password"]).set(password=str(password))
    secret = environ.get("MELSEARCH_STORAGE_PASSWORD_FILE")
    if secret and url.password is None:
        try:
            url = url.set(password=Path(secret).read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise DatabaseRefusedError(
                f"MELSEARCH_STORAGE_PASSWORD_FILE names {secret}, which can't be read: {error}"
            ) from error
    return url.set(drivername=_DRIVER)
