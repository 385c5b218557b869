"""Real worker processes that lease the slots of two GPUs of which there is nothing but the name."""

import itertools
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

import pytest
from optuna.trial import TrialState

from search.cores import count_cores
from search.errors import GpuLostError
from search.home import Home
from search.local import run_workers
from search.study import Study, create_study
from storage.database import Database
from tests.faults.workers import (
    TRAINING,
    Crew,
    WorkerProcess,
    fingerprint,
    tiny_study,
)
from tests.waiting import wait_until
from trainer.gpus import FAKE_GPUS

A, B = "GPU-aaaaaaaa-0000", "GPU-bbbbbbbb-0000"
REASONS = {
    "fail": "CUDA error: unspecified launch failure",
    "hang": "it is gone from this host",
}


class Machine:
    """Two GPUs, a crew that leases them, and when each worker's life ended."""

    def __init__(self, crew: Crew, gpus: Path) -> None:
        self.crew, self._gpus = crew, gpus
        self.workers: list[WorkerProcess] = []
        self._ends: dict[WorkerProcess, datetime] = {}
        crew.environ[FAKE_GPUS] = str(gpus)
        self.plug(A, B)

    def plug(self, *uuids: str) -> None:
        """Let the machine have these GPUs and no others."""
        self._gpus.write_text("\n".join(uuids))

    def start(self) -> WorkerProcess:
        """Start one more worker."""
        self.workers.append(self.crew.start())
        return self.workers[-1]

    def kill(self, worker: WorkerProcess) -> None:
        """Kill a worker in the midst of its trial."""
        worker.wait_for_epoch(2)
        worker.send(signal.SIGKILL)
        worker.wait()
        self._ends[worker] = datetime.now(UTC)

    def holding(self) -> list[WorkerProcess]:
        """Return the workers that have ever held a slot."""
        return [worker for worker in self.workers if worker.events("slot_taken")]

    def assert_no_slot_had_two_holders(self) -> None:
        """Require that each slot was taken only after its former holder had gone."""
        lives = [(*slot_of(w), self._ends.get(w) or last_time(w)) for w in self.holding()]
        for slot in {life[0] for life in lives}:
            spans = sorted((begin, end) for name, begin, end in lives if name == slot)
            for (_, end), (begin, _) in itertools.pairwise(spans):
                assert end <= begin, f"{slot} was taken at {begin} and held until {end}"


def slot_of(worker: WorkerProcess) -> tuple[str, datetime]:
    """Return which slot a worker took, and when."""
    (taken,) = worker.events("slot_taken")
    return taken["slot"], datetime.fromisoformat(taken["time"])


def last_time(worker: WorkerProcess) -> datetime:
    """Return when a worker that left by itself let its slot go."""
    (left,) = worker.events("gpu_lost") or worker.events("worker_left")
    return datetime.fromisoformat(left["time"])


def takeovers(workers: Sequence[WorkerProcess], trial: int) -> list[int]:
    """Return how many deaths had been counted at each takeover of the trial."""
    events = [event for worker in workers for event in worker.events("trial_taken_over")]
    return [event["attempts"] for event in events if event["trial"] == trial]


@pytest.fixture
def machine(crew: Crew, tmp_path: Path) -> Machine:
    """A machine of two GPUs on a fresh database."""
    return Machine(crew, tmp_path / "gpus")


def make_study(database: Database, home: Home, trials: int, epochs: int) -> Study:
    """A study of as long trials as the test needs."""
    training = TRAINING | {"epochs": epochs}
    baseline = training | {"frontend": "logmel", "augmentation": "none", "weights": "none"}
    config = tiny_study(trials=trials, training=training, baseline=baseline)
    return create_study(database, config, fingerprint(home))


def assert_complete(study: Study, num_trials: int) -> None:
    """Require exactly the budget, all of it complete."""
    assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE] * num_trials


def test_two_gpus_are_shared_out_over_kills_and_an_unplugged_one(
    database: Database, home: Home, machine: Machine
) -> None:
    """Of four workers two wait; they take over what falls free, and no slot has two holders."""
    study = make_study(database, home, trials=4, epochs=150)
    workers = [machine.start() for _ in range(4)]
    first, second = wait_until(lambda: holding if len(holding := machine.holding()) == 2 else [])
    waiting = [worker for worker in workers if worker not in (first, second)]
    holders = {slot_of(w)[0]: w.events("slot_taken")[0]["worker"] for w in (first, second)}
    assert set(holders) == {f"gpu:{A}:0", f"gpu:{B}:0"}
    assert [w.wait_for("slot_awaited")["held_by"] for w in waiting] == [holders] * 2

    killed = first.wait_for("trial_started")["trial"]
    machine.kill(first)
    (successor,) = wait_until(lambda: [w for w in waiting if w.events("slot_taken")])
    assert slot_of(successor)[0] == slot_of(first)[0]
    rejoined = machine.start()
    rejoined.wait_for("slot_awaited")

    second.wait_for_epoch(2)
    left_over = A if B in slot_of(second)[0] else B
    machine.plug(left_over)
    assert second.wait() == GpuLostError.EXIT_CODE
    unplugged = second.events("trial_released")[-1]["trial"]
    assert f"its trial {unplugged} goes on elsewhere" in second.log.read_text()
    machine.plug(A, B)
    assert [worker.wait() for worker in (*waiting, rejoined)] == [0] * 3
    assert_complete(study, 4)
    assert takeovers(machine.workers, killed)[0] == 1, "a death counts"
    assert 0 in takeovers(machine.workers, unplugged), "an unplugged GPU doesn't"
    machine.assert_no_slot_had_two_holders()


