"""The guard's wrappers, each around an application that only says that it was reached."""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.util import setup_testing_defaults

import pytest

from search.dashboard import Access, guard
from search.guard import (
    answer_health,
    local_redirects,
    read_only,
    refuse_other_sites,
    require_loopback_host,
    require_password,
    security_headers,
)

PASSWORD = "pässword: with a colon"
REACHED = b"reached"
SECURING = {
    "Content-Security-Policy", "X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy",
    "Cross-Origin-Opener-Policy", "Cross-Origin-Resource-Policy", "Cache-Control",
}  # fmt: skip
CHANGING = ("POST", "PUT", "PATCH", "DELETE", "post", "PROPFIND")


@dataclass(frozen=True)
class Answer:
    """What a browser would get."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        """Why it was refused."""
        return str(json.loads(self.body)["reason"])


def ask(
    application: WSGIApplication,
    path: str = "/",
    method: str = "GET",
    **environ: str,
) -> Answer:
    """Send one request to an application."""
    request: WSGIEnvironment = {"PATH_INFO": path, "REQUEST_METHOD": method, **environ}
    setup_testing_defaults(request)
    request["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "")
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> object:
        started.append((status, headers))
        return None

    body = b"".join(application(request, start))  # type: ignore[arg-type]
    ((status, headers),) = started
    assert len(dict(headers)) == len(headers), headers
    return Answer(int(status[:3]), dict(headers), body)


def reached(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """An application that says that it was reached."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [REACHED]


def saying(headers: Mapping[str, str]) -> WSGIApplication:
    """An application that answers with these headers."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("302 Found", list(headers.items()))
        return [b""]

    return application


def basic(password: str, user: str = "anybody") -> str:
    """Return the header that a browser sends."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# --- who may change something


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_reading_is_let_through(method: str) -> None:
    """Who only reads reaches the dashboard."""
    assert ask(read_only(reached), method=method).status == 200


@pytest.mark.parametrize("method", CHANGING)
def test_changes_are_refused_with_what_allows_them(method: str) -> None:
    """Every other method is refused, known or not."""
    answer = ask(read_only(reached), "/api/studies/1", method)
    assert answer.status == 403
    assert "--writable" in answer.reason


@pytest.mark.parametrize(
    ("site", "status"),
    [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)],
)
def test_changes_from_another_site_are_refused(site: str, status: int) -> None:
    """What the browser says of the request's origin decides, whatever else the request says."""
    environ = {"HTTP_SEC_FETCH_SITE": site, "HTTP_HOST": "a", "HTTP_ORIGIN": "https://public"}
    assert ask(refuse_other_sites(reached), method="POST", **environ).status == status
    assert ask(refuse_other_sites(reached), method="GET", **environ).status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://box:8080", 200),
        ("http://box", 403),
        ("http://box:8080.evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_origin_decides_where_the_browser_says_nothing_else(origin: str, status: int) -> None:
    """Over plain HTTP to another host browsers send no Sec-Fetch-Site."""
    environ = {"HTTP_ORIGIN": origin, "HTTP_HOST": "box:8080"}
    assert ask(refuse_other_sites(reached), method="DELETE", **environ).status == status


def test_changes_by_programs_are_let_through() -> None:
    """What is no browser can't be misled by a site."""
    assert ask(refuse_other_sites(reached), method="POST").status == 200


# --- the password


@pytest.mark.parametrize("user", ["anybody", "", "müller"])
def test_right_password_is_let_in_under_any_name(user: str) -> None:
    """The user name says nothing; scheme names have no case."""
    sent = basic(PASSWORD, user)
    for header in (sent, sent.replace("Basic", "basic"), sent.replace(" ", "  ")):
        assert ask(require_password(reached, PASSWORD), HTTP_AUTHORIZATION=header).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic YQ",
        "Basic " + base64.b64encode(PASSWORD.encode()).decode().replace("=", "") + "=====",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"a:\xff\xfe").decode(),
        "Basic \xe4\xf6\xfc",
        "Bearer " + base64.b64encode(f"a:{PASSWORD}".encode()).decode(),
        basic(""),
        basic(PASSWORD + " "),
        basic(PASSWORD[:-1]),
        basic(PASSWORD.upper()),
        PASSWORD,
    ],
)
def test_anything_else_is_asked_for_the_password(header: str) -> None:
    """A wrong password and a header of nonsense get the same answer."""
    answer = ask(require_password(reached, PASSWORD), HTTP_AUTHORIZATION=header)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="melsearch", charset="UTF-8"'
    assert PASSWORD not in answer.reason


