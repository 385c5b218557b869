"""Wait for a condition with a deadline, never for luck."""

import time
from collections.abc import Callable
from typing import TypeVar

SECONDS = 180.0
"""A deadline, for a machine that has much else to do."""

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], seconds: float = SECONDS, poll_seconds: float = 0.05
) -> T:
    """Return the first true value of `condition`; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not true after {seconds:g} s"
        time.sleep(poll_seconds)
    return value
