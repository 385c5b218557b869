"""Faults of a study file in words: pydantic's findings as lines with dotted keys."""

import json
import re
from collections.abc import Collection, Iterable
from difflib import SequenceMatcher

from pydantic_core import ErrorDetails

MAX_SHOWN = 60
_MUST_BE = {
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "tuple_type": "must be an array",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a text",
}
_TYPES = '"float", "int" or "categorical"'


def dotted(path: Iterable[str | int]) -> str:
    """Return `path` as a key, such as `space.optimizer.choices[1]`."""
    key = ""
    for part in path:
        if isinstance(part, int):
            key += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]{1,60}", part)
            key += ("." if key else "") + (part if bare else shown(part))
    return key


def shown(value: object) -> str:
    """Return `value` as a study file has it, short and on one line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, int) and abs(value) >= 10**MAX_SHOWN:
        return "a giant number"
    if isinstance(value, str):
        short = value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "..."
        return json.dumps(short, ensure_ascii=not short.isprintable())
    return json.dumps(value) if isinstance(value, bool) else str(value)


def nearest(name: str, known: Collection[str]) -> str:
    """Return the one of `known` that is spelled most like `name`."""
    return max(known, key=lambda other: _likeness(name[:MAX_SHOWN], other))


def _likeness(name: str, other: str) -> float:
    # difflib thinks little of swapped letters, which are every second slip.
    letters = SequenceMatcher(None, sorted(name), sorted(other)).ratio()
    return SequenceMatcher(None, name, other).ratio() + letters


def unknown_key(path: tuple[str | int, ...], known: Collection[str]) -> str:
    """Return the line for a key that no study file has, with the nearest one that it may have."""
    return f"{dotted(path)} is unknown, the nearest known key is {nearest(str(path[-1]), known)}"


def describe(error: ErrorDetails, key: str) -> str:
    """Return the line for one finding of pydantic about the value at `key`."""
    kind, message = error["type"], error["msg"]
    if kind == "value_error":  # ours: it names its keys itself
        return message.removeprefix("Value error, ")
    if kind == "missing":
        return f"{key} is missing"
    if kind == "union_tag_not_found":
        return f"{key}.type is missing, allowed: {_TYPES}"
    if kind == "union_tag_invalid":
        return f"{key}.type must be {_TYPES}, got {shown(error['input']['type'])}"
    if kind == "too_short":
        return f"{key} must not be empty"
    must = _MUST_BE.get(kind) or re.sub(r"^\w+ should ", "must ", message)
    return f"{key} {must}, got {shown(error['input'])}"
