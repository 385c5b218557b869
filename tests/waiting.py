"""Wait for a condition with a deadline, never for luck."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], seconds: float = 60.0, poll_seconds: float = 0.05) -> T:
    """Return the first true value of `condition`; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not true after {seconds:g} s"
        time.sleep(poll_seconds)
    return value
