"""One of the two ways to search that stand in the storm: ours, and plain Optuna."""

import heapq
import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag

from benchmarks.chaos import plain
from benchmarks.chaos.audit import add_writers, install
from benchmarks.chaos.crew import Crew
from benchmarks.chaos.server import server_in
from benchmarks.chaos.stage import storm_study
from benchmarks.chaos.volume import volume_in
from benchmarks.chaos.weather import Action, Event, Exposed, calm, strokes
from search.config import StudyConfig
from search.study import create_study
from storage.database import Database, parse_url
from tests.cutter import Cutter

_TICK_SECONDS = 0.05


@dataclass(frozen=True)
class Storm:
    """What both arms go through."""

    seed: int
    workers: int
    trials: int
    rounds: int
    """At most so many studies, one after the other."""
    seconds: float
    patience_seconds: float
    """How long after the storm the last study may take to its end."""


@dataclass
class Round:
    """One study in the storm."""

    config: StudyConfig
    logs: Path
    has_ended: bool = False
    """All workers have left by themselves."""


@dataclass
class Happened:
    """An event that has come over this arm."""

    event: Event
    at: float
    """Unix time."""


@dataclass
class Arm:
    """Its server, proxy, volume and workers, and what became of them."""

    name: str
    folder: Path
    fingerprint: str
    storm: Storm
    exposed: Exposed
    rounds: list[Round] = field(default_factory=list)
    happened: list[Happened] = field(default_factory=list)
    span: tuple[float, float] = (0.0, 0.0)
    """When the storm was over it. Unix time."""

    def begin_round(self) -> None:
        """Create the next study and start all workers on it."""
        number = len(self.rounds)
        name, seed = f"storm-{number}", self.storm.seed * 1000 + number
        config = storm_study(name, self.storm.trials, seed)
        url = self.exposed.server.url
        if self.name == "ours":
            database = Database(parse_url(url, {}))
            create_study(database, config, self.fingerprint)
            database.close()
        else:
            plain.create(url, config, self.fingerprint)
        install(self.exposed.server)
        self.rounds.append(Round(config, self.folder / "logs" / name))
        environs = [self._environ(worker) for worker in range(self.storm.workers)]
        self.exposed.crew.muster(environs, self.rounds[-1].logs)

    def command(self, worker: int, start: int) -> list[str]:
        """Return the command line of a worker's process, the `start`th of all."""
        study = self.rounds[-1].config.name
        if self.name == "ours":
            return [sys.executable, "-m", "search.cli", "worker", study, "--device", "cpu"]
        home, seed = str(self.folder / "home"), self.storm.seed * 1_000_000 + start
        url = self._url(worker)
        return [sys.executable, "-m", "benchmarks.chaos.plain", url, home, study, str(seed)]

    def count_reports(self) -> int:
        """Return how many reports the server has."""
        statement = "select count(*) from trial_intermediate_values"
        return int(self.exposed.server.query(statement)[0][0])

    def describe(self) -> str:
        """Say in a few words how far it is. Safe while the server comes and goes."""
        lives = self.exposed.crew.lives
        running = sum(life.ended is None for life in lives)
        counts = f"{len(self.happened)} events, {len(lives)} starts, {running} running"
        return f"{self.name}: study {len(self.rounds)}, {counts}"

    def face(self, events: list[Event], stop: Flag) -> None:
        """Let the events come over it, round after round, then let the last one end in calm."""
        begun, began = time.monotonic(), time.time()
        due = self._plan(events)
        while not stop.is_set() and (now := time.monotonic() - begun) < self.storm.seconds:
            while due and due[0][0] <= now:
                heapq.heappop(due)[2]()
            if self._ends_round() and not self._goes_on():
                break
            stop.wait(_TICK_SECONDS)
        self.span = (began, time.time())
        calm(self.exposed)
        deadline = time.monotonic() + self.storm.patience_seconds
        while not (stop.is_set() or self._ends_round() or time.monotonic() > deadline):
            stop.wait(_TICK_SECONDS)
        self.exposed.crew.end()

    def _ends_round(self) -> bool:
        self.exposed.crew.supervise()
        self.rounds[-1].has_ended = self.exposed.crew.has_left
        return self.rounds[-1].has_ended

    def _goes_on(self) -> bool:
        """Begin the next round as soon as the server runs; False if there is none to begin."""
        if len(self.rounds) == self.storm.rounds:
            return False
        if self.exposed.server.is_up:
            ended = self.folder / "home" / "runs" / self.rounds[-1].config.name
            shutil.rmtree(ended, ignore_errors=True)  # room for the next
            self.begin_round()
        return True

    def _plan(self, events: list[Event]) -> list[tuple[float, int, Action]]:
        """Return all that will be done, as a heap."""
        numbers = itertools.count()
        due = []
        for event in events:
            note = (event.at_seconds, next(numbers), self._noting(event))
            deeds = [(at, next(numbers), deed) for at, deed in strokes(event, self.exposed)]
            due += [note, *deeds]
        heapq.heapify(due)
        return due

    def _noting(self, event: Event) -> Action:
        return lambda: self.happened.append(Happened(event, time.time()))

    def _url(self, worker: int) -> str:
        return self.exposed.cutter.url.replace("//postgres@", f"//w{worker}@")

    def _environ(self, worker: int) -> dict[str, str]:
        ours = {
            "MELSEARCH_STORAGE": self._url(worker),
            "MELSEARCH_HOME": str(self.folder / "home"),
            "MELSEARCH_CPU_WORKERS": str(os.cpu_count()),  # one thread each, as the calm trainings
            "OMP_NUM_THREADS": "1",
        }
        return {k: v for k, v in os.environ.items() if not k.startswith("MELSEARCH_")} | ours


@contextmanager
def arm_in(folder: Path, name: str, cache: Path, fingerprint: str, storm: Storm) -> Iterator[Arm]:
    """Yield an arm with nothing running yet but its server; nothing of it outlives the block."""
    with ExitStack() as stack:
        server = stack.enter_context(server_in(folder / "postgres"))
        add_writers(server, [f"w{worker}" for worker in range(storm.workers)])
        cutter = stack.enter_context(Cutter(server.folder))
        volume = stack.enter_context(volume_in(folder / "home" / "runs"))
        (folder / "home" / "cache").symlink_to(cache)
        crew = Crew(storm.workers, lambda worker, start: arm.command(worker, start))
        stack.callback(crew.end)
        arm = Arm(name, folder, fingerprint, storm, Exposed(crew, server, cutter, volume))
        yield arm
