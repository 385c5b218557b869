"""What PostgreSQL itself saw: each change of trials, reports and leases, in its order.

Triggers write it down in the transaction that makes the change, so nothing that was rolled back is
in it and nothing that was committed is missing. Each worker connects as a user of its own, so
the audit knows who wrote.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from benchmarks.chaos.server import Server

_AUDITED = ("trials", "trial_intermediate_values", "trial_values", "melsearch_lease")
_INSTALL = """
create table if not exists chaos_audit (
    id bigserial primary key,
    at timestamptz not null default clock_timestamp(),
    writer text not null default session_user,
    server_started timestamptz not null default pg_postmaster_start_time(),
    source text not null,
    deed text not null,
    old jsonb,
    new jsonb
);
create or replace function chaos_note() returns trigger language plpgsql as $$
begin
    insert into chaos_audit (source, deed, old, new)
    values (tg_table_name, lower(tg_op), to_jsonb(old), to_jsonb(new));
    return null;
end $$;
do $$
declare audited text;
begin
    foreach audited in array %s loop
        if to_regclass(audited) is not null then
            execute format('create or replace trigger chaos_note after insert or update or delete '
                'on %%I for each row execute function chaos_note()', audited);
        end if;
    end loop;
end $$"""
_READ = """
select id, extract(epoch from at)::float8, writer, extract(epoch from server_started)::float8,
    source, deed, coalesce(old, '{}'), coalesce(new, '{}')
from chaos_audit order by id"""


@dataclass(frozen=True)
class Change:
    """One row that was inserted, updated or deleted. Times are Unix time, by the database."""

    id: int
    at: float
    writer: str
    server_started: float
    source: str
    deed: str
    old: dict[str, Any]
    new: dict[str, Any]

    @property
    def row(self) -> dict[str, Any]:
        """The row as it is after the change, or was before its deletion."""
        return self.new or self.old


def install(server: Server) -> None:
    """Audit the tables that are there; again after new ones have come."""
    server.query(_INSTALL, list(_AUDITED))


def read(server: Server) -> list[Change]:
    """Return all changes in their order."""
    return [Change(*row) for row in server.query(_READ)]


def add_writers(server: Server, names: list[str]) -> None:
    """Make the users that the workers connect as."""
    for name in names:
        server.query(f"create role {name} superuser login")


def unix_time(text: str) -> float:
    """Return the Unix time of a timestamp as jsonb spells it; -inf for `-infinity`."""
    return float("-inf") if text == "-infinity" else datetime.fromisoformat(text).timestamp()
