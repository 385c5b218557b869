"""The dashboard on a real PostgreSQL: who is let in, and what may be changed."""

import base64
import json
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import sqlalchemy as sa

from search.home import Home
from search.study import Study
from storage.database import Database, parse_url
from storage.uploads import Uploads
from tests.command import Result, run
from tests.dashboards import VALUES, ask, make_study, serving

PASSWORD = "not-to-be-seen"
CONFIG_WRONG = 2
CHANGES = [
    ("DELETE", "/api/studies/1"),
    ("POST", "/api/studies"),
    ("POST", "/api/studies/1/rename"),
    ("POST", "/api/trials/1/tell"),
    ("POST", "/api/trials/1/user-attrs"),
    ("PUT", "/api/studies/1/note"),
    ("POST", "/api/artifacts/1/1"),
    ("DELETE", "/api/artifacts/1/1/ab"),
    ("POST", "/incompatible-rdb-schema"),
]


@pytest.fixture
def study(database: Database) -> Study:
    """A study of complete trials."""
    return make_study(database)


@pytest.fixture
def url(tmp_path: Path, database_url: str, study: Study) -> Iterator[str]:
    """The address of a dashboard as it is by default."""
    with serving(tmp_path, database_url) as said:
        yield said["url"]


def expect_refusal(result: Result, *words: str) -> None:
    """The command found the configuration wrong, and said all these words."""
    assert result.code == CONFIG_WRONG, result
    for word in words:
        assert word in result.err, result.err


def basic(password: str) -> dict[str, str]:
    """Return the header of Basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(f"me:{password}".encode()).decode()}


# --- how it is started


@pytest.mark.parametrize(
    ("host", "environ"),
    [("0.0.0.0", {}), ("::", {"MELSEARCH_DASHBOARD_PASSWORD": ""})],  # noqa: S104
)
def test_others_are_let_in_with_a_password_only(
    tmp_path: Path, host: str, environ: dict[str, str]
) -> None:
    """Without one, or with an empty one, it listens on loopback alone; no database is asked."""
    result = run(tmp_path, "dashboard", "--host", host, "--port", "0", environ=environ)
    expect_refusal(result, f"got {host}", "set MELSEARCH_DASHBOARD_PASSWORD", "127.0.0.1")


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "No such file"), (b"", "an empty one"), (b"\n", "an empty one"), (b"\xff", "utf-8")],
    ids=["missing", "empty", "newline", "not-utf-8"],
)
def test_password_file_that_has_none_is_told(
    tmp_path: Path, content: bytes | None, word: str
) -> None:
    """A password that was meant to be there is never left out in silence."""
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    environ = {"MELSEARCH_DASHBOARD_PASSWORD_FILE": str(secret)}
    result = run(tmp_path, "dashboard", "--port", "0", environ=environ)
    expect_refusal(result, "MELSEARCH_DASHBOARD_PASSWORD_FILE", str(secret), word)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prefix", "optuna"], ["--prefix must be a path", "'optuna'"]),
        (["--prefix", "/api"], ["--prefix must not begin", "take another"]),
        (["--host", "no such host"], ["--host must be an address", "'no such host'"]),
    ],
)
def test_wrong_option_is_told(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    """An option that can't be is named with what it may be."""
    expect_refusal(run(tmp_path, "dashboard", *arguments), *words)


# --- as it is by default


def test_everything_is_read_and_nothing_changed(url: str, study: Study) -> None:
    """The routes that read answer; those that write are refused, and the study stays as it is."""
    before = study.trials()
    for path in ("/dashboard", "/api/meta", "/api/studies", "/static/bundle.js", "/favicon.ico"):
        answer, _ = ask(url, path)
        assert answer.status == 200, path
    answer, body = ask(url, "/api/studies/1")
    assert (answer.status, len(json.loads(body)["trials"])) == (200, len(VALUES))
    assert answer.getheader("Cache-Control") == "no-store"
    for method, path in CHANGES:
        answer, body = ask(url, path, method, {"study_name": "x"})
        assert (answer.status, "read-only" in json.loads(body)["reason"]) == (403, True), path
        assert answer.getheader("X-Frame-Options") == "DENY"
    assert study.trials() == before


