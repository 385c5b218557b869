"""Tables of former and of newer versions."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from storage.database import Database
from storage.leases import HeldLease, Lease, Leases
from storage.schema import VERSION, ensure_schema
from tests.command import TINY_STUDY, run
from tests.media import small_clips, write_dataset
from tests.waiting import wait_until

OLD_TABLE = """
create table melsearch_lease (
    resource text primary key, holder text, token bigint not null, attempts int not null,
    expires_at timestamptz not null{}
)"""
OLD_LEASE = """
insert into melsearch_lease (resource, holder, token, attempts, expires_at)
values ('trial:s:0', 'ann', 3, 1, now() + interval '1 hour')"""
UPGRADE = """
import sys
from storage.database import Database, parse_url
from storage.schema import ensure_schema
ensure_schema(Database(parse_url(sys.argv[1], {})))
"""
_WAITING = sa.text(
    "select count(*) from pg_locks join pg_database on database = pg_database.oid "
    "where datname = current_database() and locktype = 'advisory' and not granted"
)
with_and_without_ttl = pytest.mark.parametrize(
    "ttl", ["", ", ttl_seconds double precision not null default 60"]
)


def make_old_tables(database: Database, ttl: str) -> None:
    """Make the table of a version without numbers, with a lease that is held."""
    with database.transaction() as connection:
        connection.execute(sa.text(OLD_TABLE.format(ttl)))
        connection.execute(sa.text(OLD_LEASE))


def assert_upgraded(database: Database) -> None:
    """Require the newest version, and that the old lease is held as before."""
    with database.transaction() as connection:
        versions = connection.execute(sa.text("select version from melsearch_schema")).all()
    assert versions == [(VERSION,)]
    leases = Leases(database, 3600)
    (held,) = leases.held("trial:")
    assert isinstance(held, HeldLease)
    assert (held.holder, held.seconds_left > 3000) == ("ann", True)
    assert leases.take("trial:s:0", "bob") is None
    assert leases.renew(Lease("trial:s:0", "ann", 3, 1))


@with_and_without_ttl
def test_database_of_a_former_version_is_brought_up(database: Database, ttl: str) -> None:
    """Whoever opens it makes what is missing, and a lease that is held stays its holder's."""
    make_old_tables(database, ttl)
    ensure_schema(database)
    assert_upgraded(database)
    ensure_schema(database)
    assert_upgraded(database)


def test_two_processes_bring_it_up_at_once(database: Database, database_url: str) -> None:
    """One does, the other waits and finds it done."""
    make_old_tables(database, "")

    def upgrade(_: int) -> int:
        return subprocess.run([sys.executable, "-c", UPGRADE, database_url]).returncode

    def num_waiting() -> int:
        with database.transaction() as connection:
            return int(connection.execute(_WAITING).scalar_one())

    with ThreadPoolExecutor(2) as executor:
        with database.locked("melsearch:tables"):
            codes = executor.map(upgrade, range(2))
            wait_until(lambda: num_waiting() == 2)
        assert list(codes) == [0, 0]
    assert_upgraded(database)


def test_newer_version_is_refused_by_every_command(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    """Exit code 2 and both versions in the message; nothing is changed."""
    ensure_schema(database)
    with database.transaction() as connection:
        connection.execute(sa.text("update melsearch_schema set version = version + 1"))
    write_dataset(tmp_path / "data", small_clips(2))
    (tmp_path / "study.toml").write_text(TINY_STUDY)
    here = {"MELSEARCH_STORAGE": database_url}
    for command in (
        ["create", "study.toml", "--data", "data"],
        ["up", "study.toml", "--data", "data"],
        ["worker", "tiny"],
        ["status", "tiny"],
        ["export", "tiny"],
        ["dashboard", "--port", "0"],
    ):
        result = run(tmp_path, *command, environ=here)
        assert result.code == 2, (command, result.err)
        assert f"tables of version {VERSION + 1}" in result.err, command
        assert f"knows versions up to {VERSION}" in result.err, command
