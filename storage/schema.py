"""The tables in a database, Optuna's and ours, and the version of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from optuna.storages import RDBStorage

from storage.database import Database
from storage.errors import WrongTablesError

# What is done once has a number, its place. A step is never changed, only followed by another.
# The first two were done before there were numbers, and so both may meet their own work.
_STEPS = (
    """
    create table if not exists melsearch_lease (
        resource text primary key,
        holder text,
        token bigint not null,
        attempts int not null,
        expires_at timestamptz not null
    )""",
    """
    alter table melsearch_lease
        add column if not exists ttl_seconds double precision not null default 60""",
    """
    create table melsearch_commit (
        id uuid primary key,
        committed_at timestamptz not null default now()
    )""",
)
VERSION = len(_STEPS)
_FORGET = "delete from melsearch_commit where committed_at < now() - interval '7 days'"
"""No commit is looked up so late."""


def ensure_schema(database: Database) -> None:
    """Make the tables that are missing, and bring older ones up to this version.

    Any number of processes may do this at the same time.

    Raises:
        WrongTablesError: the tables are of a newer version.
        DatabaseUnavailableError
    """
    if _read_version(database) == VERSION:
        return
    with database.locked("melsearch:tables"):
        found = _read_version(database)
        if found == VERSION:
            return
        _make_optunas_tables(database)
        with database.transaction() as connection:
            connection.execute(sa.text("create table if not exists melsearch_schema (version int)"))
            for step in _STEPS[found:]:
                connection.execute(sa.text(step))
            connection.execute(sa.text("delete from melsearch_schema"))
            connection.execute(
                sa.text("insert into melsearch_schema values (:version)"), {"version": VERSION}
            )


def forget_old_commits(database: Database) -> None:
    """Remove the marks of commits that nobody will look up any more."""
    with database.transaction() as connection:
        connection.execute(sa.text(_FORGET))


def _read_version(database: Database) -> int:
    """Return the version of our tables, 0 if they have none.

    Raises:
        WrongTablesError: they are newer than this program.
    """
    with database.transaction() as connection:
        if connection.execute(sa.text("select to_regclass('melsearch_schema')")).scalar() is None:
            return 0
        version = connection.execute(sa.text("select version from melsearch_schema")).scalar() or 0
    if version > VERSION:
        raise WrongTablesError(
            f"{database} has tables of version {version}, made by a newer melsearch; this one "
            f"knows versions up to {VERSION}: install the newer one here too"
        )
    return int(version)


def _make_optunas_tables(database: Database) -> None:
    """By its own means, and connections, which are more than a worker may have."""
    with known_by_optuna(database):
        maker = RDBStorage(
            database.url.render_as_string(hide_password=False),
            engine_kwargs={"poolclass": sa.NullPool, "connect_args": database.connect_args},
        )
    maker.engine.dispose()


@contextmanager
def known_by_optuna(database: Database) -> Iterator[None]:
    """Say what it means that Optuna refuses the tables which it finds.

    Raises:
        WrongTablesError
    """
    try:
        with database.translated():
            yield
    except RuntimeError as error:
        raise WrongTablesError(f"{database} has tables of another Optuna: {error}") from error
