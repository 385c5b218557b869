"""How many of the host's cores are one worker's share."""

import subprocess
import sys
from pathlib import Path

import pytest

from search.cores import CPU_WORKERS, core_pool, count_cores, share_of, told_workers
from search.errors import ConfigError

ROOT = Path(__file__).parents[3]


def test_shares_are_whole_and_never_nothing() -> None:
    """More workers than cores have one thread each."""
    assert [share_of(8, workers) for workers in (0, 1, 3, 8, 9)] == [8, 8, 2, 1, 1]
    assert count_cores() >= 1


def test_pool_is_the_same_for_all_processes_of_a_host() -> None:
    """So that its workers can count each other."""
    ask = [sys.executable, "-c", "from search.cores import core_pool; print(core_pool())"]
    other = subprocess.run(ask, capture_output=True, text=True, check=True, cwd=ROOT)
    assert core_pool() == other.stdout.strip()
    assert ":" not in core_pool()


def test_number_of_workers_may_be_told() -> None:
    """It is a count, or nothing."""
    assert told_workers({}) is None
    assert told_workers({CPU_WORKERS: ""}) is None
    assert told_workers({CPU_WORKERS: "4"}) == 4


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_what_is_no_count_is_refused(text: str) -> None:
    """The variable is named, with what it holds."""
    with pytest.raises(ConfigError, match=f"{CPU_WORKERS} must be .*, got '{text}'"):
        told_workers({CPU_WORKERS: text})
