"""The dashboard's page under a path prefix."""

import gzip
import shutil
from functools import cache
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna_dashboard
import pytest

from search.errors import DashboardConfigError, DashboardError
from search.prefix import parse_prefix, under_prefix

PACKAGE = Path(optuna_dashboard.__file__).parent


@cache
def dashboard() -> WSGIApplication:
    """The dashboard under /lab/optuna, whose other parts answer `rest`."""

    def rest(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [b"rest"]

    return under_prefix(rest, "/lab/optuna", PACKAGE)


def ask(path: str, method: str = "GET", **environ: str) -> tuple[str, dict[str, str], bytes]:
    """Send one request to the dashboard."""
    request: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method, **environ}
    started: list[Any] = []
    answer = dashboard()(request, lambda *parts: started.append(parts))  # type: ignore[arg-type,return-value]
    body = b"".join(answer)
    ((status, headers),) = started
    return status, dict(headers), body


@pytest.mark.parametrize(
    ("text", "prefix"),
    [("", ""), ("/", ""), ("/optuna", "/optuna"), ("/a.b/c~d_e-1/", "/a.b/c~d_e-1")],
)
def test_prefix_has_no_last_slash(text: str, prefix: str) -> None:
    """A slash at the end is allowed and means nothing."""
    assert parse_prefix(text) == prefix


@pytest.mark.parametrize(
    "text",
    ["optuna", "//evil.example", "/a//b", "/../x", "/./x", "/a b", '/"+alert(1)+"', "/ü", "/a?b",
     "https://host/optuna", "/a\n", "/${x}"],
)  # fmt: skip
def test_prefix_of_other_letters_is_refused(text: str) -> None:
    """What goes into the page's script must be harmless there."""
    with pytest.raises(DashboardConfigError, match="such as /optuna, got"):
        parse_prefix(text)


@pytest.mark.parametrize("text", ["/dashboard", "/api/optuna", "/healthz", "/static"])
def test_prefix_that_the_dashboard_has_itself_is_refused(text: str) -> None:
    """Where a proxy strips the prefix, nobody could tell such paths apart."""
    with pytest.raises(DashboardConfigError, match="take another"):
        parse_prefix(text)


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/", "/dashboard/studies/1/trials"])
def test_page_asks_for_its_script_below_the_prefix(path: str) -> None:
    """Every page of the dashboard is one file, whose script tells them apart."""
    status, headers, body = ask(path)
    assert (status, headers["Content-Type"]) == ("200 OK", "text/html; charset=utf-8")
    assert b'src="/lab/optuna/static/bundle.js"' in body
    assert b'src="/static' not in body


def test_script_asks_below_the_prefix() -> None:
    """It is sent packed to who can unpack it, and not at all to who has it."""
    path = "/static/bundle.js"
    _, headers, plain = ask(path)
    assert b'"/lab/optuna/dashboard"' in plain
    assert b"`/csv/${" not in plain
    assert headers["Content-Length"] == str(len(plain))
    _, packed_headers, packed = ask(path, HTTP_ACCEPT_ENCODING="gzip, br")
    assert packed_headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == plain
    status, _, body = ask(path, HTTP_IF_NONE_MATCH=headers["ETag"])
    assert (status, body) == ("304 Not Modified", b"")
    assert ask(path, "HEAD")[2] == b""


@pytest.mark.parametrize(
    ("path", "method"), [("/api/studies", "GET"), ("/dashboards", "GET"), ("/dashboard", "POST")]
)
def test_all_the_rest_is_the_dashboards(path: str, method: str) -> None:
    """What has no addresses in it isn't touched."""
    assert ask(path, method)[2] == b"rest"


@pytest.mark.parametrize("name", ["index.html", "public/bundle.js"])
def test_other_version_of_the_page_is_refused(tmp_path: Path, name: str) -> None:
    """A version whose addresses are others fails at the start, not in the browser."""
    for each in ("index.html", "public/bundle.js"):
        (tmp_path / each).parent.mkdir(exist_ok=True)
        shutil.copy(PACKAGE / each, tmp_path / each)
    text = (tmp_path / name).read_text().replace('"/static/', '"/assets/').replace("/csv/", "/c/")
    (tmp_path / name).write_text(text)
    with pytest.raises(DashboardError, match=r"requirements.lock.*got 0"):
        under_prefix(lambda *_: [], "/optuna", tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DashboardError, match=name):
        under_prefix(lambda *_: [], "/optuna", tmp_path)
