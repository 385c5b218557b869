"""Workers that take, leave, die and wake on GPUs that come and go in any order, on PostgreSQL."""

from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from search.vacancy import SlotWish, take_free
from storage.database import Database
from storage.errors import LeaseLostError
from storage.leases import Lease, Leases
from storage.schema import ensure_schema
from tests.waiting import wait_until
from trainer.gpus import FAKE_GPUS, is_lost

TTL_SECONDS = 1.0
"""Shorter than the server has been up; what shall live on has its end moved by an hour."""
WORKERS = ("a", "b", "c", "d", "e")
GPUS = ("GPU-a", "GPU-b")


@dataclass
class Hold:
    """A slot that somebody was given, and whether its lease runs on."""

    worker: str
    lease: Lease
    is_alive: bool = True
    is_left: bool = False
    """Its worker has gone and let it rest, as the GPU was lost."""


class SlotMachine(RuleBasedStateMachine):
    """Five workers on the slots of two GPUs; one step is one thing that happens to one of them."""

    database: Database
    file: Path

    @initialize(workers_per_gpu=st.integers(1, 2))
    def start(self, workers_per_gpu: int) -> None:
        self.leases = Leases(self.database, TTL_SECONDS)
        ensure_schema(self.database)
        with self.database.engine.begin() as connection:
            connection.execute(sa.text("truncate melsearch_lease"))
        self.plugged = set(GPUS)
        self.wish = SlotWish("auto", workers_per_gpu, {FAKE_GPUS: str(self.file)})
        self.newest: dict[str, Hold] = {}
        self.stale: list[Hold] = []
        self._write_gpus()

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        working = {hold.worker for hold in self.newest.values() if not hold.is_left}
        idle = [worker for worker in WORKERS if worker not in working]
        if not idle:
            return
        worker = data.draw(st.sampled_from(idle), label="worker")
        free = [name for name in self._names() if not self._lives(name)]
        taken = take_free(self.leases, self.wish.slots(), worker)
        assert (taken and taken[0].resource) == (free[0] if free else None)
        if taken:
            self._replace(Hold(worker, taken[0]))

    @precondition(lambda self: self._at_work())
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        hold = self._draw(data, self._at_work())
        assert self.leases.renew(hold.lease)
        self._set_expiry(hold, "+1 hour")

    @precondition(lambda self: self._at_work())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        hold = self._draw(data, self._at_work())
        assert self.leases.release(hold.lease)
        self.stale.append(self.newest.pop(hold.lease.resource))

    @precondition(lambda self: self._at_work())
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        hold = self._draw(data, self._at_work())
        hold.is_alive = False
        self._set_expiry(hold, "-1 hour")

    @precondition(lambda self: self._asleep())
    @rule(data=st.data())
    def wake_up_in_time(self, data: st.DataObject) -> None:
        hold = self._draw(data, self._asleep())
        assert self.leases.renew(hold.lease), "nobody has taken it over yet"
        self._set_expiry(hold, "+1 hour")
        hold.is_alive = True

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def wake_up_too_late(self, data: st.DataObject) -> None:
        hold = self._draw(data, self.stale)
        assert not self.leases.renew(hold.lease)
        assert not self.leases.release(hold.lease)

    @rule(uuid=st.sampled_from(GPUS))
    def plug_or_unplug(self, uuid: str) -> None:
        self.plugged ^= {uuid}
        self._write_gpus()

    @precondition(lambda self: self._at_work())
    @rule(data=st.data())
    def look_whether_the_gpu_is_lost(self, data: st.DataObject) -> None:
        hold = self._draw(data, self._at_work())
        everywhere = SlotWish("auto", 2, self.wish.environ | {FAKE_GPUS: str(self.file) + ".all"})
        gpu = everywhere.slots()[hold.lease.resource]
        hold.is_left = is_lost(gpu, self.wish.environ)
        assert hold.is_left == (gpu.uuid not in self.plugged)

    @precondition(lambda self: self._resting())
    @rule(data=st.data())
    def rest_is_over(self, data: st.DataObject) -> None:
        hold = self._draw(data, self._resting())
        hold.is_alive = False
        self._set_expiry(hold, "-1 hour")

    @invariant()
    def no_slot_has_two_holders(self) -> None:
        holds = [*getattr(self, "stale", []), *getattr(self, "newest", {}).values()]
        holders = [hold.lease.resource for hold in holds if self._is_holder(hold)]
        assert sorted(holders) == sorted(getattr(self, "newest", {}))

    @invariant()
    def table_knows_who_holds_what(self) -> None:
        if hasattr(self, "newest"):
            held = {lease.resource: lease.holder for lease in self.leases.held("gpu:")}
            alive = {name: hold for name, hold in self.newest.items() if hold.is_alive}
            assert held == {name: hold.worker for name, hold in alive.items()}

    def _at_work(self) -> list[Hold]:
        return [hold for hold in self.newest.values() if hold.is_alive and not hold.is_left]

    def _asleep(self) -> list[Hold]:
        return [hold for hold in self.newest.values() if not hold.is_alive and not hold.is_left]

    def _resting(self) -> list[Hold]:
        return [hold for hold in self.newest.values() if hold.is_alive and hold.is_left]

    def _lives(self, name: str) -> bool:
        return name in self.newest and self.newest[name].is_alive

    def _names(self) -> list[str]:
        """The slots in the order in which they are taken."""
        gpus = [uuid for uuid in GPUS if uuid in self.plugged]
        return [f"gpu:{uuid}:{n}" for n in range(self.wish.workers_per_gpu) for uuid in gpus]

    def _replace(self, hold: Hold) -> None:
        self._set_expiry(hold, "+1 hour")
        if former := self.newest.get(hold.lease.resource):
            self.stale.append(former)
        self.newest[hold.lease.resource] = hold

    def _is_holder(self, hold: Hold) -> bool:
        try:
            with self.leases.fence(hold.lease):
                return True
        except LeaseLostError:
            return False

    def _draw(self, data: st.DataObject, holds: list[Hold]) -> Hold:
        return holds[data.draw(st.integers(0, len(holds) - 1), label="hold")]

    def _write_gpus(self) -> None:
        self.file.write_text("\n".join(uuid for uuid in GPUS if uuid in self.plugged))
        Path(f"{self.file}.all").write_text("\n".join(GPUS))

    def _set_expiry(self, hold: Hold, distance: str) -> None:
        statement = sa.text(
            "update melsearch_lease set expires_at = "
            "clock_timestamp() + cast(:distance as interval) where resource = :resource"
        )
        values = {"distance": distance, "resource": hold.lease.resource}
        with self.database.engine.begin() as connection:
            assert connection.execute(statement, values).rowcount == 1


def test_no_order_of_events_gives_one_slot_to_two(kept: Database, tmp_path: Path) -> None:
    """Whatever workers and GPUs do, a slot has one holder, and a free one is taken at once."""
    up = sa.text("select clock_timestamp() - pg_postmaster_start_time() > interval '1.5 s'")
    with kept.engine.begin() as connection:
        wait_until(lambda: connection.execute(up).scalar())
    machine = type("Machine", (SlotMachine,), {"database": kept, "file": tmp_path / "gpus"})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],  # so few steps are read sooner than they are shrunk
            suppress_health_check=list(HealthCheck),
        ),
    )
