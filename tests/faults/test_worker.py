"""Real worker processes that are killed, stopped, frozen and cut off in mid-trial."""

import signal
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
import timm
from optuna.trial import TrialState
from safetensors.torch import save_file

from search.home import Home
from search.status import read_status
from search.study import Study, create_study
from storage.database import Database, parse_url
from storage.embedded import _pg_ctl, embedded_server, ensure_running
from tests.command import user_folder
from tests.cutter import cutter_before
from tests.faults.workers import (
    EPOCHS,
    TRAINING,
    Crew,
    WorkerProcess,
    assert_whole,
    crew_of,
    fingerprint,
    holders,
    tiny_study,
)
from tests.media import small_clips, write_dataset
from tests.waiting import wait_until
from trainer.cache import prepare
from trainer.snapshots import list_checkpoints


def assert_resumed(worker: WorkerProcess, trial: int = 0) -> None:
    """Require that the worker took the trial over and went on from its checkpoint."""
    assert [event["trial"] for event in worker.events("trial_taken_over")] == [trial]
    (resumed,) = worker.events("training_resumed")
    assert resumed["epoch"] > 1
    first = worker.events("epoch_ended")[0]
    assert (first["trial"], first["epoch"]) == (trial, resumed["epoch"])


def checkpoints(home: Home) -> dict[str, tuple[int, int]]:
    """Which checkpoints trial 0 has, and when they were written."""
    paths = list_checkpoints(home.artifacts.trial_folder("s", 0))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def test_killed_workers_trial_goes_on_in_the_other(
    database: Database, home: Home, crew: Crew
) -> None:
    """SIGKILL in mid-trial: the same number goes on from its checkpoint, the budget is exact."""
    study = create_study(database, tiny_study(trials=2), fingerprint(home))
    killed, other = crew.start(), crew.start()
    killed.wait_for_epoch(3)
    trial = killed.events("trial_started")[0]["trial"]
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert other.wait() == 0
    assert trial in [event["trial"] for event in other.events("trial_taken_over")]
    (resumed,) = other.events("training_resumed")
    assert resumed["epoch"] > 3
    assert_whole(study, num_trials=2)


def test_stopped_worker_gives_its_trial_back(study: Study, crew: Crew) -> None:
    """SIGTERM: exit 0 within 10 s, and another goes on at once from the checkpoint."""
    stopped = crew.start()
    stopped.wait_for_epoch(2)
    started = time.monotonic()
    stopped.send(signal.SIGTERM)
    assert stopped.wait(10.0) == 0
    assert time.monotonic() - started < 10.0
    assert stopped.events("trial_released")
    status = read_status(study)
    assert status["counts"]["running"] == 1
    assert status["workers"] == []
    assert holders(study) == []
    other = crew.start()
    assert other.wait() == 0
    assert_resumed(other)
    assert other.events("trial_taken_over")[0]["attempts"] == 0, "giving back is no death"
    assert_whole(study)


def test_terminated_connections_stop_no_training(
    study: Study, crew: Crew, database: Database
) -> None:
    """pg_terminate_backend of a connection in use: the training goes on and all reports arrive."""
    worker = crew.start()
    terminate = sa.text(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid()"
    )
    # Each look is a transaction of its own, as one sees the same sessions to its end; a worker has
    # one only while it says something.
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for epoch in (2, 5, 8):
            worker.wait_for_epoch(epoch)
            wait_until(lambda: connection.execute(terminate).scalar(), poll_seconds=0.001)
    assert worker.wait() == 0
    assert_whole(study)
    assert len(worker.events("trial_started")) == 1
    assert not worker.events("lease_lost")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restarted_server_stops_no_training(own_home: Home, tmp_path: Path, mode: str) -> None:
    """A restart or a crash of the server in mid-trial: the training goes on, all reports arrive."""
    with (
        user_folder() as folder,
        embedded_server(folder) as url,
        crew_of(url, own_home, tmp_path) as crew,
    ):
        database = Database(parse_url(url, {}))
        study = create_study(database, tiny_study(), fingerprint(own_home))
        worker = crew.start()
        worker.wait_for_epoch(3)
        _pg_ctl(folder, "stop", f"--mode={mode}")
        last = len(worker.events("epoch_ended"))
        worker.wait_for_epoch(last + 2)  # nobody answers, and it trains on
        assert worker.wait_for("report_delayed")
        ensure_running(folder)
        assert worker.wait() == 0
        assert_whole(study)
        assert len(worker.events("trial_started")) == 1
        database.close()


