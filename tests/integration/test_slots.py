"""Slots of GPUs and cores on a real PostgreSQL; the GPUs are lines in a file."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import sqlalchemy as sa

from search.cores import CPU_WORKERS, count_cores
from search.errors import GpuLostError, StudyFailedError
from search.holding import Keeper
from search.slots import Slot, Trouble, hold_slot
from search.vacancy import SlotWish
from storage.database import Database
from storage.leases import Leases
from storage.schema import ensure_schema
from tests.waiting import wait_until
from trainer.errors import DeviceError
from trainer.gpus import FAKE_GPUS

A, B = "GPU-aaaaaaaa-0000", "GPU-bbbbbbbb-0000"
RENEW_SECONDS = 0.2


class Host:
    """A host with two GPUs, and the workers on it."""

    def __init__(self, leases: Leases, gpus: Path, stack: ExitStack) -> None:
        self.leases, self._gpus, self._stack = leases, gpus, stack
        self.environ = {FAKE_GPUS: str(gpus)}
        self.keeper = stack.enter_context(Keeper(leases, RENEW_SECONDS))
        self.plug(A, B)

    def plug(self, *uuids: str) -> None:
        """Let the host have these GPUs and no others."""
        new = self._gpus.with_suffix(".new")
        new.write_text("\n".join(uuids))
        new.replace(self._gpus)  # at once: a look in between would miss both

    def hold(
        self, holder: str, device: str = "auto", workers_per_gpu: int = 1, **options: Any
    ) -> Slot:
        """Let a worker take a slot, until the test ends or the slot's `stack` is closed."""
        stack = options.get("stack") or self._stack
        wish = SlotWish(device, workers_per_gpu, self.environ)
        stop, trouble = options.get("stop") or Event(), Trouble()
        has_work = options.get("has_work") or (lambda: True)
        slot = stack.enter_context(
            hold_slot(self.leases, wish, holder, self.keeper, stop, trouble, has_work)
        )
        assert slot
        return slot

    def holders(self, prefix: str = "gpu:") -> dict[str, str]:
        """Return who holds which slots, as the database knows it."""
        return {lease.resource: lease.holder for lease in self.leases.held(prefix)}


@pytest.fixture
def host(database: Database, tmp_path: Path) -> Iterator[Host]:
    """A host whose leases last for the test."""
    leases = Leases(database, ttl_seconds=3600)
    ensure_schema(database)
    with ExitStack() as stack:
        yield Host(leases, tmp_path / "gpus", stack)


@pytest.fixture
def in_background() -> Iterator[Callable[[Callable[[], None]], Thread]]:
    """Run what waits in a thread, and wait for its end."""
    threads: list[Thread] = []

    def start(call: Callable[[], None]) -> Thread:
        threads.append(Thread(target=call))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join()


