"""The storm: which event comes when, and what each does to an arm. A pure function of the seed."""

import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.chaos.crew import Crew
from benchmarks.chaos.server import Server
from benchmarks.chaos.stage import TTL_SECONDS
from benchmarks.chaos.volume import Volume
from tests.cutter import Cutter

Action = Callable[[], object]


@dataclass(frozen=True)
class Kind:
    """One kind of event: how often it comes, and how long it lasts."""

    weight: int
    shortest_seconds: float = 0.0
    longest_seconds: float = 0.0
    stops_others: bool = False
    """No other event begins before it is over: two outages at once would be one."""


KINDS = {
    "SIGKILL a worker": Kind(5),
    "SIGSTOP a worker for a while": Kind(5, 1.0, 2 * TTL_SECONDS),
    "SIGTERM a worker": Kind(4),
    "restart the server": Kind(2, 1.0, 10.0, True),
    "crash the server": Kind(1, 1.0, 10.0, True),
    "SIGKILL the postmaster": Kind(1, 1.0, 10.0, True),
    "terminate all backends": Kind(3),
    "reset all connections": Kind(3),
    "refuse connections": Kind(2, 1.0, 10.0, True),
    "black hole, then it heals": Kind(2, 1.0, 2 * TTL_SECONDS, True),
    "black hole, then resets": Kind(1, 1.0, 2 * TTL_SECONDS, True),
    "lose a COMMIT": Kind(2),
    "lose a COMMIT's answer": Kind(3),
    "fill the volume": Kind(2, 2.0, 12.0),
}
_COMMITS = (b"UPDATE trials", b"INSERT INTO trials", b"trial_intermediate_values")
"""Whose COMMIT is lost: that of a tell, an ask or a report."""


@dataclass(frozen=True)
class Event:
    """What happens at an instant of the storm, to both arms."""

    at_seconds: float
    kind: str
    worker: int
    lasts_seconds: float
    commit: bytes


@dataclass(frozen=True)
class Exposed:
    """All of an arm that the weather can get at."""

    crew: Crew
    server: Server
    cutter: Cutter
    volume: Volume


def forecast(seed: int, seconds: float, workers: int, pause_seconds: float) -> Iterator[Event]:
    """Yield the events of a storm, `pause_seconds` apart on average."""
    chance, at, bag = random.Random(seed), 0.0, list[str]()
    while True:
        if not bag:  # so that a short storm, too, has some of everything
            bag = [name for name, kind in KINDS.items() for _ in range(kind.weight)]
            chance.shuffle(bag)
        name = bag.pop()
        kind = KINDS[name]
        lasts = chance.uniform(kind.shortest_seconds, kind.longest_seconds)
        at += pause_seconds * chance.uniform(0.5, 1.5)
        event = Event(at, name, chance.randrange(workers), lasts, chance.choice(_COMMITS))
        if at + lasts > seconds:
            return
        yield event
        at += lasts if kind.stops_others else 0.0


def strokes(event: Event, arm: Exposed) -> list[tuple[float, Action]]:
    """Return what to do to an arm, and when: at the event's beginning and at its end."""
    begin, end = _deeds(event, arm)
    return [(event.at_seconds, begin), (event.at_seconds + event.lasts_seconds, end)]


def calm(arm: Exposed) -> None:
    """End whatever is still going on."""
    arm.server.start()
    arm.volume.empty()
    arm.cutter.trap = None
    arm.cutter.refuse(False)
    arm.cutter.hold(False)
    arm.crew.send_all(signal.SIGCONT)


def _deeds(event: Event, arm: Exposed) -> tuple[Action, Action]:
    server, cutter = arm.server, arm.cutter
    tell = partial(arm.crew.send, event.worker)

    def heal() -> None:
        cutter.hold(False)

    def reset() -> None:
        cutter.cut()
        cutter.hold(False)

    def refuse() -> None:
        cutter.refuse(True)
        cutter.cut()

    def nothing() -> None:
        pass

    lose = partial(cutter.cut_commit, of=event.commit)
    deeds: dict[str, tuple[Action, Action]] = {
        "SIGKILL a worker": (partial(tell, signal.SIGKILL), nothing),
        "SIGSTOP a worker for a while": (
            partial(tell, signal.SIGSTOP),
            partial(tell, signal.SIGCONT),
        ),
        "SIGTERM a worker": (partial(tell, signal.SIGTERM), nothing),
        "restart the server": (partial(server.stop, "fast"), server.start),
        "crash the server": (partial(server.stop, "immediate"), server.start),
        "SIGKILL the postmaster": (server.kill, server.start),
        "terminate all backends": (server.terminate_backends, nothing),
        "reset all connections": (cutter.cut, nothing),
        "refuse connections": (refuse, partial(cutter.refuse, False)),
        "black hole, then it heals": (partial(cutter.hold, True), heal),
        "black hole, then resets": (partial(cutter.hold, True), reset),
        "lose a COMMIT": (partial(lose, "before"), nothing),
        "lose a COMMIT's answer": (partial(lose, "after"), nothing),
        "fill the volume": (arm.volume.fill, arm.volume.empty),
    }
    return deeds[event.kind]
