"""Print for people: names and values as they are, never as markup."""

from rich.console import Console


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that takes `[x]` and `:x:` for what they say."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def print_plain(console: Console, text: str) -> None:
    """Print without folding: a log must not be folded, nor a path that is to be copied."""
    console.print(text, soft_wrap=True)
