"""`up`: a whole search on one machine, its workers as processes, its progress on the screen."""

import logging
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

from optuna.trial import TrialState
from rich.live import Live
from rich.panel import Panel

from search.console import make_console
from search.cores import CPU_WORKERS, count_cores, share_of
from search.errors import GpuLostError, WorkerFailedError
from search.home import Home, revive
from search.status import read_status, render_status
from search.study import Study
from storage.errors import StorageError
from storage.outage import persist
from trainer.gpus import list_gpus, select_gpus

logger = logging.getLogger(__name__)

_STOP_SECONDS = 8.0  # a worker cuts itself off before
_MAX_RESTARTS = 20
_HEALTHY_SECONDS = 600.0  # a worker that lived so long has all its restarts again
_LOG_EVERY_SECONDS = 15.0


class WorkerProcess:
    """One worker in a process of its own, started again when something kills it."""

    def __init__(self, command: Sequence[str], environ: dict[str, str], log: Path) -> None:
        self._command = command
        self._environ = environ
        self.log = log
        self._num_restarts = 0
        self._has_complained = False
        self._process = self._start()
        self._started = time.monotonic()

    def _start(self) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches `up` alone, which then stops the workers.
            return subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Return the exit code if the worker has left for good.

        One that was killed, or lost its GPU, is started again.
        """
        code = self._process.poll()
        if time.monotonic() - self._started > _HEALTHY_SECONDS:
            self._num_restarts = 0
        may_go_on = code is not None and (code < 0 or code == GpuLostError.EXIT_CODE)
        if not may_go_on or self._num_restarts >= _MAX_RESTARTS:
            self._complain(code)
            return code
        self._num_restarts += 1
        context = {"code": code, "restarts": self._num_restarts, "log": str(self.log)}
        event = "worker_lost_gpu" if code == GpuLostError.EXIT_CODE else "worker_killed"
        logger.warning(event, extra=context)
        self._process, self._started = self._start(), time.monotonic()
        return None

    @property
    def is_misconfigured(self) -> bool:
        """Whether it has left at its first start, because of its configuration: so would others."""
        return self._process.poll() == 2 and self._num_restarts == 0

    def _complain(self, code: int | None) -> None:
        """Say at once, and once, that a worker failed: the others may go on for hours."""
        if code and not self._has_complained:
            self._has_complained = True
            logger.warning("worker_failed", extra={"code": code, "log": str(self.log)})

    def terminate(self) -> None:
        """Ask the worker to give its trial back and leave."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait_or_kill(self, deadline: float) -> None:
        """Wait for the worker until `deadline` (monotonic); then kill it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """Return the end of the worker's log."""
        return "\n".join(self.log.read_text(errors="replace").strip().split("\n")[-3:])


def search_here(
    study: Study,
    home: Home,
    num_workers: int,
    port: int,
    stop: Event,
    options: Sequence[str] = (),
) -> bool:
    """Run the study's workers and its dashboard until the budget is spent; False if stopped before.

    `options` are those of every worker.

    Raises:
        WorkerFailedError: the workers have left, and the budget is not spent.
    """
    if is_spent(study):
        return True
    with dashboard_process(port) as address:
        logger.info("study_started", extra={"study": study.name, "dashboard": address})
        return run_workers(study, home, num_workers, stop, options)


def run_workers(
    study: Study, home: Home, num_workers: int, stop: Event, options: Sequence[str] = ()
) -> bool:
    """Run the study's workers until its budget is spent; False if `stop` came before.

    Raises:
        WorkerFailedError: the workers have left, and the budget is not spent.
    """
    environ = _environment(num_workers)
    workers = [
        WorkerProcess(
            _own_command("worker", study.name, *options),
            environ,
            home.artifacts.study_folder(study.name) / f"worker-{number}.log",
        )
        for number in range(num_workers)
    ]
    try:
        with _view() as show:
            while not stop.is_set():
                codes = [worker.poll() for worker in workers]
                spent = _show_status(study, home, show)
                hopeless = any(worker.is_misconfigured for worker in workers)
                if spent or hopeless or None not in codes:
                    break
                stop.wait(1.0)
    finally:
        _stop_all(workers)
    if stop.is_set():
        return False
    if not persist(lambda: _look_again(study, home), stop):
        codes_of = zip(workers, codes, strict=True)
        first = next((worker for worker, code in codes_of if code), workers[0])
        raise WorkerFailedError(f"a worker failed; {first.log} ends:\n{first.last_words()}")
    return True