def test_what_is_not_there_is_not_found(url: str) -> None:
    """Neither a slip in an address nor an attempt to leave a folder is a fault of the server."""
    for path in (
        "/nothing",
        "/artifacts/1/ab",
        "/artifacts/99/ab",
        "/artifacts/1/99/ab",
        "/artifacts/1/..%2f..%2fstudy.toml",
        "/artifacts/1/%2fetc%2fpasswd",
        "/static/..%2findex.html",
        "/static/..%2f..%2f_app.py",
    ):
        answer, _ = ask(url, path)
        assert answer.status in (403, 404), path
        assert answer.getheader("X-Content-Type-Options") == "nosniff"


def test_other_names_of_this_machine_are_refused(url: str) -> None:
    """A site whose name was made to point to loopback can't read what is there."""
    assert ask(url, "/api/studies", headers={"Host": "evil.example"})[0].status == 403
    assert ask(url, "/api/studies", headers={"Host": "localhost"})[0].status == 200
    assert ask(url, "/healthz", headers={"Host": "evil.example"})[1] == b"ok\n"


def test_outage_is_told_and_outlived(url: str, database: Database, database_url: str) -> None:
    """Without the database answers are errors; with it again they are right."""
    name = parse_url(database_url, {}).database
    admin = sa.create_engine(
        parse_url(database_url.replace(f"/{name}?", "/postgres?"), {}), isolation_level="AUTOCOMMIT"
    )

    def allow_connections(allowed: bool) -> None:
        with admin.connect() as connection:
            connection.execute(sa.text(f"alter database {name} allow_connections {allowed}"))
            if not allowed:
                kill = (
                    "select pg_terminate_backend(pid) from pg_stat_activity where datname = :name"
                )
                connection.execute(sa.text(kill), {"name": name})

    allow_connections(False)
    assert ask(url, "/api/studies")[0].status == 503
    answer, body = ask(url, "/csv/1")
    assert (answer.status, "database" in json.loads(body)["reason"]) == (503, True)
    assert ask(url, "/healthz")[0].status == 200
    allow_connections(True)
    assert ask(url, "/api/studies")[0].status == 200
    assert ask(url, "/csv/1")[0].status == 200
    admin.dispose()


# --- with a password


@pytest.mark.parametrize("source", ["variable", "file"])
def test_password_opens_it(tmp_path: Path, database_url: str, study: Study, source: str) -> None:
    """Listening on every address it asks for the password, and doesn't log it."""
    environ = {"MELSEARCH_DASHBOARD_PASSWORD": PASSWORD}
    if source == "file":
        (tmp_path / "secret").write_text(PASSWORD + "\n")
        environ = {"MELSEARCH_DASHBOARD_PASSWORD_FILE": str(tmp_path / "secret")}
    with serving(tmp_path, database_url, "--host", "0.0.0.0", environ=environ) as said:  # noqa: S104
        assert (said["read_only"], said["password"]) == (True, True)
        url = said["url"]
        assert ask(url, "/healthz")[1] == b"ok\n"
        assert ask(url, "/api/studies")[0].status == 401
        assert ask(url, "/api/studies", headers=basic("wrong"))[0].status == 401
        assert ask(url, "/api/studies", headers=basic(PASSWORD))[0].status == 200
        anywhere = {"Host": "box.example", **basic(PASSWORD)}
        assert ask(url, "/api/studies", headers=anywhere)[0].status == 200
        assert ask(url, "/api/studies/1", "DELETE", headers=basic(PASSWORD))[0].status == 403
    assert PASSWORD not in (tmp_path / "dashboard.log").read_text()