# --- the host's name


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8080", "LOCALHOST", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:80"],
)
def test_names_of_loopback_are_answered(host: str) -> None:
    """Whoever asks for this machine by its own names is at it."""
    assert ask(require_loopback_host(reached), HTTP_HOST=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[::1",
     "evil.example:80@127.0.0.1:x", "192.0.2.1", "evil.example#@localhost"],
)  # fmt: skip
def test_other_names_are_refused(host: str) -> None:
    """A site's name that was made to point to 127.0.0.1 gets nothing."""
    answer = ask(require_loopback_host(reached), HTTP_HOST=host)
    assert answer.status == 403
    assert "MELSEARCH_DASHBOARD_PASSWORD" in answer.reason


# --- what every answer says


def test_every_answer_is_secured() -> None:
    """Whatever the dashboard says of these things itself is replaced."""
    theirs = {
        "content-security-policy": "default-src *",
        "Access-Control-Allow-Origin": "*",
        "X-Frame-Options": "ALLOWALL",
    }
    answer = ask(security_headers(saying(theirs)), "/dashboard")
    assert set(answer.headers) == SECURING
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Frame-Options"] == "DENY"


def test_artifacts_are_files_and_no_pages() -> None:
    """An uploaded page must not run in the dashboard's name."""
    answer = ask(security_headers(saying({"Content-Type": "text/html"})), "/artifacts/1/ab")
    assert answer.headers["Content-Disposition"] == "attachment"
    assert "sandbox" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/api/studies", {}, "no-store"),
        ("/static/bundle.js", {}, "no-cache"),
        ("/api/studies", {"cache-control": "private"}, None),
    ],
)
def test_nothing_of_a_study_is_stored(
    path: str, headers: dict[str, str], expected: str | None
) -> None:
    """Caches keep the script alone, and ask whether it is still the newest."""
    answer = ask(security_headers(saying(headers)), path)
    assert answer.headers.get("Cache-Control") == expected


def test_redirects_stay_below_the_prefix() -> None:
    """Neither the host nor the scheme that a proxy has hidden is shown."""
    application = local_redirects(saying({"Location": "http://10.0.0.1:8080/dashboard"}))
    answer = ask(application, SCRIPT_NAME="/optuna")
    assert answer.headers["Location"] == "/optuna/dashboard"


# --- all together


def test_health_says_only_ok() -> None:
    """It is answered to everybody, from any host, and to no other method."""
    guarded = guard(reached, Access("127.0.0.1", 0, password=PASSWORD))
    answer = ask(guarded, "/healthz", HTTP_HOST="anything")
    assert (answer.status, answer.body) == (200, b"ok\n")
    assert set(answer.headers) >= SECURING
    assert ask(guarded, "/healthz", "HEAD").body == b""
    assert ask(guarded, "/healthz", "POST").status == 401
    assert ask(answer_health(reached), "/healthz/../api").body == REACHED


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", *CHANGING])
@pytest.mark.parametrize(
    "path", ["/", "/api/studies", "/artifacts/1/ab", "/healthz/", "/static/bundle.js", "//healthz"]
)
def test_nothing_is_reached_without_the_password(path: str, method: str) -> None:
    """Every way but the health path asks for it first, and is secured all the same."""
    access = Access("0.0.0.0", 0, writable=True, password=PASSWORD)  # noqa: S104
    answer = ask(guard(reached, access), path, method)
    assert answer.status == 401
    assert set(answer.headers) >= SECURING


@pytest.mark.parametrize(
    ("access", "environ", "status"),
    [
        (Access("127.0.0.1", 0), {"HTTP_HOST": "localhost"}, 403),
        (Access("127.0.0.1", 0, writable=True), {"HTTP_HOST": "localhost"}, 200),
        (Access("127.0.0.1", 0, writable=True), {"HTTP_HOST": "evil.example"}, 403),
        (Access("::1", 0, True, password=PASSWORD), {"HTTP_AUTHORIZATION": basic(PASSWORD)}, 200),
        (Access("::1", 0, password=PASSWORD), {"HTTP_AUTHORIZATION": basic(PASSWORD)}, 403),
        (
            Access("::1", 0, True, password=PASSWORD),
            {"HTTP_AUTHORIZATION": basic(PASSWORD), "HTTP_SEC_FETCH_SITE": "cross-site"},
            403,
        ),
    ],
)
def test_changes_need_all_that_was_asked_for(
    access: Access, environ: dict[str, str], status: int
) -> None:
    """--writable opens changes to who has the password, or is on this machine, and no further."""
    answer = ask(guard(reached, access), "/api/studies/1", "DELETE", **environ)
    assert answer.status == status
    assert set(answer.headers) >= SECURING


def test_password_is_not_shown() -> None:
    """Nobody reads it in a log or a traceback."""
    assert PASSWORD not in repr(Access("127.0.0.1", 0, password=PASSWORD))
