"""`prepare` killed, interrupted, started twice, and on a full disk."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.disk import remount, small_disk
from tests.media import small_clips, write_dataset
from trainer.cache import WaveformCache, prepare
from trainer.errors import DataError
from trainer.partial import CLIPS_PER_COMMIT

NUM_CLIPS = 160
STOP_AT = 2 * CLIPS_PER_COMMIT + 8
DEADLINE_SECONDS = 60.0
SCRIPT = """
import multiprocessing, os, resource, signal, sys, time
from pathlib import Path
from trainer.prepare import prepare

def stop(done, total):
    if action and done == {stop_at}:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        if action == "interrupt":
            os.killpg(0, signal.SIGINT)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:  # the system may hand it to another thread first
                os.sched_yield()
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__mp_main__" and sys.argv[3] == "stillborn":
    os._exit(1)
if __name__ == "__main__":
    data, root, action = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    if action == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
        action = ""
    report = prepare(
        Path(data), Path(root), num_processes=2, notebook_images=False, progress=stop
    )
    print(report.reused, report.data_fingerprint)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "data", small_clips(NUM_CLIPS // 4))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def start(data: Path, root: Path, action: str = "") -> subprocess.Popen[str]:
    """Start a prepare in a session of its own."""
    script = root.parent / "script.py"
    script.write_text(SCRIPT.format(stop_at=STOP_AT))
    return subprocess.Popen(
        [sys.executable, str(script), str(data), str(root), action],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what it wrote to both outputs; what doesn't end is killed with all its processes."""
    try:
        return process.communicate(timeout=DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise


def go_on(data: Path, root: Path) -> list[int]:
    """Prepare to the end, check the result, and return how many clips were done at each call."""
    seen: list[int] = []
    report = prepare(
        data,
        root,
        num_processes=2,
        notebook_images=False,
        progress=lambda done, _: seen.append(done),
    )
    elsewhere = prepare(data, root.with_name("whole"), num_processes=2, notebook_images=False)
    got, whole = WaveformCache.open(report.cache), WaveformCache.open(elsewhere.cache)
    assert got.clips == whole.clips
    assert read_samples(got) == read_samples(whole)
    assert got.data_fingerprint == whole.data_fingerprint
    assert sorted(path.suffix for path in root.iterdir()) == ["", ".lock"]
    return seen


def read_samples(cache: WaveformCache) -> bytes:
    """Return the samples of all clips."""
    clips = cache.all_clips()
    return b"".join(clips.waveform(index).tobytes() for index in range(len(clips)))


def wait_for_end(pids: list[int]) -> None:
    """Wait until none of the processes is left."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still alive: {pids}"
        os.sched_yield()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_prepare_leaves_no_process_and_goes_on_where_it_was(data: Path, root: Path) -> None:
    """After SIGKILL the committed clips aren't decoded again, and the cache is the same."""
    process = start(data, root, "kill")
    told, _ = end_of(process)
    assert process.returncode == -signal.SIGKILL
    children = [int(pid) for pid in told.split()]
    assert len(children) == 2
    wait_for_end(children)
    assert go_on(data, root)[0] == 2 * CLIPS_PER_COMMIT + 1


def test_interrupted_prepare_ends_quietly_and_loses_nothing(data: Path, root: Path) -> None:
    """Ctrl-C reaches the whole group, yet only the caller hears of it, and no clip is lost."""
    process = start(data, root, "interrupt")
    told, complaint = end_of(process)
    assert complaint.count("Traceback") == 1
    assert complaint.rstrip().endswith("KeyboardInterrupt")
    wait_for_end([int(pid) for pid in told.split()])
    assert go_on(data, root)[0] == STOP_AT + 1


def test_two_prepares_at_once_make_one_cache(data: Path, root: Path) -> None:
    """The second waits for the first and finds its work done."""
    processes = [start(data, root) for _ in range(2)]
    told = sorted(end_of(process)[0].split() for process in processes)
    assert [reused for reused, _ in told] == ["False", "True"]
    assert told[0][1] == told[1][1]
    assert go_on(data, root) == []


def test_file_size_limit_is_told_as_no_space_and_keeps_the_work(data: Path, root: Path) -> None:
    """A write that the system cuts off is a clear refusal, and the next prepare goes on."""
    process = start(data, root, "limit")
    _, complaint = end_of(process)
    assert process.returncode == 1
    assert "DataError: no space left for the cache" in complaint
    assert go_on(data, root)[0] > CLIPS_PER_COMMIT


def test_decoders_that_cannot_start_are_told(data: Path, root: Path) -> None:
    """A machine on which no decoder lives isn't mistaken for data of which every clip kills one."""
    process = start(data, root, "stillborn")
    _, complaint = end_of(process)
    assert process.returncode == 1
    assert "DataError: decoder processes end at their start" in complaint
    assert go_on(data, root)[0] == 1


def test_full_disk_is_told_and_the_work_kept(data: Path, tmp_path: Path) -> None:
    """On a full disk nothing half-written stays, and with more room the next prepare goes on."""
    with small_disk(tmp_path / "disk", "600k") as disk:  # for about half of the clips
        root = disk / "cache"
        with pytest.raises(DataError, match=r"no space left for the cache .*decoded is kept"):
            prepare(data, root, num_processes=2, notebook_images=False)
        assert remount(disk, "size=9m")
        assert go_on(data, root)[0] > 1
