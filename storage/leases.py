"""Who holds what, until when: leases with fencing tokens, by the database's clock alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from storage.database import Database

# A released lease has no holder, an abandoned one has ended for ever. After a restart of the server
# nobody else is taken over before every holder had one ttl, its own, to renew. clock_timestamp():
# now() stands still within a transaction.
_FREE = """(held.holder is null or held.expires_at = '-infinity' or clock_timestamp() >= greatest(
    held.expires_at, pg_postmaster_start_time() + make_interval(secs => held.ttl_seconds)))"""

_TAKE = f"""
insert into melsearch_lease as held (resource, holder, token, attempts, expires_at, ttl_seconds)
values (:resource, :holder, 1, 0, clock_timestamp() + make_interval(secs => :ttl), :ttl)
on conflict (resource) do update set
    holder = excluded.holder,
    token = held.token + 1,
    attempts = held.attempts + case when held.holder is null then 0 else 1 end,
    expires_at = excluded.expires_at,
    ttl_seconds = excluded.ttl_seconds
where {_FREE} and (:may_rob or held.holder is null or held.expires_at = '-infinity')
returning token, attempts"""  # noqa: S608  (a constant of ours; values are bound)

_MINE = "resource = :resource and holder = :holder and token = :token"
_RENEW = f"""
update melsearch_lease set expires_at = clock_timestamp() + make_interval(secs => :ttl)
where {_MINE}"""  # noqa: S608
_RENEW_OR_MAKE = """
insert into melsearch_lease as held (resource, holder, token, attempts, expires_at, ttl_seconds)
values (:resource, :holder, :token, 0, clock_timestamp() + make_interval(secs => :ttl), :ttl)
on conflict (resource) do update set expires_at = excluded.expires_at
where held.holder = :holder and held.token = :token"""
_RELEASE = f"""
update melsearch_lease set holder = null, expires_at = clock_timestamp() where {_MINE}"""  # noqa: S608
_RELEASE_ALL = """
update melsearch_lease set holder = null, expires_at = clock_timestamp()
where holder = :holder and expires_at > '-infinity' and starts_with(resource, :prefix)"""
# The token moves on, so that the holder's thread doesn't renew what it has left.
_ABANDON = f"""
update melsearch_lease set token = token + 1, expires_at = '-infinity' where {_MINE}"""  # noqa: S608
_HAND_OVER = """
update melsearch_lease set holder = :heir, token = token + 1,
    expires_at = clock_timestamp() + make_interval(secs => :ttl)
where holder = :holder and starts_with(resource, :prefix)"""
_END = f"delete from melsearch_lease where {_MINE}"  # noqa: S608
_LOCK = f"select 1 from melsearch_lease where {_MINE} for update"  # noqa: S608
_HELD = """
select resource, holder, extract(epoch from expires_at - clock_timestamp())::float as seconds_left
from melsearch_lease as held
where starts_with(resource, :prefix) and holder is not null and expires_at > clock_timestamp()
order by resource"""
_SWEEP = f"delete from melsearch_lease as held where starts_with(resource, :prefix) and {_FREE}"  # noqa: S608


@dataclass(frozen=True)
class Lease:
    """The right to work on `resource`, as long as nobody has a higher token."""

    resource: str
    holder: str
    token: int
    attempts: int
    """How often the resource was taken over from a holder that died."""


@dataclass(frozen=True)
class HeldLease:
    """What the table says of a lease that is held now."""

    resource: str
    holder: str
    seconds_left: float


class Leases:
    """The lease table of a database. Each method is one short transaction, safe from any thread.

    All of them raise DatabaseUnavailableError while the database can't be reached.
    """

    def __init__(self, database: Database, ttl_seconds: float) -> None:
        self.database = database
        self.ttl_seconds = ttl_seconds

    def take(self, resource: str, holder: str) -> Lease | None:
        """Take a free or expired resource with a new token, or return None: somebody holds it.

        After an outage, of which the server may know nothing, what has expired is nobody else's
        before its holder had a ttl to renew it.
        """
        values = {
            "resource": resource,
            "holder": holder,
            "ttl": self.ttl_seconds,
            "may_rob": self.database.outage.seconds_since > self.ttl_seconds,
        }
        with self.database.transaction() as connection:
            row = connection.execute(sa.text(_TAKE), values).first()
            if row is not None:
                self.database.mark(connection.execute)
        return Lease(resource, holder, row.token, row.attempts) if row else None

    def renew(self, lease: Lease, *, make: bool = False) -> bool:
        """Hold on for another ttl, or return False: the lease is lost.

        `make` it again where somebody has swept it, if nobody else would ever take it.
        """
        return self._change(_RENEW_OR_MAKE if make else _RENEW, lease)

    def release(self, lease: Lease) -> bool:
        """Give the resource back for anybody to take at once; that counts as no attempt."""
        return self._change(_RELEASE, lease)

    def abandon(self, lease: Lease) -> bool:
        """Give the resource up as if the holder had died: at once, and the next take counts it."""
        return self._change(_ABANDON, lease)

    def hand_over(self, holder: str, prefix: str, heir: str) -> None:
        """Let `heir` hold for one ttl what `holder` holds whose name starts with `prefix`."""
        values = {"holder": holder, "prefix": prefix, "heir": heir, "ttl": self.ttl_seconds}
        with self.database.transaction() as connection:
            connection.execute(sa.text(_HAND_OVER), values)

    def release_all(self, holder: str, prefix: str = "") -> None:
        """Give back all that `holder` holds whose name starts with `prefix`, as by `release`."""
        values = {"holder": holder, "prefix": prefix}
        with self.database.transaction() as connection:
            connection.execute(sa.text(_RELEASE_ALL), values)

    def end(self, lease: Lease) -> bool:
        """Forget a resource that nobody needs again."""
        return self._change(_END, lease)

    def held(self, prefix: str) -> list[HeldLease]:
        """List the leases that are held now, of all resources whose name starts with `prefix`."""
        with self.database.transaction() as connection:
            rows = connection.execute(sa.text(_HELD), {"prefix": prefix}).all()
        return [HeldLease(row.resource, row.holder, row.seconds_left) for row in rows]

    def sweep(self, prefix: str) -> None:
        """Forget the resources that start with `prefix` and that nobody holds."""
        with self.database.transaction() as connection:
            connection.execute(sa.text(_SWEEP), {"prefix": prefix})

    @contextmanager
    def fence(self, lease: Lease) -> Iterator[None]:
        """Let Optuna's storage write in the block only as long as the lease is this one.

        Each of its transactions locks the lease's row first, so that a worker which was taken over
        can't write, however long it slept and wherever.

        Raises:
            LeaseLostError: it was taken over; at the start, or out of the block.
        """
        with self.database.fenced(sa.text(_LOCK), _values(lease)):
            with self.database.transaction() as connection:
                self.database.pass_fence(connection)
            yield

    def _change(self, statement: str, lease: Lease) -> bool:
        with self.database.transaction() as connection:
            result = connection.execute(
                sa.text(statement), _values(lease) | {"ttl": self.ttl_seconds}
            )
        return bool(result.rowcount)


def _values(lease: Lease) -> dict[str, object]:
    return {"resource": lease.resource, "holder": lease.holder, "token": lease.token}
