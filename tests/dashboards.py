"""A dashboard as users start it, and a study for it to show."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from optuna.trial import TrialState

from search.claim import ClaimedTrial, Claims
from search.config import parse_study
from search.study import Study, create_study
from storage.database import Database
from storage.leases import Leases
from tests.command import command, environment
from tests.waiting import wait_until

VALUES = (0.55, 0.81, 0.62, 0.77, 0.9)
"""The values of the study's trials, all of them complete."""
_STUDY: dict[str, Any] = {
    "name": "shown",
    "trials": len(VALUES),
    "space": {
        "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "optimizer": {"type": "categorical", "choices": ["adam", "sgd"]},
    },
}


def make_study(database: Database) -> Study:
    """Make a study whose trials are complete, without the trainings."""
    study = create_study(database, parse_study(_STUDY, "study.toml"), "data")
    claims = Claims(study, Leases(database, 60), "test", "cpu")
    for value in VALUES:
        claimed = claims.claim()
        assert isinstance(claimed, ClaimedTrial)
        claims.report(claimed, [value / 2, value])
        claims.finish(claimed, TrialState.COMPLETE, value)
    return study


@contextmanager
def serving(
    folder: Path, database_url: str, *arguments: str, environ: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Run `melsearch dashboard` on a free port; yields what it said when it was there."""
    log = folder / "dashboard.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command("dashboard", "--port", "0", *arguments),
            cwd=folder,
            env=environment({"MELSEARCH_STORAGE": database_url, **(environ or {})}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield wait_until(lambda: _listening(process, log))
    finally:
        process.kill()
        process.wait()


def _listening(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any] | None:
    text = log.read_text()
    assert process.poll() is None, text
    entries = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return next((entry for entry in entries if entry["event"] == "dashboard_listens"), None)


def ask(
    url: str,
    path: str = "/",
    method: str = "GET",
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[HTTPResponse, bytes]:
    """Send one request, its path as it stands, to the host of `url`."""
    address = urlsplit(url)
    with closing(HTTPConnection(str(address.hostname), address.port, timeout=30)) as connection:
        sent = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, sent, {**kind, **(headers or {})})
        answer = connection.getresponse()
        return answer, answer.read()
