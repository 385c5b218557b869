"""The whole way, from videos to a submission, as a user goes it: one command after the other."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from storage.embedded import embedded_server
from tests.command import (
    TINY_STUDY,
    command,
    environment,
    limit_files,
    run,
    succeed,
    user_folder,
)
from tests.speech import read_rows, take_some
from tests.waiting import wait_until

STATUS_KEYS = {
    "study", "budget", "counts", "best", "baseline", "workers", "eta_seconds", "versions",
}  # fmt: skip
WORKER_KEYS = {"id", "trial", "epoch", "device", "seen_seconds_ago"}
STOP_SECONDS = 10.0
INTERRUPTED = 130

# --- on sample data


@pytest.fixture(scope="module")
def searched() -> Iterator[Path]:
    """A folder in which a search on sample data has ended; the database stays up all the while."""
    with user_folder() as folder:
        succeed(folder, "sample-data", "demo", "--clips", "12", "--seed", "1")
        (folder / "study.toml").write_text(TINY_STUDY)
        with embedded_server(folder / ".melsearch" / "postgres"):
            succeed(folder, *up("2"))
            yield folder


@pytest.fixture(scope="module")
def model(searched: Path) -> Path:
    """The model folder of the search's winner, trained on all the data."""
    assert "in best.toml" in succeed(searched, "export", "tiny")
    assert "model: model" in succeed(searched, "train", "best.toml", "--on", "all")
    return searched / "model"


def up(workers: str = "1") -> tuple[str, ...]:
    """Return the arguments of the main command, its dashboard on a free port."""
    return ("up", "study.toml", "--data", "demo", "--workers", workers, "--port", "0")


def read_status(folder: Path) -> dict[str, Any]:
    """Read the study's status as programs do."""
    status: dict[str, Any] = json.loads(succeed(folder, "status", "tiny", "--json"))
    return status


def test_check_shows_the_study_and_changes_nothing(searched: Path) -> None:
    """`create --check` prints space, budget, epochs and data, and leaves no file."""
    with user_folder() as folder:
        study, data = searched / "study.toml", searched / "demo"
        out = succeed(folder, "create", study, "--check", "--data", data)
        assert list(folder.iterdir()) == []
    for words in ("3 trials", "at most 6 in all", "lr", "0.001 to 0.01", "test_resnet", "8 clips"):
        assert words in out


def test_status_has_the_documented_keys(searched: Path) -> None:
    """`status --json` is one object: the budget is exact, the best not below the baseline."""
    status = read_status(searched)
    assert set(status) == STATUS_KEYS
    assert status["study"] == "tiny"
    assert status["budget"] == 3
    none = {"pruned": 0, "failed": 0, "running": 0, "waiting": 0}
    assert status["counts"] == {"complete": 3} | none
    assert set(status["best"]) == {"trial", "value", "params", "metrics"}
    assert set(status["baseline"]) == {"trial", "value"}
    assert status["best"]["value"] >= status["baseline"]["value"]
    assert {"accuracy", "auc", "eer"} <= set(status["best"]["metrics"])
    assert status["workers"] == []
    assert status["eta_seconds"] == 0
    assert list(status["versions"].values()) == [3]
    assert "3 of 3 ended" in succeed(searched, "status", "tiny")


def test_study_file_stands_for_its_name(searched: Path) -> None:
    """`status`, `export` and `worker` take it, whatever has become wrong in the rest of it."""
    (searched / "changed.toml").write_text('name = "tiny"\ntrails = 5\n')
    status = json.loads(succeed(searched, "status", "changed.toml", "--json"))
    assert status == read_status(searched)
    assert "in named.toml" in succeed(searched, "export", "changed.toml", "-o", "named.toml")
    succeed(searched, "worker", "changed.toml")


def test_prepare_again_decodes_nothing(searched: Path) -> None:
    """What `up` has prepared is found; the splits are counted all the same."""
    assert "cache unchanged" in succeed(searched, "prepare", "demo")


def test_model_folder_is_whole(model: Path) -> None:
    """`train` leaves weights, config, metrics and a card, and no checkpoints beside them."""
    files = {path.name for path in model.iterdir()}
    assert files == {"model.safetensors", "config.toml", "metrics.json", "clips.json", "README.md"}
    metrics = json.loads((model / "metrics.json").read_text())
    assert metrics["on"] == "all"
    assert metrics["calibration"]["after"]["nll"] <= metrics["calibration"]["before"]["nll"] + 1e-9
    assert not list(model.parent.glob(".model*"))


