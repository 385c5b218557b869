"""docs/operations.md explains each log event, and none that is gone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def events_of(source: str) -> set[str]:
    """Return the events that a module logs, those chosen by an expression or a variable included.

    A call whose event can't be read off the source fails, so that none is missed.
    """
    tree = ast.parse(source)
    found = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and _is_logging(call.func):
            events = set(_strings(call.args[0], tree))
            assert events, f"line {call.lineno}: which event is this?"
            found |= events
    return found


def _is_logging(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and function.attr in LEVELS
        and isinstance(function.value, ast.Name)
        and function.value.id == "logger"
    )


def _strings(value: ast.expr, tree: ast.Module) -> Iterator[str]:
    """Yield what an event may be: a text, either of two, or what its name was bound to."""
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from _strings(body, tree)
            yield from _strings(orelse, tree)
        case ast.Name(id=name):
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                    yield from _strings(node.value, tree)


@pytest.mark.parametrize(
    ("source", "events"),
    [
        ('logger.info("a")', {"a"}),
        ('logger.warning("a" if x else "b", extra={"c": "d"})', {"a", "b"}),
        ('event = "a" if x == "c" else "b"\nlogger.error(event)', {"a", "b"}),
        ('print("a")\nother.info("b")', set()),
    ],
)
def test_events_are_read_off_the_source(source: str, events: set[str]) -> None:
    """In all the ways in which the packages log."""
    assert events_of(source) == events


def test_event_that_cannot_be_read_is_not_passed_over() -> None:
    """A computed event would be missing from the table, and nobody would know."""
    with pytest.raises(AssertionError, match="which event"):
        events_of('logger.info(f"a{x}")')


def test_table_has_every_event_of_the_sources_and_no_other() -> None:
    """Whoever adds an event says what it means and what to do."""
    packages = ("search", "trainer", "storage")
    sources = [path for package in packages for path in (ROOT / package).glob("*.py")]
    section = (ROOT / "docs/operations.md").read_text().split("\n## Events in the log\n")[1]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    explained = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(explained) == sorted(set().union(*(events_of(s.read_text()) for s in sources)))


def test_documentation_leads_to_it() -> None:
    """README and the map of the folders name the page."""
    for page in ("README.md", "docs/architecture.md", "docs/docker.md"):
        assert "operations.md" in (ROOT / page).read_text(), page