def test_small_models_share_a_gpu(database: Database, home: Home, machine: Machine) -> None:
    """With MELSEARCH_WORKERS_PER_GPU=2 four workers train on two GPUs at the same time."""
    study = make_study(database, home, trials=4, epochs=15)
    machine.crew.environ["MELSEARCH_WORKERS_PER_GPU"] = "2"
    workers = [machine.start() for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    taken = {slot_of(worker)[0] for worker in workers}
    assert taken == {f"gpu:{gpu}:{slot}" for gpu in (A, B) for slot in (0, 1)}
    assert not any(worker.events("slot_awaited") for worker in workers)
    assert_complete(study, 4)


LOSES_ITS_GPU = """
import hashlib, logging, sys
from pathlib import Path
import timm
from timm.models import register_model
from timm.models.resnet import ResNet
from search.cli import main

gpus, flag = map(Path, sys.argv.pop().split(":"))

class Losing(ResNet):
    def forward(self, x):
        if flag.exists():
            gpus.write_text(gpus.read_text().split()[-1])
            logging.getLogger("search").info("gpu_is_off_the_bus")
            if flag.read_text() == "hang":
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # out of Python's reach
            raise RuntimeError("CUDA error: unspecified launch failure")
        return super().forward(x)

@register_model
def loses_its_gpu(pretrained=False, **options):
    backbone = timm.create_model("test_resnet", **options)
    backbone.__class__ = Losing
    return backbone

main()
"""


@pytest.fixture
def losing_study(database: Database, home: Home) -> Study:
    """A study of one trial that loses its GPU when told so; nobody waits for its lease to end."""
    losing = TRAINING | {"backbone": "loses_its_gpu"}
    baseline = losing | {"frontend": "logmel", "augmentation": "none", "weights": "none"}
    lease = {"ttl_seconds": 60.0, "renew_seconds": 0.5}
    return create_study(
        database, tiny_study(training=losing, baseline=baseline, lease=lease), fingerprint(home)
    )


def start_losing(machine: Machine, tmp_path: Path) -> WorkerProcess:
    """Start a worker that knows the losing backbone."""
    arguments = f"{tmp_path / 'gpus'}:{tmp_path / 'flag'}"
    return machine.crew.run(["-c", LOSES_ITS_GPU, "worker", "s", arguments])


@pytest.mark.parametrize(("way", "attempts"), [("fail", 1), ("hang", 0)])
def test_trial_goes_on_at_once_when_its_gpu_breaks(
    losing_study: Study, machine: Machine, tmp_path: Path, way: str, attempts: int
) -> None:
    """Its worker leaves, even out of a hanging step; what may be the trial's doing counts."""
    flag = tmp_path / "flag"
    broken = start_losing(machine, tmp_path)
    broken.wait_for_epoch(3)
    flag.write_text(way)
    assert broken.wait(20.0) == GpuLostError.EXIT_CODE
    (event,) = broken.events("gpu_lost")
    assert event["reason"] == REASONS[way]
    assert not broken.events("trial_failed")
    flag.unlink()
    other = start_losing(machine, tmp_path)
    assert other.wait() == 0
    assert slot_of(other)[0] == f"gpu:{B}:0"
    assert takeovers([other], 0) == [attempts]
    assert other.events("training_resumed")[0]["epoch"] > 3
    assert_complete(losing_study, 1)


def test_up_starts_a_worker_again_that_lost_its_gpu(
    database: Database, home: Home, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search goes on by itself on the other GPU."""
    study = make_study(database, home, trials=1, epochs=40)
    crew, log = machine.crew, machine.crew.home.artifacts.study_folder("s") / "worker-0.log"
    monkeypatch.setenv("MELSEARCH_STORAGE", crew.url)
    monkeypatch.setenv("MELSEARCH_HOME", str(crew.home.root))
    monkeypatch.setenv(FAKE_GPUS, crew.environ[FAKE_GPUS])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def unplug() -> None:
        wait_until(lambda: log.exists() and '"epoch_ended"' in log.read_text())
        machine.plug(B)

    unplugging = Thread(target=unplug)
    unplugging.start()
    assert run_workers(study, crew.home, 1, Event())
    unplugging.join()
    assert f'"slot": "gpu:{B}:0"' in log.read_text()
    assert_complete(study, 1)


def test_workers_without_a_gpu_share_the_cores(
    database: Database, home: Home, machine: Machine
) -> None:
    """A trial computes in fewer threads beside another worker, and in all when that one is dead."""
    make_study(database, home, trials=1000, epochs=8)
    machine.crew.environ |= {"MELSEARCH_DEVICE": "cpu", "OMP_NUM_THREADS": "64"}
    stays, killed = machine.start(), machine.start()
    killed.wait_for("trial_started")

    def newest_threads() -> int:
        return int(stays.wait_for("trial_started")["threads"])

    wait_until(lambda: newest_threads() == max(1, count_cores() // 2))
    machine.kill(killed)
    wait_until(lambda: newest_threads() == count_cores())
    stays.send(signal.SIGTERM)
    assert stays.wait() == 0
    assert slot_of(stays)[0].startswith("cpu:")
