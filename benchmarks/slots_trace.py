"""Show how four workers share two GPUs over kills, rejoins and an unplugged GPU.

The workers and the PostgreSQL are real, the GPUs are lines in a file. Prints a row whenever the
lease table says something new, a dead worker in brackets:
.venv/bin/python benchmarks/slots_trace.py
"""

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import wave
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from search.config import parse_study
from search.study import create_study
from search.vacancy import RESTING
from storage.database import Database, parse_url
from storage.embedded import embedded_server
from storage.leases import Leases
from trainer.cache import prepare

GPUS = ("GPU-a", "GPU-b")
TTL_SECONDS = 3.0
SAMPLE_RATE = 4000
PATIENCE_SECONDS = 90.0
TRAINING = {
    "backbone": "test_resnet", "weights": "none", "frontend": "logmel", "augmentation": "none",
    "window_seconds": 1.0, "eval_windows": 1, "n_fft": 128, "hop_length": 64, "n_mels": 32,
    "batch_size": 4, "epochs": 1000, "sample_rate": SAMPLE_RATE,
}  # fmt: skip
STUDY = {
    "name": "trace",
    "trials": 20,
    "pruner": {"name": "none"},
    "lease": {"ttl_seconds": TTL_SECONDS, "renew_seconds": 0.5},
    "training": {key: TRAINING[key] for key in TRAINING if key != "frontend"},
    "baseline": TRAINING,
    "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
}


