"""The embedded PostgreSQL: who starts it, who stops it, and what interruptions leave."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from storage.database import Database, parse_url
from storage.embedded import embedded_server, ensure_running, is_initialised
from storage.errors import EmbeddedServerError
from tests.waiting import wait_until

USER = """
import sys
from pathlib import Path
from storage.embedded import embedded_server

with embedded_server(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


class User:
    """Another process that uses the server until it is told to leave."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        """Wait until it has the server; return the URL that it was given."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def leave(self) -> int:
        """Let it come to its end; return its exit code."""
        self.process.communicate(timeout=60)
        return self.process.returncode

    def kill(self) -> None:
        """Kill it by SIGKILL."""
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a server, made and emptied by the test."""
    with tempfile.TemporaryDirectory(prefix="melsearch-test-") as root:
        yield Path(root) / "postgres"


@pytest.fixture
def users() -> Iterator[ExitStack]:
    """What ends the other processes, whatever happens in the test."""
    with ExitStack() as stack:
        yield stack


def start_user(folder: Path, users: ExitStack) -> User:
    """Start another process that uses the server in `folder`."""
    user = User(folder)
    users.callback(user.kill)
    return user


def server_pid(folder: Path) -> int | None:
    """Return the running server's process id."""
    try:
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    return pid


def answer(url: str, query: str = "select 1") -> object:
    """Ask the server something."""
    database = Database(parse_url(url, {}))
    try:
        with database.engine.begin() as connection:
            return connection.execute(sa.text(query)).scalar()
    finally:
        database.close()


def test_one_server_for_all_and_the_last_user_stops_it(folder: Path, users: ExitStack) -> None:
    """A second process uses the first one's server, and it runs until both have left."""
    with embedded_server(folder) as url:
        pid = server_pid(folder)
        assert pid
        other = start_user(folder, users)
        assert other.url() == url
        assert server_pid(folder) == pid
    assert server_pid(folder) == pid, "the other one still uses it"
    assert answer(url) == 1
    assert other.leave() == 0
    assert server_pid(folder) is None


def test_data_outlive_the_server(folder: Path) -> None:
    """What was written is there when the server is started again."""
    database_of = "select count(*) from pg_tables where tablename = 'kept'"
    with embedded_server(folder) as url:
        database = Database(parse_url(url, {}))
        with database.engine.begin() as connection:
            connection.execute(sa.text("create table kept (x int)"))
        database.close()
    with embedded_server(folder) as url:
        assert answer(url, database_of) == 1


def test_killed_user_keeps_no_server_alive(folder: Path, users: ExitStack) -> None:
    """A user that died without a word counts no longer: the next one stops the server."""
    killed = start_user(folder, users)
    url = killed.url()
    pid = server_pid(folder)
    killed.kill()
    assert server_pid(folder) == pid, "nobody was there to stop it"
    with embedded_server(folder) as again:
        assert again == url
        assert answer(again) == 1
    assert server_pid(folder) is None


def test_server_that_died_is_started_again(folder: Path, users: ExitStack) -> None:
    """A crashed server is no error to who leaves it, and recovers with the next user."""
    with embedded_server(folder):
        pid = server_pid(folder)
        assert pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server_pid(folder) is None)
    with embedded_server(folder) as url:
        assert answer(url) == 1


def test_only_its_owner_can_enter_the_socket_folder(folder: Path) -> None:
    """Without a password the file system must keep others out."""
    with embedded_server(folder) as url:
        sockets = Path(url.partition("host=")[2])
        assert (sockets / ".s.PGSQL.5432").exists()
        assert sockets.stat().st_mode & 0o077 == 0
        assert answer(url, "show listen_addresses") == ""


def test_long_path_gets_a_short_socket_folder(folder: Path) -> None:
    """A socket's path has 108 bytes at most, the folder's may have more."""
    deep = folder / ("d" * 60) / ("e" * 60)
    with embedded_server(deep) as url:
        sockets = Path(url.partition("host=")[2])
        assert answer(url) == 1
    shutil.rmtree(sockets)
    assert len(os.fsencode(sockets)) < 90
    assert is_initialised(deep)


