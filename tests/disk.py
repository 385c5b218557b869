"""Disks without space: a limit for this process, which needs no device, and small file systems."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def full_disk(size_bytes: int = 1000) -> Iterator[None]:
    """Let this process write no file beyond the size, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of that size at the folder; skips where that is not allowed."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "melsearch-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> bool:
    """Mount a small file system with other options; False as long as they can't be had."""
    command = ["mount", "-o", f"remount,{options}", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def fill(folder: Path) -> Path:
    """Leave nothing free of the file system; return the file that takes its space."""
    filler = folder / "filler"
    for size_bytes in (65_536, 512):
        with suppress(OSError), filler.open("ab", buffering=0) as file:
            while file.write(bytes(size_bytes)):
                pass
    return filler
