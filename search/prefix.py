"""The dashboard's page under a path prefix, as a reverse proxy shows it.

optuna-dashboard has no setting for it: its page asks for /static, /api, /artifacts and /csv at the
root. These few addresses are changed in what is served, and if they aren't where they should be,
nothing is served at all.
"""

import gzip
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from search.errors import DashboardConfigError, DashboardError
from search.guard import HEALTH_PATH, answer

_FORM = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_OWN_PATHS = (
    "/api", "/artifacts", "/csv", "/dashboard", "/favicon.ico", HEALTH_PATH,
    "/incompatible-rdb-schema", "/static",
)  # fmt: skip
_PAGE, _BUNDLE = "index.html", "public/bundle.js"
_BUNDLE_PATH = "/static/bundle.js"


@dataclass(frozen=True)
class _Address:
    """An address in a file of optuna-dashboard, what it becomes, and how often it is there."""

    old: str
    new: str
    count: int = 1


_ADDRESSES = {
    _PAGE: [
        _Address(
            '<script defer src="/static/bundle.js">',
            '<link rel="icon" href="PREFIX/favicon.ico" />'
            '<script defer src="PREFIX/static/bundle.js">',
        ),
    ],
    _BUNDLE: [
        _Address("this.baseURL=(", 'this.baseURL="PREFIX"+('),  # of all calls of the API
        _Address('url_prefix:"/dashboard"', 'url_prefix:"PREFIX/dashboard"'),  # of all pages
        _Address("`/artifacts/${", "`PREFIX/artifacts/${", 2),
        _Address("}/artifacts/${", "}PREFIX/artifacts/${"),
        _Address("`/csv/${", "`PREFIX/csv/${", 2),
    ],
}


@dataclass(frozen=True)
class _Asset:
    """A changed file, ready to be sent."""

    body: bytes
    packed: bytes
    tag: str
    content_type: str


def parse_prefix(text: str) -> str:
    """Return a path prefix without its last slash; empty for none.

    Raises:
        DashboardConfigError: it can't be a prefix, or is a path that the dashboard itself has.
    """
    prefix = text.rstrip("/")
    if not prefix:
        return ""
    if not _FORM.fullmatch(prefix):
        raise DashboardConfigError(
            f"--prefix must be a path of letters, digits and . _ ~ - such as /optuna, got {text!r}"
        )
    first = "/" + prefix.split("/")[1]
    if first in _OWN_PATHS:  # where the proxy strips the prefix, nobody could tell them apart
        raise DashboardConfigError(
            f"--prefix must not begin with a path of the dashboard's own ({', '.join(_OWN_PATHS)})"
            f", got {text!r}; take another, such as /optuna"
        )
    return prefix


def under_prefix(application: WSGIApplication, prefix: str, package: Path) -> WSGIApplication:
    """Serve the page and the script of optuna-dashboard's `package` with addresses below `prefix`.

    Raises:
        DashboardError: they aren't as they are known.
    """
    page = _asset(_rewritten(package, _PAGE, prefix), "text/html; charset=utf-8")
    bundle = _asset(_rewritten(package, _BUNDLE, prefix), "text/javascript; charset=utf-8")

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"].rstrip("/")
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            if path == _BUNDLE_PATH:
                return _send(bundle, environ, start_response)
            if path == "/dashboard" or path.startswith("/dashboard/"):
                return _send(page, environ, start_response)
        return application(environ, start_response)

    return guarded


def _rewritten(package: Path, name: str, prefix: str) -> bytes:
    try:
        text = (package / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DashboardError(f"--prefix needs optuna-dashboard's {name}: {error}") from error
    for address in _ADDRESSES[name]:
        if (count := text.count(address.old)) != address.count:
            raise DashboardError(
                f"--prefix works with the optuna-dashboard of requirements.lock, whose {name} has "
                f"{address.count} x {address.old}, got {count}; install that, or leave --prefix out"
            )
        text = text.replace(address.old, address.new.replace("PREFIX", prefix))
    return text.encode()


def _asset(body: bytes, content_type: str) -> _Asset:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _Asset(body, gzip.compress(body, compresslevel=6, mtime=0), tag, content_type)


def _send(
    asset: _Asset, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    headers = [("ETag", asset.tag), ("Vary", "Accept-Encoding")]
    if environ.get("HTTP_IF_NONE_MATCH") == asset.tag:
        start_response("304 Not Modified", headers)
        return []
    body = asset.body
    if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
        body = asset.packed
        headers.append(("Content-Encoding", "gzip"))
    return answer(environ, start_response, "200 OK", body, asset.content_type, *headers)
