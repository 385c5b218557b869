"""How deep a document's tables and arrays go."""

MAX_DEPTH = 16


def is_deep(value: object, depth: int = MAX_DEPTH) -> bool:
    """Return whether `value` is nested so deeply that pydantic or repr might not come back."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(is_deep(part, depth - 1) for part in inner)
