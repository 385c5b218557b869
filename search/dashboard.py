"""optuna-dashboard on loopback, read-only."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import waitress
from optuna_dashboard import wsgi

from search.errors import DashboardError
from storage.database import Database

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
_READING = ("GET", "HEAD", "OPTIONS")

StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


def serve_dashboard(database: Database, port: int) -> None:
    """Serve the dashboard on loopback until the process is told to stop.

    Raises:
        DashboardError: the port is taken.
        DatabaseUnavailableError, DatabaseRefusedError
    """
    application = read_only(wsgi(database.optuna_storage()))
    try:
        server = waitress.create_server(application, host=_HOST, port=port, threads=4)
    except OSError as error:
        raise DashboardError(
            f"the dashboard can't listen on {_HOST}:{port}: {error.strerror}; name another --port"
        ) from error
    logger.info("dashboard_listens", extra={"url": f"http://{_HOST}:{server.effective_port}/"})
    try:
        server.run()
    finally:
        server.close()


def read_only(application: Application) -> Application:
    """Refuse every request that could change the study: the dashboard asks nobody who he is."""

    def guarded(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in _READING:
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"This dashboard is read-only.\n"]

    return guarded