def test_interrupted_set_up_begins_again(folder: Path, users: ExitStack) -> None:
    """A set-up that was killed half-way leaves nothing that the next one trips over."""
    first = start_user(folder, users)
    wait_until(lambda: list(folder.glob("data.new*/base")))
    first.process.kill()  # its initdb may go on for a while
    assert not is_initialised(folder)
    with embedded_server(folder) as url:
        assert answer(url) == 1
    first.process.communicate(timeout=60)
    with embedded_server(folder) as url:
        assert answer(url) == 1
    assert list(folder.glob("data.new*")) == []


def test_broken_data_are_explained_with_the_servers_last_words(folder: Path) -> None:
    """The message says which folder and what the server wrote last."""
    with embedded_server(folder):
        pass
    (folder / "data" / "postgresql.conf").write_text("no_such_setting = 1\n")
    with (
        pytest.raises(EmbeddedServerError, match=r"can't be started.*Its log ends: .*FATAL") as e,
        embedded_server(folder),
    ):
        pytest.fail("a server with a broken configuration has started")
    assert str(folder) in str(e.value)


def test_folder_that_is_a_file_is_explained(folder: Path) -> None:
    """A path that can't become a folder is a message, not a traceback."""
    folder.write_text("")
    with pytest.raises(EmbeddedServerError, match=r"can't be started"), embedded_server(folder):
        pytest.fail("a file was taken for a folder")


def test_server_that_died_under_its_users_is_started_again(folder: Path) -> None:
    """Whoever goes on using it can have it back under the same URL, and stops it at the end."""
    with embedded_server(folder) as url:
        pid = server_pid(folder)
        assert pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server_pid(folder) is None)
        ensure_running(folder)
        assert answer(url) == 1
    assert server_pid(folder) is None


def test_folder_may_have_any_name(folder: Path) -> None:
    """What a shell, a URL or libpq reads as its own is a name like any other."""
    odd = folder.parent / "R&D it's 50%20, $HOME `x` c++"
    with embedded_server(odd) as url:
        assert answer(url) == 1
    assert server_pid(odd) is None


def test_root_leaves_the_data_of_another_user_alone(folder: Path) -> None:
    """`sudo melsearch` neither takes a user's database over nor starts it."""
    if os.geteuid() != 0:
        return  # only root could do harm here
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "PG_VERSION").write_text("18")
    os.chown(folder, 65534, -1)
    os.chown(folder / "data", 65534, -1)
    with (
        pytest.raises(EmbeddedServerError, match="run this as nobody, not as root"),
        embedded_server(folder),
    ):
        pytest.fail("it must not start")
    assert folder.stat().st_uid == 65534


def test_server_of_another_host_is_not_started_twice(folder: Path) -> None:
    """Two servers on one folder would destroy it; a clean stop lets another host go on."""
    with embedded_server(folder):
        (folder / "server.host").write_text("elsewhere")
        with (
            pytest.raises(EmbeddedServerError, match="served by the host elsewhere"),
            embedded_server(folder),
        ):
            pytest.fail("it must not start")
    with embedded_server(folder) as url:
        assert answer(url) == 1


def test_folder_that_is_open_to_others_is_refused(folder: Path) -> None:
    """Who can reach the socket is let in: the message says how to close the folder."""
    with embedded_server(folder):
        pass
    folder.chmod(0o755)
    with (
        pytest.raises(EmbeddedServerError, match=f"chmod 700 {folder}"),
        embedded_server(folder),
    ):
        pytest.fail("it must not start")


def test_set_up_without_space_says_so(folder: Path, users: ExitStack) -> None:
    """initdb's own words are shown."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
    result = subprocess.run(
        [sys.executable, "-c", limit + USER, str(folder)], capture_output=True, text=True, input=""
    )
    assert result.returncode == 1
    assert "EmbeddedServerError" in result.stderr
    assert "initdb failed" in result.stderr