class Trace:
    """The workers, and what the lease table says of them."""

    def __init__(self, folder: Path, url: str, leases: Leases) -> None:
        self._folder, self._leases = folder, leases
        self._environ = os.environ | {
            "MELSEARCH_HOME": str(folder / "home"),
            "MELSEARCH_STORAGE": url,
            "MELSEARCH_FAKE_GPUS": str(folder / "gpus"),
            "MELSEARCH_DEVICE": "cuda",
            "OMP_NUM_THREADS": "1",
        }
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._started = time.monotonic()
        self._shown: tuple[str, ...] = ()

    def start(self) -> str:
        """Start one more worker; return its name here."""
        name = f"w{len(self.workers) + 1}"
        with self._log(name).open("wb") as log:
            command = [sys.executable, "-m", "search.cli", "worker", "trace"]
            self.workers[name] = subprocess.Popen(command, env=self._environ, stderr=log)
        return name

    def plug(self, *uuids: str) -> None:
        """Let there be these GPUs and no others."""
        (self._folder / "gpus").write_text("\n".join(uuids))

    def holders(self) -> dict[str, str]:
        """Return which worker holds each GPU's slot."""
        held = self._leases.held("gpu:")
        return {lease.resource.split(":")[1]: self._name(lease.holder) for lease in held}

    def trials(self) -> dict[str, str]:
        """Return which trial each worker holds."""
        held = self._leases.held("trial:")
        return {self._name(lease.holder): lease.resource.rpartition(":")[2] for lease in held}

    def waiting(self) -> list[str]:
        """Return the workers that have said that they wait for a slot, and have none yet."""
        holders = self.holders().values()
        return [
            name
            for name in self.workers
            if self._lives(name)
            and name not in holders
            and '"slot_awaited"' in self._log(name).read_text()
            and '"slot_taken"' not in self._log(name).read_text()
        ]

    def show(self, event: str = "") -> None:
        """Print a row if there is something new."""
        holders, trials = self.holders(), self.trials()
        cells = [self._describe(holders.get(uuid), trials) for uuid in GPUS]
        row = (*cells, " ".join(self.waiting()) or "-")
        if event or row != self._shown:
            self._shown = row
            seconds = time.monotonic() - self._started
            print(f"{seconds:6.1f} s  {event:<22} {row[0]:<20} {row[1]:<20} {row[2]}", flush=True)

    def until(self, condition: Callable[[], object]) -> None:
        """Look, and show what is new, until the condition holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"still waiting after {PATIENCE_SECONDS:g} s: {self._folder}")
            self.show()
            time.sleep(0.1)
        self.show()

    def end(self) -> None:
        """Kill whoever is left."""
        for process in self.workers.values():
            process.kill()
            process.wait()

    def _describe(self, holder: str | None, trials: dict[str, str]) -> str:
        """Return a GPU's holder; a dead one's lease runs on for a while."""
        if holder is None:
            return "-"
        trial = f" trial {trials[holder]}" if holder in trials else ""
        alive = holder == "rests" or self._lives(holder)
        return f"{holder}{trial}" if alive else f"({holder}{trial})"

    def _lives(self, name: str) -> bool:
        return self.workers[name].poll() is None

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _name(self, holder: str) -> str:
        if holder.startswith(RESTING):
            return "rests"
        pid = int(holder.split("-")[-2])
        return next(name for name, process in self.workers.items() if process.pid == pid)


def play(trace: Trace) -> None:
    """Start four workers, kill two, let them rejoin, unplug a GPU and plug it in again."""
    print(f"{'time':>8}  {'what happens':<22} {GPUS[0]:<20} {GPUS[1]:<20} waiting")
    trace.plug(*GPUS)
    names = [trace.start() for _ in range(4)]
    trace.show(f"{' '.join(names)} start")
    trace.until(lambda: len(trace.holders()) == 2 and len(trace.waiting()) == 2)
    for uuid in GPUS:
        kill_and_rejoin(trace, uuid)
    lost = trace.holders()["GPU-b"]
    trace.plug("GPU-a")
    trace.show("GPU-b is unplugged")
    trace.until(lambda: trace.workers[lost].poll() is not None)
    trace.show(f"{lost} has left with {trace.workers[lost].returncode}")
    trace.until(lambda: "GPU-b" not in trace.holders())
    trace.plug(*GPUS)
    trace.show("GPU-b is plugged in")
    trace.until(lambda: len(trace.trials()) == 2)
    for process in trace.workers.values():
        process.terminate()
    trace.show("all are told to stop")
    trace.until(lambda: all(process.poll() is not None for process in trace.workers.values()))


def kill_and_rejoin(trace: Trace, uuid: str) -> None:
    """Kill the holder of a GPU in mid-trial, and start another worker."""
    killed = trace.holders()[uuid]
    trace.workers[killed].send_signal(signal.SIGKILL)
    trace.workers[killed].wait()
    trace.show(f"{killed} is killed")
    trace.until(lambda: trace.holders().get(uuid, killed) != killed)
    rejoined = trace.start()
    trace.show(f"{rejoined} starts")
    trace.until(lambda: rejoined in trace.waiting() and len(trace.holders()) == 2)


def write_tones(folder: Path) -> None:
    """Write eight training and four validation clips of a second; every second one is fake."""
    for split, num_clips in (("train", 8), ("val", 4)):
        (folder / f"{split}set").mkdir(parents=True)
        rows = ["video_name,target"]
        for number in range(num_clips):
            name = f"{split}-{number}.wav"
            hertz = 440 + 220 * (number % 2) + number
            angles = (2 * math.pi * hertz * i / SAMPLE_RATE for i in range(SAMPLE_RATE))
            with wave.open(str(folder / f"{split}set" / name), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                file.writeframes(array("h", (int(9000 * math.sin(x)) for x in angles)).tobytes())
            rows.append(f"{name},{number % 2}")
        (folder / f"{split}set_label.txt").write_text("\n".join(rows) + "\n")


@contextmanager
def stage() -> Iterator[Trace]:
    """Yield workers' surroundings: data, a study, a PostgreSQL of their own."""
    with tempfile.TemporaryDirectory(prefix="melsearch-trace-") as name:
        folder = Path(name)
        write_tones(folder / "data")
        cache = folder / "home" / "cache"
        report = prepare(
            folder / "data", cache, sample_rate=SAMPLE_RATE, notebook_images=False, num_processes=1
        )
        with embedded_server(folder / "postgres") as url:
            database = Database(parse_url(url, {}))
            create_study(database, parse_study(STUDY, "study.toml"), report.data_fingerprint)
            trace = Trace(folder, url, Leases(database, TTL_SECONDS))
            try:
                yield trace
            finally:
                trace.end()
                database.close()


if __name__ == "__main__":
    with stage() as trace:
        play(trace)