def test_outage_at_the_end_keeps_no_report_back(own_home: Home, tmp_path: Path) -> None:
    """A training that ends while the server is down waits, and tells all of it afterwards."""
    with (
        user_folder() as folder,
        embedded_server(folder) as url,
        crew_of(url, own_home, tmp_path) as crew,
    ):
        database = Database(parse_url(url, {}))
        study = create_study(database, tiny_study(), fingerprint(own_home))
        worker = crew.start()
        worker.wait_for_epoch(3)
        _pg_ctl(folder, "stop", "--mode=fast")
        worker.wait_for_epoch(EPOCHS)
        assert len(worker.events("database_lost")) <= 4, "once by each who tries, not each second"
        ensure_running(folder)
        assert worker.wait() == 0
        assert_whole(study)
        database.close()


def test_worker_that_starts_in_an_outage_waits(study: Study, crew: Crew, database_url: str) -> None:
    """Nobody answers when it comes: it says so once, waits, and trains; or leaves when told to."""
    with cutter_before(database_url) as (cutter, crew.url):
        cutter.refuse(True)
        worker, stopped = crew.start(), crew.start()
        for waiting in (worker, stopped):
            waiting.wait_for("database_lost")
        stopped.send(signal.SIGTERM)
        assert stopped.wait(10.0) == 0
        cutter.refuse(False)
        assert worker.wait() == 0
        assert len(worker.events("database_lost")) == 1
        assert len(worker.events("database_back")) == 1
    assert_whole(study)


def test_worker_with_other_data_refuses(study: Study, crew: Crew, tmp_path: Path) -> None:
    """Exit code 2, and both fingerprints in one line."""
    data = write_dataset(tmp_path / "other", small_clips(2))
    crew.home = Home(tmp_path / "other-home")
    report = prepare(
        data, crew.home.cache, sample_rate=4000, notebook_images=False, num_processes=1
    )  # fmt: skip
    worker = crew.start()
    assert worker.wait() == 2
    line = f"data_fingerprint: study {study.data_fingerprint}, here {report.data_fingerprint}"
    assert line in worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()
    assert study.trials()[0].state == TrialState.WAITING


def test_frozen_worker_writes_nothing_when_it_wakes(study: Study, crew: Crew) -> None:
    """SIGSTOP for longer than the lease, then SIGCONT: the successor's trial is untouched."""
    frozen = crew.start()
    frozen.wait_for_epoch(2)
    frozen.send(signal.SIGSTOP)
    successor = crew.start()
    successor.wait_for("training_resumed")
    successor.wait_for_epoch(6)
    successor.send(signal.SIGSTOP)  # so that whatever is written now is the zombie's
    before, trial_before = checkpoints(crew.home), study.trials()[0]
    frozen.send(signal.SIGCONT)
    frozen.wait_for("lease_lost")
    assert checkpoints(crew.home) == before
    assert trial_before == study.trials()[0]
    frozen.send(signal.SIGTERM)
    successor.send(signal.SIGCONT)
    assert frozen.wait() == 0
    assert successor.wait() == 0
    assert_resumed(successor)
    assert_whole(study)


def test_study_whose_trials_all_fail_stops(
    database: Database, home: Home, crew: Crew, tmp_path: Path
) -> None:
    """A file of no weights fails each trial: exit 1 with the reason, after max_failed_trials."""
    path = tmp_path / "notes.safetensors"
    path.write_text("no weights at all")
    weights = {"weights": str(path)}
    config = tiny_study(
        trials=9,
        max_failed_trials=2,
        training=TRAINING | weights,
        baseline=TRAINING | weights | {"frontend": "logmel", "augmentation": "none"},
    )
    study = create_study(database, config, fingerprint(home))
    worker = crew.start()
    assert worker.wait() == 1
    last_line = worker.log.read_text().strip().split("\n")[-1]
    assert "3 trials failed, allowed are max_failed_trials = 2" in last_line
    assert f"weights file {path} can't be read" in last_line
    assert [trial.state for trial in study.trials()] == [TrialState.FAIL] * 3


def test_host_that_cannot_write_gives_its_trial_back(study: Study, crew: Crew) -> None:
    """It leaves with 1 and the reason, and the trial is free at once for a better host."""
    runs = crew.home.root / "runs"
    runs.touch()
    worker = crew.start()
    assert worker.wait() == 1
    assert "this host can't train" in worker.log.read_text()
    assert [trial.state for trial in study.trials()] == [TrialState.RUNNING]
    assert holders(study) == []
    runs.unlink()
    assert crew.start().wait() == 0
    assert_whole(study)


