"""What the storm is made of: workers that are started again, a server and a volume that fail."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from benchmarks.chaos.crew import Crew
from benchmarks.chaos.server import Server, server_in
from benchmarks.chaos.volume import volume_in
from tests.command import user_folder
from tests.waiting import wait_until


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """A crew of one: it leaves with code 3 at its first start, with 0 at its second."""
    script = (
        "import sys, time; code = int(sys.argv[1]); time.sleep(60 * (code > 3)); sys.exit(code)"
    )
    codes = iter([3, 0, 9])
    crew = Crew(1, lambda worker, start: [sys.executable, "-c", script, str(next(codes))])
    crew.muster([dict(os.environ)], tmp_path / "logs")
    yield crew
    crew.end()


def has_left(crew: Crew) -> bool:
    """Let the crew's supervisor look once."""
    crew.supervise()
    return crew.has_left


def test_only_failure_starts_a_worker_again(crew: Crew) -> None:
    """As with Compose's `restart: on-failure`: 0 is for good, anything else is not."""
    wait_until(lambda: has_left(crew))
    assert [life.code for life in crew.lives] == [3, 0]
    assert all(life.ended is not None for life in crew.lives)


def test_killed_worker_comes_back_and_ends_with_the_crew(crew: Crew, tmp_path: Path) -> None:
    """Whatever is left at the end is killed and started no more."""
    wait_until(lambda: has_left(crew))
    crew.muster([dict(os.environ)], tmp_path / "more")
    assert crew.send(0, signal.SIGSTOP)
    assert not crew.has_left
    crew.end()
    assert crew.lives[-1].code == -signal.SIGKILL
    assert crew.has_left
    assert not crew.send(0, signal.SIGTERM)


def test_server_comes_back_after_each_way_to_die() -> None:
    """Stopped, crashed or with its postmaster killed: down, then up with what was committed."""
    with user_folder() as folder, server_in(folder / "postgres") as server:
        server.query("create table t (n int)")
        server.terminate_backends()
        for number, fell in enumerate(ways_to_die(server)):
            assert not fell.is_up
            with pytest.raises(psycopg2.OperationalError):
                wait_until(lambda: server.query("select pg_sleep(0.1)") and False)
            server.start()
            server.query("insert into t values (%s)", number)
        assert server.query("select n from t order by n") == [(0,), (1,), (2,)]


def ways_to_die(server: Server) -> Iterator[Server]:
    """Yield the server after each way to bring it down."""
    server.stop("fast")
    yield server
    server.stop("immediate")
    yield server
    server.kill()
    yield server


def test_full_volume_has_no_room_until_it_is_emptied(tmp_path: Path) -> None:
    """A write fails while it is full; where nothing can be mounted, it never is."""
    with volume_in(tmp_path / "volume") as volume:
        volume.fill()
        if volume.is_own:
            with pytest.raises(OSError, match="No space left"):
                (volume.folder / "file").write_bytes(b"x" * 10_000)
        volume.empty()
        (volume.folder / "file").write_bytes(b"x" * 10_000)
    assert not os.path.ismount(tmp_path / "volume")
