"""How far a long operation is: a bar on a terminal, a line now and then in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""

_LOG_EVERY_SECONDS = 10.0


@contextmanager
def show_progress(label: str) -> Iterator[Progress]:
    """Yield a function that shows how many of how many are done."""
    if sys.stderr.isatty():
        with _bar(label) as progress:
            yield progress
    else:
        yield _lines(label)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        # Hidden until there is something to do: what is done already needs no bar.
        row = bar.add_task(label, total=None, visible=False)
        yield lambda done, total: bar.update(row, completed=done, total=total, visible=True)


def _lines(label: str) -> Progress:
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= _LOG_EVERY_SECONDS:
            last = time.monotonic()
            logger.info("progress", extra={"of": label, "done": done, "total": total})

    return show
