"""Run the command line as a user does: in a process of its own, from a folder of the user's."""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TINY_STUDY = """
name = "tiny"
trials = 3
[sampler]
name = "random"
[pruner]
name = "none"
[lease]
ttl_seconds = 6
renew_seconds = 1
[training]
epochs = 2
n_mels = 32
window_seconds = 1.0
batch_size = 8
backbone = "test_resnet"
[space.lr]
type = "float"
low = 1e-3
high = 1e-2
log = true
[baseline]
backbone = "test_resnet"
frontend = "logmel"
weights = "none"
epochs = 2
"""
"""A study that trains in moments."""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


@contextmanager
def user_folder() -> Iterator[Path]:
    """Yield a fresh folder for a database of its own.

    Not below pytest's, which the next pytest closes to all others, root's server user included.
    """
    with tempfile.TemporaryDirectory(prefix="melsearch-test-") as folder:
        yield Path(folder)


def command(*arguments: str | Path) -> list[str]:
    """Return the command line that runs melsearch."""
    return [sys.executable, "-m", "search.cli", *map(str, arguments)]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a user who has set nothing but `changes`."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MELSEARCH_")}
    return ours | {"OMP_NUM_THREADS": "1"} | dict(changes or {})


def run(
    folder: Path,
    *arguments: str | Path,
    environ: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Result:
    """Run a command in `folder` to its end; whatever it is, it must show no traceback."""
    process = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=180,
        preexec_fn=before,
    )
    out, err = process.stdout.decode(errors="replace"), process.stderr.decode(errors="replace")
    for text in (out, err):
        assert "Traceback" not in text, text
    return Result(process.returncode, out, err)


def succeed(folder: Path, *arguments: str | Path, environ: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed; return its standard output."""
    result = run(folder, *arguments, environ=environ)
    assert result.code == 0, result.err
    return result.out


def limit_files(size_bytes: int) -> Callable[[], None]:
    """Return what makes a process meet a full disk when a file of its grows beyond this size."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
