"""Worker processes that the fault tests start, watch and kill; and a study tiny enough for that."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from search.claim import trial_prefix
from search.config import StudyConfig, parse_study
from search.home import Home
from search.study import Study
from storage.leases import HeldLease, Leases
from tests.media import small_clips, write_dataset
from tests.waiting import SECONDS, wait_until
from trainer.cache import list_caches, prepare

SAMPLE_RATE = 4000
"""Hz."""
TRAINING: dict[str, Any] = {
    "backbone": "test_resnet",
    "sample_rate": SAMPLE_RATE,
    "window_seconds": 1.0,
    "eval_windows": 1,
    "n_fft": 128,
    "hop_length": 64,
    "n_mels": 32,
    "batch_size": 4,
    "epochs": 40,
    "optimizer": "adam",
}
EPOCHS = TRAINING["epochs"]
BASELINE = TRAINING | {"frontend": "logmel", "augmentation": "none", "weights": "none"}
TTL_SECONDS = 3.0


def tiny_study(name: str = "s", trials: int = 1, **changes: Any) -> StudyConfig:
    """A study of trainings that take seconds, with short leases; nothing is pruned."""
    document: dict[str, Any] = {
        "name": name,
        "trials": trials,
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
        "lease": {"ttl_seconds": TTL_SECONDS, "renew_seconds": 0.5},
        "training": TRAINING,
        "baseline": BASELINE,
        "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
    }
    return parse_study(document | changes, "study.toml")


def make_home(root: Path) -> Home:
    """Return a home with a waveform cache of twelve short tones."""
    data = write_dataset(root / "data", small_clips(3))
    home = Home(root / "home")
    prepare(
        data, home.cache, sample_rate=SAMPLE_RATE, notebook_images=False, num_processes=1
    )  # fmt: skip
    return home


def fingerprint(home: Home) -> str:
    """Return the fingerprint of the home's only data."""
    ((_, _, data_fingerprint),) = list_caches(home.cache)
    return data_fingerprint


class WorkerProcess:
    """`melsearch worker` in a process of its own, and the events that it logs."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environ,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of that name that it has logged so far."""
        lines = self.log.read_text().split("\n")[:-1]
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in found if event["event"] == name]

    def wait_for(self, name: str) -> dict[str, Any]:
        """Wait until it logs an event of that name; return the newest one."""
        return wait_until(lambda: self.events(name) if self._require_life() else [])[-1]

    def wait_for_epoch(self, epoch: int) -> None:
        """Wait until it has ended that epoch of whatever trial it trains."""
        wait_until(
            lambda: (
                self._require_life()
                and any(event["epoch"] >= epoch for event in self.events("epoch_ended"))
            )
        )

    def train_on(self, num_epochs: int = 2) -> None:
        """Wait until it has ended so many more epochs of the trial that it trains, or all of it."""
        last = self.events("epoch_ended")[-1]["epoch"]
        self.wait_for_epoch(min(last + num_epochs, EPOCHS))

    def is_frozen(self) -> bool:
        """Tell whether it has stopped itself."""
        status = Path(f"/proc/{self.process.pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] == "T"

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait for its end; return its exit code."""
        return self.process.wait(seconds)

    def end(self) -> None:
        """Kill it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30.0)

    def _require_life(self) -> bool:
        assert self.process.poll() is None, f"the worker has left:\n{self.log.read_text()[-2000:]}"
        return True


class Crew:
    """Starts workers on one study of one database."""

    def __init__(self, url: str, home: Home, folder: Path, stack: ExitStack) -> None:
        self.url, self.home, self._folder, self._stack = url, home, folder, stack
        self.environ: dict[str, str] = {}
        """What the workers' environment has besides."""
        self._num_started = 0

    def start(self, study: str = "s") -> WorkerProcess:
        """Start a worker as a user does."""
        return self.run(["-m", "search.cli", "worker", study])

    def run(self, command: list[str]) -> WorkerProcess:
        """Start Python with that command in a worker's surroundings."""
        self._num_started += 1
        log = self._folder / f"worker-{self._num_started}.log"
        ours = {"MELSEARCH_STORAGE": self.url, "MELSEARCH_HOME": str(self.home.root)}
        worker = WorkerProcess(command, ours | self.environ, log)
        self._stack.callback(worker.end)
        return worker


@contextmanager
def crew_of(url: str, home: Home, folder: Path) -> Iterator[Crew]:
    """Yield what starts workers; none of them outlives the block."""
    with ExitStack() as stack:
        yield Crew(url, home, folder, stack)


def holders(study: Study) -> list[HeldLease]:
    """Return the leases on the study's trials that are held now."""
    return Leases(study.database, TTL_SECONDS).held(trial_prefix(study.name))


def assert_whole(study: Study, num_trials: int = 1) -> None:
    """Require exactly the budget, each trial complete with the reports of all its epochs."""
    trials = study.trials()
    assert [trial.number for trial in trials] == list(range(num_trials))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    for trial in trials:
        assert list(trial.intermediate_values) == list(range(1, EPOCHS + 1))
        assert trial.value == max(trial.intermediate_values.values())
    assert holders(study) == []


def assert_one_outage(worker: WorkerProcess) -> None:
    """Require that the log said once that the database was lost, and once that it was back."""
    num_lines = [len(worker.events(name)) for name in ("database_lost", "database_back")]
    assert num_lines == [1, 1]
    assert len(worker.events("trial_started")) == len(worker.events("trial_ended"))