# --- with --writable


def test_writable_changes_what_the_page_changes(
    tmp_path: Path, database_url: str, study: Study
) -> None:
    """A note and an upload are written, but not for another site's page."""
    with serving(tmp_path, database_url, "--writable") as said:
        assert (said["read_only"], said["password"]) == (False, False)
        url, note = said["url"], {"version": 1, "body": "a note"}
        evil = {"Origin": "https://evil.example"}
        assert ask(url, "/api/studies/1/note", "PUT", note, evil)[0].status == 403
        assert ask(url, "/api/studies/1/note", "PUT", note)[0].status == 204
        page = "data:text/html;base64," + base64.b64encode(b"<script>alert(1)</script>").decode()
        upload = {"file": page, "filename": "page.html"}
        answer, body = ask(url, "/api/artifacts/1", "POST", upload)
        assert answer.status == 201, body
        artifact_id = json.loads(body)["artifact_id"]
        answer, body = ask(url, f"/artifacts/1/{artifact_id}")
        assert (answer.status, body) == (200, b"<script>alert(1)</script>")
        assert answer.getheader("Content-Disposition") == "attachment"
        assert "sandbox" in str(answer.getheader("Content-Security-Policy"))
        assert answer.getheader("Access-Control-Allow-Origin") is None
    assert (uploads_folder(tmp_path) / artifact_id).is_file()


def test_artifacts_are_confined_to_their_folder(
    tmp_path: Path, database_url: str, study: Study
) -> None:
    """A link out of the folder is not found, though the study knows an artifact of that id."""
    (tmp_path / "secret").write_text("secret")
    Uploads(uploads_folder(tmp_path)).write("ab", BytesIO(b"sound"))
    (uploads_folder(tmp_path) / "cd").symlink_to(tmp_path / "secret")
    for artifact_id in ("ab", "cd", str(uuid.UUID(int=0))):
        know_artifact(study, artifact_id)
    with serving(tmp_path, database_url) as said:
        answer, body = ask(said["url"], "/artifacts/1/ab")
        assert (answer.status, body) == (200, b"sound")
        for artifact_id in ("cd", str(uuid.UUID(int=0))):
            answer, body = ask(said["url"], f"/artifacts/1/{artifact_id}")
            assert (answer.status, b"secret" in body) == (404, False)


def uploads_folder(folder: Path) -> Path:
    """The folder of artifacts where MELSEARCH_HOME is not set."""
    return Home(folder / ".melsearch").artifacts.uploads


def know_artifact(study: Study, artifact_id: str) -> None:
    """Let the study have an artifact of that id, as Optuna notes it."""
    meta = {"artifact_id": artifact_id, "filename": "x", "mimetype": "audio/wav", "encoding": None}
    study.optuna._storage.set_study_system_attr(
        study.optuna._study_id, f"artifacts:{artifact_id}", json.dumps(meta)
    )


# --- under a prefix


def test_prefix_may_be_stripped_by_the_proxy_or_not(
    tmp_path: Path, database_url: str, study: Study
) -> None:
    """Both ways lead to the same answers, and redirects to the prefix."""
    environ = {"MELSEARCH_DASHBOARD_PREFIX": "/optuna"}
    with serving(tmp_path, database_url, environ=environ) as said:
        assert said["url"].endswith("/optuna/")
        for prefix in ("", "/optuna"):
            answer, _ = ask(said["url"], prefix + "/")
            assert (answer.status, answer.getheader("Location")) == (302, "/optuna/dashboard")
            assert ask(said["url"], prefix + "/dashboard/studies/1")[0].status == 200
            assert ask(said["url"], prefix + "/api/studies")[0].status == 200
            assert ask(said["url"], prefix + "/healthz")[1] == b"ok\n"
            assert ask(said["url"], prefix + "/api/studies/1", "DELETE")[0].status == 403
