"""optuna-dashboard behind the guard: where it listens, who may read it, who may write."""

import logging
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna_dashboard
import waitress
from optuna.artifacts.exceptions import ArtifactNotFound

from search.errors import DashboardConfigError, DashboardError
from search.guard import (
    answer_health,
    local_redirects,
    read_only,
    refuse,
    refuse_other_sites,
    require_loopback_host,
    require_password,
    security_headers,
)
from search.prefix import parse_prefix, under_prefix
from storage.database import Database
from storage.errors import StorageError
from storage.trials import DurableStorage
from storage.uploads import Uploads

logger = logging.getLogger(__name__)

NUM_THREADS = 4
"""That answer at the same time, each with its connection to the database."""
_PASSWORD = "MELSEARCH_DASHBOARD_PASSWORD"  # noqa: S105
_PASSWORD_FILE = "MELSEARCH_DASHBOARD_PASSWORD_FILE"  # noqa: S105
_PACKAGE = Path(optuna_dashboard.__file__).parent
# A body is received before anybody is asked for the password.
_READING_BODY_BYTES = 64 * 1024
_WRITING_BODY_BYTES = 128 * 1024 * 1024  # optuna-dashboard's own limit


@dataclass(frozen=True)
class Access:
    """Where the dashboard listens, under which path, and who may do what."""

    address: str
    port: int
    writable: bool = False
    prefix: str = ""
    password: str | None = field(default=None, repr=False)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ip_address(self.address).is_loopback

    def url(self, port: int) -> str:
        """Return the address for a browser, with the port that it really got."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{port}{self.prefix}/"


def grant_access(
    host: str,
    port: int,
    *,
    writable: bool = False,
    prefix: str = "",
    environ: Mapping[str, str] = os.environ,
) -> Access:
    """Return the access that the command line and the environment ask for.

    Raises:
        DashboardConfigError: others can reach it and there is no password, or a part is wrong.
    """
    password = read_password(environ)
    access = Access(_resolve(host), port, writable, parse_prefix(prefix), password)
    if password is None and not access.is_loopback:
        raise DashboardConfigError(
            f"--host must be loopback (127.0.0.1, ::1, localhost) as long as there is no password, "
            f"got {host}; set {_PASSWORD} or {_PASSWORD_FILE}"
        )
    return access


def read_password(environ: Mapping[str, str]) -> str | None:
    """Return the dashboard's password from the environment or the file that it names, if any.

    Raises:
        DashboardConfigError: the file can't be read, or is empty.
    """
    if password := environ.get(_PASSWORD):
        return password
    if not (secret := environ.get(_PASSWORD_FILE)):
        return None
    try:
        password = Path(secret).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DashboardConfigError(
            f"{_PASSWORD_FILE} names {secret}, which can't be read: {error}"
        ) from error
    if not password:
        raise DashboardConfigError(
            f"{_PASSWORD_FILE} must name a file with the password, got an empty one: {secret}"
        )
    return password


def serve_dashboard(database: Database, artifacts: Path, access: Access) -> None:
    """Serve the dashboard until the process is told to stop.

    Raises:
        DashboardError: the port is taken, or optuna-dashboard is not as it is known.
        DatabaseUnavailableError, DatabaseRefusedError
    """
    dashboard = optuna_dashboard.wsgi(DurableStorage(database), artifact_store=Uploads(artifacts))
    dashboard.catchall = False  # its faults are ours to answer
    server = _listen(guard(answer_faults(dashboard, database), access), access)
    logger.info(
        "dashboard_listens",
        extra={
            "url": access.url(server.effective_port),
            "read_only": not access.writable,
            "password": access.password is not None,
        },
    )
    try:
        server.run()
    finally:
        server.close()


def guard(application: WSGIApplication, access: Access) -> WSGIApplication:
    """Wrap the dashboard so that it grants this access and no more; the last wrapper asks first.

    Raises:
        DashboardError: optuna-dashboard is not as it is known.
    """
    if access.prefix:
        application = under_prefix(application, access.prefix, _PACKAGE)
    application = local_redirects(application)
    application = refuse_other_sites(application) if access.writable else read_only(application)
    if access.password is not None:
        application = require_password(application, access.password)
    elif access.is_loopback:
        application = require_loopback_host(application)
    return security_headers(answer_health(application))


def answer_faults(application: WSGIApplication, database: Database) -> WSGIApplication:
    """Answer what optuna-dashboard leaves open: what isn't there, and an outage of the database."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # it takes it for granted
        try:
            with database.connection():  # an outage is told, not waited out
                return application(environ, start_response)
        except (ArtifactNotFound, KeyError):  # Optuna's KeyError: no such study or trial
            return refuse(environ, start_response, "404 Not Found", "there is no such thing")
        except StorageError as error:
            logger.warning("dashboard_failed", extra={"reason": str(error)})
            reason = "the database can't be reached; try again"
            return refuse(environ, start_response, "503 Service Unavailable", reason)

    return guarded


def _resolve(host: str) -> str:
    """Return the address of a host's name: what is judged is what is listened on."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise DashboardConfigError(
            f"--host must be an address or a name of this machine, got {host!r}: {error}"
        ) from error
    return str(found[0][4][0])


def _listen(application: WSGIApplication, access: Access) -> waitress.server.TcpWSGIServer:
    try:
        return waitress.create_server(
            application,
            host=access.address,
            port=access.port,
            threads=NUM_THREADS,
            url_prefix=access.prefix,  # strips it where the proxy did not
            ident=None,
            max_request_body_size=_WRITING_BODY_BYTES if access.writable else _READING_BODY_BYTES,
        )
    except OSError as error:
        where = f"{access.address}:{access.port}"
        raise DashboardError(
            f"the dashboard can't listen on {where}: {error.strerror}; "
            "name another --port, or an address of this machine as --host"
        ) from error
