"""A training that is killed by SIGKILL, again and again, ends as one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.waiting import wait_until
from trainer.checkpoint import load_checkpoint
from trainer.snapshots import list_checkpoints

NUM_KILLS = 8
LIVES = """
import json, os, sys
from pathlib import Path
import torch
from tests.clips import make_clips, tiny_config
from trainer.loop import fit
import librosa.filters  # takes long, else in each life

def live(folder):
    result = fit(
        tiny_config(epochs=5, dropout=0.3, augmentation="strong", ema_decay=0.9),
        make_clips(14, seed=1),
        make_clips(6, seed=2),
        folder=Path(folder),
        device=torch.device("cpu"),
        should_stop=lambda: print("step", flush=True),
    )
    for epoch in result.history:
        del epoch.metrics["seconds"], epoch.metrics["samples_per_second"]
    print(json.dumps([epoch.metrics for epoch in result.history]), flush=True)

for folder in sys.stdin:  # one import of torch for many lives
    pid = os.fork()
    if pid == 0:
        live(folder.strip())
        os._exit(0)
    print(pid, flush=True)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    print("ended", flush=True)
    sys.stdin.readline()  # until then the process' number belongs to nobody else
    os.waitpid(pid, 0)
"""


class Life:
    """One training in a process of its own."""

    def __init__(self, parent: "subprocess.Popen[str]", folder: Path) -> None:
        """Begin it, or go on with what lies in `folder`."""
        assert parent.stdout is not None
        self.parent, self.folder = parent, folder
        self._tell(str(folder))
        self.said = iter(parent.stdout.readline, "ended\n")
        self.pid = int(next(self.said))

    def kill_after(self, num_steps: int, *, in_write: bool) -> None:
        """Kill it some steps later, or in the first write after them; it may end before."""
        for _ in range(num_steps):
            next(self.said, None)
        if in_write:
            wait_until(lambda: half_written(self.folder) or self._has_ended(), poll_seconds=0.0)
        os.kill(self.pid, signal.SIGKILL)
        list(self.said)
        self._tell("")

    def metrics(self) -> list[dict[str, float]]:
        """Wait for its end; return its epochs' metrics."""
        metrics: list[dict[str, float]] = json.loads(list(self.said)[-1])
        self._tell("")
        return metrics

    def _tell(self, line: str) -> None:
        assert self.parent.stdin is not None
        self.parent.stdin.write(f"{line}\n")
        self.parent.stdin.flush()

    def _has_ended(self) -> bool:
        return ") Z " in Path(f"/proc/{self.pid}/stat").read_text()


def half_written(folder: Path) -> bool:
    """Tell whether a write was begun that hasn't ended."""
    return any(path.name.startswith(".") for path in folder.iterdir())


@pytest.fixture
def parent() -> "Iterator[subprocess.Popen[str]]":
    """The process that begins trainings; none of them outlives the test."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", LIVES], stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_killed_training_equals_one_that_never_was(
    parent: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    """Killed eight times at random moments, every second time in the midst of a write."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = Life(parent, whole).metrics()
    rng = random.Random(0)  # noqa: S311
    killed.mkdir()
    num_half_written = 0
    for number in range(NUM_KILLS):
        Life(parent, killed).kill_after(rng.randint(1, 8), in_write=number % 2 == 1)
        num_half_written += half_written(killed)
    assert num_half_written > 0
    assert Life(parent, killed).metrics() == expected
    one, other = (load_checkpoint(list_checkpoints(x)[-1])[0] for x in (whole, killed))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