def assert_given_back(worker: WorkerProcess, study: Study, reason: str) -> None:
    """Require that the worker left with 1 and the reason, and the trial is free and unharmed."""
    assert worker.wait() == 1
    last_line = worker.log.read_text().strip().split("\n")[-1]
    assert f"this host can't train: {reason}" in last_line
    assert [trial.state for trial in study.trials()] == [TrialState.RUNNING]
    assert holders(study) == []


def test_host_without_the_weights_gives_its_trial_back(
    database: Database, home: Home, crew: Crew, tmp_path: Path
) -> None:
    """However few trials may fail; a host that has them trains it."""
    path = tmp_path / "start.safetensors"
    training = TRAINING | {"weights": str(path)}
    baseline = training | {"frontend": "logmel", "augmentation": "none"}
    config = tiny_study(training=training, baseline=baseline, max_failed_trials=0)
    study = create_study(database, config, fingerprint(home))
    assert_given_back(crew.start(), study, "weights must be")
    save_file(timm.create_model("test_resnet", in_chans=1, num_classes=2).state_dict(), path)
    assert crew.start().wait() == 0
    assert_whole(study)


SHORT_OF_MEMORY = """
import sys
from pathlib import Path
import timm
from timm.models import register_model
from search.cli import main

flag = Path(sys.argv[1])

@register_model
def large(pretrained=False, **options):
    if flag.exists():
        raise MemoryError
    return timm.create_model("test_resnet", **options)

sys.argv = ["melsearch", "worker", "s"]
main()
"""


def test_host_short_of_memory_gives_its_trial_back(
    database: Database, home: Home, crew: Crew, tmp_path: Path
) -> None:
    """Python itself had none left for what the training asked of it."""
    large = TRAINING | {"backbone": "large"}
    baseline = large | {"frontend": "logmel", "augmentation": "none", "weights": "none"}
    study = create_study(database, tiny_study(training=large, baseline=baseline), fingerprint(home))
    flag = tmp_path / "flag"
    flag.touch()
    assert_given_back(crew.run(["-c", SHORT_OF_MEMORY, str(flag)]), study, "MemoryError")
    flag.unlink()
    assert crew.run(["-c", SHORT_OF_MEMORY, str(flag)]).wait() == 0
    assert_whole(study)


LONG_STEP = """
import hashlib, logging, os, sys
from pathlib import Path
import timm
from timm.models import register_model
from timm.models.resnet import ResNet
from search.home import connect, find_home
from search.logs import configure_logging
from search.signals import stop_on_signals
from search.vacancy import SlotWish
from search.study import open_study
from search.worker import run_worker

flag = Path(sys.argv[1])

class Slow(ResNet):
    def forward(self, x):
        if flag.exists():
            logging.getLogger("search").info("long_step")
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes, out of Python's reach
        return super().forward(x)

@register_model
def very_slow(pretrained=False, **options):
    backbone = timm.create_model("test_resnet", **options)
    backbone.__class__ = Slow
    return backbone

configure_logging()
stop = stop_on_signals()
home = find_home()
with connect(home) as database:
    run_worker(open_study(database, "s"), home, SlotWish("cpu"), stop)
"""


def test_step_longer_than_patience_is_cut_off(
    database: Database, home: Home, crew: Crew, tmp_path: Path
) -> None:
    """SIGTERM in a step of minutes: exit 0 within 10 s, lease given back, checkpoint untouched."""
    slow = TRAINING | {"backbone": "very_slow"}
    baseline = slow | {"frontend": "logmel", "augmentation": "none", "weights": "none"}
    study = create_study(database, tiny_study(training=slow, baseline=baseline), fingerprint(home))
    flag = tmp_path / "flag"
    worker = crew.run(["-c", LONG_STEP, str(flag)])
    worker.wait_for_epoch(2)
    flag.touch()
    worker.wait_for("long_step")
    before = checkpoints(crew.home)
    worker.send(signal.SIGTERM)
    assert worker.wait(10.0) == 0
    assert worker.events("worker_cut_off")
    assert checkpoints(crew.home) == before
    assert holders(study) == []
    assert read_status(study)["workers"] == []
    assert read_status(study)["counts"]["running"] == 1
    flag.unlink()
    other = crew.run(["-c", LONG_STEP, str(flag)])
    assert other.wait() == 0
    assert_resumed(other)
    assert_whole(study)
