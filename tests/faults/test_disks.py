"""Disks that fill up, turn read-only or lose files under a worker that trains."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.home import Home
from search.study import Study
from tests.command import succeed
from tests.disk import fill, remount, small_disk
from tests.faults.workers import Crew, assert_whole, crew_of, holders
from tests.waiting import wait_until
from trainer.cache import list_caches
from trainer.index import WAVEFORM_FILE
from trainer.snapshots import list_checkpoints

SPOIL: dict[str, Callable[[Path], object]] = {
    "full": fill,
    "read-only": lambda disk: remount(disk, "ro"),
}
MEND: dict[str, Callable[[Path], object]] = {
    "full": lambda disk: (disk / "filler").unlink(),
    "read-only": lambda disk: remount(disk, "rw"),
}


def newest(folder: Path) -> str:
    """Return the name of the trial's newest checkpoint, which rises; empty if there is none."""
    return max((path.name for path in list_checkpoints(folder)), default="")


@pytest.mark.parametrize("fault", SPOIL)
def test_runs_that_cannot_be_written_end_no_trial(study: Study, crew: Crew, fault: str) -> None:
    """Each checkpoint that fails is warned of; with space again, the next one is written."""
    with small_disk(crew.home.root / "runs", "24m") as disk:
        folder = crew.home.artifacts.trial_folder("s", 0)
        worker = crew.start()
        worker.wait_for_epoch(2)
        wait_until(lambda: SPOIL[fault](disk) and worker.events("checkpoint_failed"))
        worker.train_on()
        before = newest(folder)
        MEND[fault](disk)
        wait_until(lambda: newest(folder) > before)
        assert worker.wait() == 0
        assert_whole(study)


def test_checkpoints_that_cannot_be_removed_end_no_worker(study: Study, crew: Crew) -> None:
    """The trial has been told by then; they stay, and the log says so."""
    with small_disk(crew.home.root / "runs", "24m") as disk:
        worker = crew.start()
        worker.wait_for_epoch(2)
        wait_until(lambda: remount(disk, "ro"))
        assert worker.wait() == 0
        assert worker.events("checkpoints_not_removed")
    assert_whole(study)


def test_removed_checkpoint_folder_is_made_again(study: Study, crew: Crew, tmp_path: Path) -> None:
    """Somebody cleans the runs up under a training: it goes on and writes the next checkpoint."""
    folder = crew.home.artifacts.trial_folder("s", 0)
    worker = crew.start()
    worker.wait_for_epoch(2)
    folder.rename(tmp_path / "removed")
    wait_until(lambda: newest(folder))
    assert worker.wait() == 0
    assert_whole(study)


def test_log_on_a_full_disk_ends_no_worker(
    study: Study, database_url: str, own_home: Home, tmp_path: Path
) -> None:
    """What can't be logged is not logged; the trial goes on to its end."""
    with (
        small_disk(tmp_path / "logs", "1m") as disk,
        crew_of(database_url, own_home, disk) as crew,
    ):
        worker = crew.start()
        worker.wait_for_epoch(2)
        fill(disk)
        size_bytes = worker.log.stat().st_size
        assert worker.wait() == 0
        assert worker.log.stat().st_size < size_bytes + 4096
    assert_whole(study)


def test_cache_cut_off_under_a_worker_is_told_and_mended(
    study: Study, crew: Crew, home: Home
) -> None:
    """Exit 1 with the fix, the trial is given back; after the fix, the next worker goes on."""
    crew.home.cache.unlink()
    shutil.copytree(home.cache, crew.home.cache)
    [(cache, _, _)] = list_caches(crew.home.cache)
    worker = crew.start()
    worker.wait_for_epoch(2)
    os.truncate(cache / WAVEFORM_FILE, 0)
    assert worker.wait() == 1
    told = worker.log.read_text()
    assert "Traceback" not in told
    assert "this host can't train" in told
    assert "is damaged, clip " in told
    assert "run `melsearch prepare DATA --verify --sample-rate 4000`, which mends it" in told
    assert study.trials()[0].state == TrialState.RUNNING
    assert holders(study) == []
    data, here = home.root.parent / "data", {"MELSEARCH_HOME": str(crew.home.root)}
    prepare = ("prepare", data, "--verify", "--sample-rate", "4000")
    assert "cache built" in succeed(crew.home.root, *prepare, environ=here)
    other = crew.start()
    assert other.wait() == 0
    assert other.events("training_resumed")
    assert_whole(study)
