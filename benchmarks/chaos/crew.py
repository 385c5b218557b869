"""The workers of one arm and who starts them again: what `restart: on-failure` does in Compose."""

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BACK_OFF_SECONDS = 0.1
"""Doubles with each death within `_QUICK_SECONDS` of a start, up to a minute, as Docker's."""
_QUICK_SECONDS = 10.0
_LONGEST_BACK_OFF_SECONDS = 60.0
_COMES_BACK_SECONDS = 2.0
"""When a worker that the weather told to stop is started again: its host is back."""


@dataclass
class Life:
    """One worker process, from start to exit."""

    worker: int
    pid: int
    log: Path
    started: float
    """Unix time, as everything that is drawn."""
    ended: float | None = None
    code: int | None = None


@dataclass
class _Berth:
    """A worker's place: a process, or when the next one starts, or neither: it has left."""

    process: subprocess.Popen[bytes] | None = None
    life: Life | None = None
    starts_at: float | None = None
    was_told: bool = False
    num_quick: int = 0


class Crew:
    """Workers that are started again when they die."""

    def __init__(self, size: int, command: Callable[[int, int], list[str]]) -> None:
        self._command = command
        self._berths = [_Berth() for _ in range(size)]
        self._environs: list[dict[str, str]] = []
        self._folder = Path()
        self.lives: list[Life] = []

    def muster(self, environs: list[dict[str, str]], folder: Path) -> None:
        """Start all workers, each with its environment; their logs go into `folder`."""
        self._environs, self._folder = environs, folder
        folder.mkdir(parents=True)
        for berth in self._berths:
            berth.starts_at, berth.num_quick = time.monotonic(), 0
        self.supervise()

    @property
    def has_left(self) -> bool:
        """Whether all workers have left for good, by themselves and with exit code 0."""
        return all(berth.process is None and berth.starts_at is None for berth in self._berths)

    def supervise(self) -> None:
        """Note who has died, and start those whose time has come."""
        for worker, berth in enumerate(self._berths):
            if berth.process is not None and berth.process.poll() is not None:
                self._bury(berth)
            if berth.starts_at is not None and time.monotonic() >= berth.starts_at:
                self._start(worker, berth)

    def send(self, worker: int, number: signal.Signals) -> bool:
        """Send a worker a signal; tell whether there was a process to get it."""
        berth = self._berths[worker]
        if berth.process is None or berth.process.poll() is not None:
            return False
        berth.was_told = berth.was_told or number == signal.SIGTERM
        berth.process.send_signal(number)
        return True

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to all who are there."""
        for worker in range(len(self._berths)):
            self.send(worker, number)

    def end(self) -> None:
        """Kill whoever is left."""
        for berth in self._berths:
            berth.starts_at = None
            if berth.process is not None:
                berth.process.kill()
                berth.process.wait()
                self._bury(berth)
                berth.starts_at = None

    def _start(self, worker: int, berth: _Berth) -> None:
        log = self._folder / f"worker-{worker}-{len(self.lives)}.log"
        with log.open("wb") as stream:
            berth.process = subprocess.Popen(
                self._command(worker, len(self.lives)),
                env=self._environs[worker],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # Ctrl-C is for the storm alone
            )
        berth.life = Life(worker, berth.process.pid, log, time.time())
        berth.starts_at, berth.was_told = None, False
        self.lives.append(berth.life)

    def _bury(self, berth: _Berth) -> None:
        assert berth.process is not None
        assert berth.life is not None
        life, code = berth.life, berth.process.returncode
        life.ended, life.code = time.time(), code
        berth.process = berth.life = None
        if code == 0:
            delay = _COMES_BACK_SECONDS if berth.was_told else None
        else:
            is_quick = life.ended - life.started < _QUICK_SECONDS
            berth.num_quick = berth.num_quick + 1 if is_quick else 0
            delay = min(_BACK_OFF_SECONDS * 2**berth.num_quick, _LONGEST_BACK_OFF_SECONDS)
        berth.starts_at = None if delay is None else time.monotonic() + delay