def test_prediction_has_the_rows_and_the_order_of_the_submission(model: Path) -> None:
    """Rows come as prediction.txt.csv has them; what can't be read gets the prior."""
    folder = model.parent
    rows = read_rows(folder / "demo" / "prediction.txt.csv")[::-1]
    shutil.copytree(folder / "demo", folder / "shuffled")
    names = [rows[0]["video_name"], "gone.mp4", *(row["video_name"] for row in rows[1:])]
    text = "video_name,y_pred\n" + "".join(f"{name},0.5\n" for name in names)
    (folder / "shuffled" / "prediction.txt.csv").write_text(text)
    out = succeed(folder, "predict", "model", "shuffled", "--tta", "3")
    written = read_rows(folder / "submission.csv")
    assert [row["video_name"] for row in written] == names
    assert all(0 <= float(row["y_pred"]) <= 1 for row in written)
    prior = json.loads((model / "metrics.json").read_text())["prior"]
    assert float(written[1]["y_pred"]) == pytest.approx(prior)
    assert "given the prior: gone.mp4: no such file" in out
    assert f"{len(names)} rows in submission.csv" in out


def test_evaluation_measures_the_model_on_a_labelled_set(model: Path) -> None:
    """The table, the page and the scores of each clip; a wrong place is told before the work."""
    folder = model.parent
    out = succeed(folder, "evaluate", "model", "demo", "--split", "all")
    assert "real clips" in out
    assert "knows 12 of 12 clips: 12 trained it, 2 chose it, 2 fitted its temperature" in out
    assert "page: evaluation/index.html" in out
    figures = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert sum(figures["num_clips"].values()) == 12
    assert f"{figures['metrics']['auc']['value']:.3f}" in out
    rows = read_rows(folder / "evaluation" / "scores.csv")
    assert len({(row["split"], row["video_name"]) for row in rows}) == 12
    result = run(folder, "evaluate", "model", "demo", "-o", "demo")
    assert (result.code, "would be lost" in result.err) == (1, True)


def test_full_disk_at_the_final_training_keeps_the_older_model(model: Path) -> None:
    """A training that can't write ends with a message, and the older model stays as it was."""
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    result = run(model.parent, "train", "best.toml", before=limit_files(50_000))
    assert result.code == 1, result.err
    assert "melsearch: " in result.err
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    shutil.rmtree(model.parent / ".model.training", ignore_errors=True)


def test_dashboard_is_read_only(searched: Path) -> None:
    """On loopback the dashboard answers whoever reads, and refuses whoever writes."""
    with started(searched, "dashboard", "--port", "0") as process:
        url = wait_until(lambda: find_event(process, "dashboard_listens").get("url"))
        address = urlsplit(url)
        assert (address.scheme, address.hostname) == ("http", "127.0.0.1")
        status, body = ask(address.port, "GET", "/api/studies")
        assert (status, b"tiny" in body) == (200, True)
        assert ask(address.port, "POST", "/api/studies")[0] == 403
        assert ask(address.port, "DELETE", "/api/studies/1")[0] == 403


