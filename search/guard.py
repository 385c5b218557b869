"""What stands between a network and the dashboard: small WSGI wrappers, each with one duty.

optuna-dashboard asks nobody who he is: whoever reaches it may delete studies. These wrappers ask.
"""

import base64
import binascii
import hmac
import json
import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

if TYPE_CHECKING:
    from _typeshed import OptExcInfo

HEALTH_PATH = "/healthz"
"""Answers `ok` to everybody, so that a container's health can be checked without the password."""

_READING = ("GET", "HEAD", "OPTIONS")
_CHALLENGE = ("WWW-Authenticate", 'Basic realm="melsearch", charset="UTF-8"')
_PAGE_POLICY = "; ".join(
    [
        "default-src 'none'",
        # Without, the parallel coordinates say that the browser has no WebGL.
        "script-src 'self' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",  # its styles are made by its script
        "img-src 'self' data: blob:",  # so are images of its plots
        "media-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^][:@/?#\\]+))(?::[0-9]+)?")
_ARTIFACT_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NEVER = ("access-control-allow-origin",)  # optuna-dashboard hands artifacts to every site

Headers = list[tuple[str, str]]


def read_only(application: WSGIApplication) -> WSGIApplication:
    """Refuse every request that could change a study."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in _READING:
            return application(environ, start_response)
        reason = "this dashboard is read-only; `melsearch dashboard --writable` is not"
        return refuse(environ, start_response, "403 Forbidden", reason)

    return guarded


def require_password(application: WSGIApplication, password: str) -> WSGIApplication:
    """Let in who sends the password by HTTP Basic authentication, under any user name."""
    expected = password.encode("utf-8", "surrogateescape")

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        sent = _sent_password(environ.get("HTTP_AUTHORIZATION", ""))
        if sent is not None and hmac.compare_digest(sent, expected):
            return application(environ, start_response)
        reason = "the dashboard's password is required, under any user name"
        return refuse(environ, start_response, "401 Unauthorized", reason, _CHALLENGE)

    return guarded


def require_loopback_host(application: WSGIApplication) -> WSGIApplication:
    """Refuse requests to any name that isn't loopback's own.

    A site whose name was made to point to 127.0.0.1 (DNS rebinding) could read everything else.
    """

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "")
        if _is_loopback_name(_host_name(host)):
            return application(environ, start_response)
        reason = (
            f"without a password the dashboard answers to localhost and 127.0.0.1 only, got "
            f"{host!r}; set MELSEARCH_DASHBOARD_PASSWORD, or let the proxy send Host: localhost"
        )
        return refuse(environ, start_response, "403 Forbidden", reason)

    return guarded


def refuse_other_sites(application: WSGIApplication) -> WSGIApplication:
    """Refuse changes that another site's page sends through the browser of somebody who may."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in _READING or _is_own_page(environ):
            return application(environ, start_response)
        reason = "a change must come from the dashboard's own page, not from another site"
        return refuse(environ, start_response, "403 Forbidden", reason)

    return guarded


def answer_health(application: WSGIApplication) -> WSGIApplication:
    """Answer `ok` at the health path, and nothing more: it stands before the password."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == HEALTH_PATH and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return answer(environ, start_response, "200 OK", b"ok\n", "text/plain; charset=utf-8")
        return application(environ, start_response)

    return guarded


def local_redirects(application: WSGIApplication) -> WSGIApplication:
    """Redirect to paths below the prefix, not to the host and scheme that a proxy has hidden."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        prefix = environ["SCRIPT_NAME"]
        return application(environ, _changing(start_response, lambda sent: _local(prefix, sent)))

    return guarded


def security_headers(application: WSGIApplication) -> WSGIApplication:
    """Tell browsers what no answer may be used for."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]  # now: the application may change it
        return application(environ, _changing(start_response, lambda sent: _secured(path, sent)))

    return guarded


def refuse(
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: str,
    reason: str,
    *headers: tuple[str, str],
) -> Iterable[bytes]:
    """Answer with a reason, in the form in which the page shows it to people."""
    body = json.dumps({"reason": reason}).encode()
    return answer(environ, start_response, status, body, "application/json", *headers)


def answer(
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: str,
    body: bytes,
    content_type: str,
    *headers: tuple[str, str],
) -> Iterable[bytes]:
    """Send a whole answer; to HEAD without its body."""
    length = ("Content-Length", str(len(body)))
    start_response(status, [("Content-Type", content_type), length, *headers])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _sent_password(authorization: str) -> bytes | None:
    """Return the password in a header of Basic authentication; None if there is none in it."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        credentials = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return None
    _, colon, password = credentials.partition(b":")
    return password if colon else None


def _host_name(header: str) -> str:
    """Return the name in a Host header, without its port; empty if the header is none."""
    found = _HOST.fullmatch(header)
    return (found[1] or found[2]).lower() if found else ""


def _is_loopback_name(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_own_page(environ: WSGIEnvironment) -> bool:
    """Tell whether a request is our page's, or no browser's at all.

    Browsers say so by Sec-Fetch-Site, which outlives proxies that rename the host; over plain HTTP
    to another host by Origin alone.
    """
    if site := environ.get("HTTP_SEC_FETCH_SITE"):
        return site in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or urlsplit(origin).netloc == environ.get("HTTP_HOST")


def _changing(start_response: StartResponse, change: Callable[[Headers], Headers]) -> StartResponse:
    """Return a `start_response` that changes the headers which it is given."""

    def start(
        status: str, headers: Headers, exc_info: "OptExcInfo | None" = None, /
    ) -> Callable[[bytes], object]:
        return start_response(status, change(headers), exc_info)

    return start


def _local(prefix: str, headers: Headers) -> Headers:
    return [
        (name, prefix + urlsplit(value).path if name.lower() == "location" else value)
        for name, value in headers
    ]


def _secured(path: str, headers: Headers) -> Headers:
    ours = dict(_ALWAYS)
    if path.startswith("/artifacts/"):  # whoever may upload must not run scripts in our name
        ours["Content-Security-Policy"] = _ARTIFACT_POLICY
        ours["Content-Disposition"] = "attachment"
    else:
        ours["Content-Security-Policy"] = _PAGE_POLICY
    replaced = {name.lower() for name in ours}.union(_NEVER)
    kept = [(name, value) for name, value in headers if name.lower() not in replaced]
    if not any(name.lower() == "cache-control" for name, _ in kept):
        caching = "no-cache" if path.startswith("/static/") else "no-store"
        kept.append(("Cache-Control", caching))
    return kept + list(ours.items())
