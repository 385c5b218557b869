"""`sample-data` killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.waiting import wait_until

SCRIPT = """
import multiprocessing, os, signal, sys
from pathlib import Path
from trainer.sample_data import render_sample_data

def stop(done, total):
    if done == 2:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    render_sample_data(Path(sys.argv[1]), num_clips=64, seed=0, num_processes=2, progress=stop)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_rendering_leaves_no_process(tmp_path: Path) -> None:
    """After SIGKILL the processes end by themselves, and there is no half set."""
    script = tmp_path / "render.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "set")],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    children = [int(pid) for pid in done.stdout.split()]
    assert len(children) == 2
    wait_until(lambda: not any(is_alive(pid) for pid in children))
    assert not (tmp_path / "set").exists()
