"""Who is granted which access to the dashboard."""

from pathlib import Path

import pytest

from search.dashboard import Access, grant_access, read_password
from search.errors import DashboardConfigError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_loopback_needs_no_password(host: str) -> None:
    """Whoever is on this machine may read."""
    access = grant_access(host, 8080, environ={})
    assert access.is_loopback
    assert (access.password, access.writable) == (None, False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "::ffff:127.0.0.1"])  # noqa: S104
def test_others_need_one(host: str) -> None:
    """Any address but loopback demands a password, and with one it is granted."""
    with pytest.raises(DashboardConfigError, match="set MELSEARCH_DASHBOARD_PASSWORD"):
        grant_access(host, 8080, environ={"MELSEARCH_DASHBOARD_PASSWORD": ""})
    access = grant_access(host, 8080, environ={"MELSEARCH_DASHBOARD_PASSWORD": "secret"})
    assert access.password == "secret"


def test_password_comes_from_the_variable_else_from_the_file(tmp_path: Path) -> None:
    """The newline that editors put at a file's end is no part of it; blanks are."""
    (tmp_path / "secret").write_text(" from the file \r\n", newline="")
    environ = {"MELSEARCH_DASHBOARD_PASSWORD_FILE": str(tmp_path / "secret")}
    assert read_password({}) is None
    assert read_password(environ) == " from the file "
    assert read_password(environ | {"MELSEARCH_DASHBOARD_PASSWORD": "named"}) == "named"


@pytest.mark.parametrize(
    ("address", "prefix", "url"),
    [
        ("127.0.0.1", "", "http://127.0.0.1:80/"),
        ("::1", "/optuna", "http://[::1]:80/optuna/"),
    ],
)
def test_url_is_one_that_a_browser_takes(address: str, prefix: str, url: str) -> None:
    """It has the port that was free, and the prefix."""
    assert Access(address, 0, prefix=prefix).url(80) == url