def _look_again(study: Study, home: Home) -> bool:
    """Tell whether it is spent, also if the server died with the last worker."""
    revive(home)
    return is_spent(study)


def is_spent(study: Study) -> bool:
    """Tell whether as many trials have ended as the budget allows."""
    with study.database.connection():
        return len(study.trials(TrialState.COMPLETE, TrialState.PRUNED)) >= study.budget()


@contextmanager
def dashboard_process(port: int) -> Iterator[str]:
    """Run the dashboard in a process of its own while the block runs; yields its address."""
    port = _free_port(port)
    process = subprocess.Popen(
        _own_command("dashboard", "--port", str(port)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.kill()  # it only reads, and has nothing to put in order
        process.wait()


def _own_command(*arguments: str) -> list[str]:
    """Return a command of ours that leaves when this process is gone, even by SIGKILL."""
    return [sys.executable, "-m", "search.cli", *arguments, "--parent", str(os.getpid())]


def _environment(num_workers: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Share cores and GPUs out, so that no worker waits; what the user has set wins.

    The number of workers is told, not counted by each of them: a training's last bits depend on
    the number of threads, and so on who was there first.

    Raises:
        DeviceError: MELSEARCH_DEVICE names none of this host's.
    """
    threads = str(share_of(count_cores(), num_workers))  # of NumPy, which asks nobody else
    shares = {
        CPU_WORKERS: str(num_workers),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    gpus = select_gpus(environ.get("MELSEARCH_DEVICE") or "auto", list_gpus(environ))
    if gpus:
        per_gpu = math.ceil(num_workers / len(gpus))
        shares |= {"MELSEARCH_DEVICE": "cuda", "MELSEARCH_WORKERS_PER_GPU": str(per_gpu)}
    return shares | {name: value for name, value in environ.items() if value or name not in shares}


def _stop_all(workers: Sequence[WorkerProcess]) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait_or_kill(deadline)


def _show_status(study: Study, home: Home, show: Callable[[dict[str, Any]], None]) -> bool:
    """Show how the study stands; return whether its budget is spent.

    The workers wait an outage of the database out, and so does this.
    """
    with suppress(StorageError), study.database.connection():
        show(read_status(study))
        return is_spent(study)
    with suppress(StorageError):  # the next look tries again
        revive(home)
    return False


@contextmanager
def _view() -> Iterator[Callable[[dict[str, Any]], None]]:
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield _log_status()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda status: live.update(_panel(status), refresh=True)


def _panel(status: dict[str, Any]) -> Panel:
    body = render_status(status, no_worker="the workers are starting")
    # Not over the whole width: the terminal echoes ^C behind it, which must not wrap.
    return Panel(body, title="melsearch", subtitle="Ctrl-C stops; `up` goes on", expand=False)


def _log_status() -> Callable[[dict[str, Any]], None]:
    last_counts: dict[str, int] = {}
    last_time = 0.0

    def show(status: dict[str, Any]) -> None:
        nonlocal last_counts, last_time
        now = time.monotonic()
        if status["counts"] == last_counts and now - last_time < _LOG_EVERY_SECONDS:
            return
        last_counts, last_time = status["counts"], now
        best, baseline = status["best"], status["baseline"]
        logger.info(
            "study_status",
            extra={
                **status["counts"],
                "budget": status["budget"],
                "best": best and best["value"],
                "baseline": baseline and baseline["value"],
                "eta_seconds": status["eta_seconds"],
            },
        )

    return show


def _free_port(wanted: int) -> int:
    """Return the wanted port of loopback, or one that is free."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return wanted
