"""Print for people: names and values as they are, never as markup."""

import sys
from io import TextIOWrapper

from rich.console import Console


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that takes `[x]` and `:x:` for what they say."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_plain(console: Console, text: str) -> None:
    """Print without folding: a log must not be folded, nor a path that is to be copied."""
    console.print(text, soft_wrap=True)


def print_any_name() -> None:
    """Let a file's name that is not UTF-8, or a terminal that isn't, end no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
