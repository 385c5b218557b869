"""How many of the host's cores are one worker's share."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from search.errors import ConfigError

CPU_WORKERS = "MELSEARCH_CPU_WORKERS"
"""How many workers share the cores, where somebody knows; else those that are there count."""


def count_cores() -> int:
    """Return how many cores this process may use, by affinity and by its container's quota."""
    import joblib  # here, as `up` needs no more of this file than a name

    return int(joblib.cpu_count())


def core_pool() -> str:
    """Name the cores that this process shares: the host's, by its boot, or a container's own.

    The hostname wouldn't do: each container has another one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        own = Path("/proc/self/ns/cgroup").stat().st_ino
    except OSError:  # a sandbox that shows neither
        return socket.gethostname()
    return boot if shares_host() else f"{boot}-{own}"


def shares_host() -> bool:
    """Tell whether this process may use all of the host's cores, and so shares them with others."""
    return count_cores() == os.cpu_count()


def share_of(num_cores: int, num_workers: int) -> int:
    """Return how many threads each of the workers may compute in."""
    return max(1, num_cores // max(1, num_workers))


def told_workers(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return MELSEARCH_CPU_WORKERS, None if it isn't set.

    Raises:
        ConfigError: it is no count.
    """
    text = environ.get(CPU_WORKERS)
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{CPU_WORKERS} must be a whole number of at least 1, got {text!r}")
    return int(text)