def test_workers_spread_over_the_gpus(host: Host) -> None:
    """Each GPU gets its first worker before one gets a second."""
    slots = [host.hold(name, workers_per_gpu=2) for name in "abcd"]
    assert [slot.lease.resource for slot in slots] == [
        f"gpu:{A}:0", f"gpu:{B}:0", f"gpu:{A}:1", f"gpu:{B}:1",
    ]  # fmt: skip
    assert slots[0].description == f"gpu:{A}:0 no GPU"
    assert {slot.num_threads() for slot in slots} == {max(1, count_cores() // 4)}


def test_worker_without_a_free_slot_waits_and_says_who_holds_them(
    host: Host,
    caplog: pytest.LogCaptureFixture,
    in_background: Callable[[Callable[[], None]], Thread],
) -> None:
    """It logs the holders, and takes the slot that one of them lets go."""
    caplog.set_level("INFO", "search")
    leaving, taken = ExitStack(), []
    host.hold("a", stack=leaving)
    host.hold("b")
    in_background(lambda: taken.append(host.hold("c")))
    (notice,) = wait_until(lambda: [r for r in caplog.records if r.message == "slot_awaited"])
    assert vars(notice)["held_by"] == {f"gpu:{A}:0": "a", f"gpu:{B}:0": "b"}
    assert not taken
    leaving.close()
    wait_until(lambda: taken)
    assert host.holders() == {f"gpu:{A}:0": "c", f"gpu:{B}:0": "b"}


def test_worker_told_to_stop_while_it_waits_leaves(host: Host) -> None:
    """It gets no slot, and holds none."""
    host.hold("a", device=A)
    stop = Event()
    stop.set()
    wish = SlotWish(A, environ=host.environ)
    with hold_slot(host.leases, wish, "b", host.keeper, stop, Trouble(), lambda: True) as slot:
        assert slot is None
    assert host.holders() == {f"gpu:{A}:0": "a"}


def test_dead_workers_slot_frees_itself(host: Host, database: Database) -> None:
    """Whoever is silent for a ttl has lost its slot to the next one."""
    assert Leases(database, ttl_seconds=0.3).take(f"gpu:{A}:0", "dead")
    host.leases.ttl_seconds = 0.3
    slot = host.hold("b", device="cuda:0")
    assert slot.lease.token == 2
    assert host.holders() == {f"gpu:{A}:0": "b"}


def test_gpu_that_vanishes_stops_its_worker_and_rests(host: Host) -> None:
    """The worker is told to stop and leaves with the reason; the GPU with all its slots rests."""
    stack, stop = ExitStack(), Event()
    slot = host.hold("a", stack=stack, stop=stop)
    host.plug(B)
    assert wait_until(stop.is_set)
    stack.close()
    slot.trouble.trial = 7
    with pytest.raises(GpuLostError, match="gone from this host; its trial 7 goes on elsewhere"):
        slot.trouble.require_none()
    assert host.holders() == {f"gpu:{A}:0": "rests after: it is gone from this host"}
    host.plug(A, B)
    again = [host.hold(name, workers_per_gpu=2).lease.resource for name in ("a again", "c")]
    assert again == [f"gpu:{B}:0", f"gpu:{B}:1"]


def test_slot_that_was_taken_over_is_used_no_more(host: Host, database: Database) -> None:
    """A worker that slept for longer than its lease trains no other trial on that GPU."""
    stop = Event()
    slot = host.hold("asleep", stop=stop)
    assert slot.begin_trial()
    take_over(database)
    assert not slot.begin_trial()
    assert stop.is_set()
    assert slot.trouble.reason


def test_slot_that_is_taken_over_in_mid_trial_stops_its_worker(
    host: Host, database: Database
) -> None:
    """The worker notices by itself, and its successor's lease is not touched."""
    stack, stop = ExitStack(), Event()
    slot = host.hold("asleep", stack=stack, stop=stop)
    take_over(database)
    assert wait_until(stop.is_set)
    assert slot.trouble.reason
    stack.close()
    assert host.holders() == {f"gpu:{A}:0": "b"}


def take_over(database: Database) -> None:
    """Let another worker take all slots, as after an outage that was longer than their leases."""
    statement = "update melsearch_lease set holder = 'b', token = token + 1"
    with database.engine.begin() as connection:
        connection.execute(sa.text(statement))


def test_worker_waits_for_no_slot_without_work(host: Host) -> None:
    """It leaves when its study is spent, whoever holds the GPUs, and tells if it has failed."""
    host.hold("a")
    host.hold("b")
    wish = SlotWish(environ=host.environ)
    spent = hold_slot(host.leases, wish, "c", host.keeper, Event(), Trouble(), lambda: False)
    with spent as slot:
        assert slot is None

    def failed() -> bool:
        raise StudyFailedError("too many trials failed")

    with pytest.raises(StudyFailedError):
        host.hold("d", has_work=failed)


def test_place_of_a_gpu_is_settled_once(host: Host) -> None:
    """`cuda:1` means the same GPU all the time, whatever vanishes before it."""
    slot = host.hold("a", device="cuda:1")
    assert (slot.lease.resource, slot.wish.device) == (f"gpu:{B}:0", B)


def test_error_is_the_gpus_only_if_that_is_gone(host: Host) -> None:
    """A trial's own failure stays its own."""
    slot = host.hold("a")
    assert slot.find_fault(RuntimeError("shape mismatch")) is None
    host.plug(B)
    fault = slot.find_fault(RuntimeError("CUDA error"))
    assert fault == "CUDA error"


def test_device_that_is_not_here_is_refused(host: Host) -> None:
    """The devices that there are are named; without a GPU the reason is."""
    with pytest.raises(DeviceError, match=f"cuda:1, {A}, {B}, got 'cuda:2'"):
        host.hold("a", device="cuda:2")
    host.plug()
    with pytest.raises(DeviceError, match=r"auto, cpu, got 'cuda'; NVML lists no GPU"):
        host.hold("a", device="cuda")
    assert host.hold("a", device="auto").description == "cpu"


def test_shares_of_the_cores_follow_the_workers(host: Host, database: Database) -> None:
    """Whoever joins or leaves changes the others' share; the dead count no longer."""
    cores, leaving = count_cores(), ExitStack()
    first = host.hold("a", device="cpu")
    assert first.num_threads() == cores
    second = host.hold("b", device="cpu", stack=leaving)
    dead = first.lease.resource.replace(":a", ":dead")
    assert Leases(database, ttl_seconds=0.001).take(dead, "dead")
    assert {first.num_threads(), second.num_threads()} == {max(1, cores // 2)}
    leaving.close()
    assert first.num_threads() == cores
    assert list(host.holders("cpu:").values()) == ["a"]


def test_told_number_of_workers_wins_over_the_count(host: Host) -> None:
    """With MELSEARCH_CPU_WORKERS the share is the same for whoever comes first."""
    host.environ[CPU_WORKERS] = str(count_cores())
    assert host.hold("a", device="cpu").num_threads() == 1