def ask(port: int | None, method: str, path: str) -> tuple[int, bytes]:
    """Send one request to loopback; return the answer's status and body."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_spent_study_starts_no_worker_and_a_larger_budget_goes_on(searched: Path) -> None:
    """The same command again only reports; more trials in study.toml extend the budget."""
    logs = sorted((searched / ".melsearch" / "runs" / "tiny").glob("worker-*.log"))
    sizes = [log.stat().st_size for log in logs]
    assert "3 of 3 ended" in succeed(searched, *up("2"))
    assert [log.stat().st_size for log in logs] == sizes
    (searched / "study.toml").write_text(TINY_STUDY.replace("trials = 3", "trials = 4"))
    assert "4 of 4 ended" in succeed(searched, *up())
    status = read_status(searched)
    assert (status["budget"], status["counts"]["complete"]) == (4, 4)


# --- on real speech, with accidents


@pytest.fixture
def speech_desk(speech_data: Path) -> Iterator[Path]:
    """A folder with 24 clips of the real speech set, and a study of longer trials."""
    with user_folder() as folder:
        for split, num_clips in (("train", 16), ("val", 8)):
            take_some(speech_data, folder / "demo", split, num_clips)
        study = TINY_STUDY.replace("epochs = 2", "epochs = 12")
        (folder / "study.toml").write_text(study)
        yield folder


def test_search_outlives_ctrl_c_and_a_killed_worker(speech_desk: Path) -> None:
    """Ctrl-C ends all within 10 s and loses nothing; a killed worker is started again.

    In the end the budget is exact, the trial numbers have no gap, and the way goes on to a
    submission on real speech.
    """
    folder = speech_desk
    with started(folder, *up("2")) as process:
        wait_until(lambda: find_worker_event(folder, "epoch_ended"))
        processes = [process_of(process), *process_of(process).children(recursive=True)]
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_SECONDS) == INTERRUPTED, log_of(process)
        assert "Traceback" not in log_of(process)
        wait_until(lambda: not any(map(is_alive, processes)))
        assert not find_processes(folder)
    with started(folder, *up("2")) as process:
        victim = wait_until(lambda: find_training_worker(folder, process))
        victim.kill()
        wait_until(lambda: find_event(process, "worker_killed"))
        assert process.wait(150) == 0, log_of(process)
    assert not find_processes(folder)
    status = read_status(folder)
    ended = status["counts"]["complete"] + status["counts"]["pruned"]
    assert (ended, status["counts"]["failed"], status["budget"]) == (3, 0, 3)
    assert sorted(path.name for path in (folder / ".melsearch/runs/tiny").glob("trial-*")) == [
        "trial-00000",
        "trial-00001",
        "trial-00002",
    ]
    succeed(folder, "export", "tiny")
    succeed(folder, "train", "best.toml")
    assert "8 rows" in succeed(folder, "predict", "model", "demo")


def test_killed_up_leaves_no_process_behind(speech_desk: Path) -> None:
    """When `up` itself is killed, workers, dashboard and database leave by themselves."""
    with started(speech_desk, *up("1")) as process:
        wait_until(lambda: find_worker_event(speech_desk, "epoch_ended"))
        process.kill()
        process.wait()
        wait_until(lambda: not find_processes(speech_desk), seconds=20)


# --- processes


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, its standard error in a log; kill it and its children if they are left."""
    log = folder / "command.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(*arguments),
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    process.log = log  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        left = find_processes(folder)
        for other in left:
            with suppress(psutil.NoSuchProcess):  # it may end by itself meanwhile
                other.terminate()
        psutil.wait_procs(left, STOP_SECONDS)
        process.kill()
        process.wait()


def process_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """Return what psutil knows of a process."""
    return psutil.Process(process.pid)


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process still runs."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def find_processes(folder: Path) -> list[psutil.Process]:
    """Return the processes that work in this folder or in its database."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder.resolve()) and is_alive(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
    return found


def log_of(process: subprocess.Popen[bytes]) -> str:
    """Read what a started command has said so far."""
    text: str = process.log.read_text()  # type: ignore[attr-defined]
    return text


def find_event(process: subprocess.Popen[bytes], event: str) -> dict[str, Any]:
    """Return the first log entry of this event, or nothing."""
    assert process.poll() is None, log_of(process)
    return next(iter(entries_of(log_of(process), event)), {})


def entries_of(text: str, event: str) -> list[dict[str, Any]]:
    """Return the whole log entries of this event."""
    lines = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    return [entry for line in lines if (entry := json.loads(line))["event"] == event]


def find_worker_event(folder: Path, event: str) -> list[dict[str, Any]]:
    """Return the workers' log entries of this event."""
    logs = (folder / ".melsearch" / "runs" / "tiny").glob("worker-*.log")
    return [entry for log in logs for entry in entries_of(log.read_text(), event)]


def find_training_worker(folder: Path, process: subprocess.Popen[bytes]) -> psutil.Process | None:
    """Return a worker process of this `up` that is in mid-trial."""
    children = {str(child.pid): child for child in process_of(process).children()}
    for entry in find_worker_event(folder, "worker_joined"):
        pid = entry["worker"].split("-")[-2]
        if pid in children and find_worker_event(folder, "trial_taken_over"):
            return children[pid]
    return None
