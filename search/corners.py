"""The corners of a search space at which some of its parameters meet."""

from collections.abc import Collection, Mapping, Sequence

from search.parameter import Choice, Parameter, in_order

Point = dict[str, Choice]


def corner_points(space: Mapping[str, Parameter], names: Collection[str]) -> list[Point]:
    """Return corners of `space`, one for each combination of extreme values of `names`.

    Each is all that a trial could have: what `names` depend on is varied for them, and everything
    else has its first value. So the work grows with `names`, not with the space.
    """
    order = in_order(space)
    varied = _with_parents(space, order, names)
    points: list[Point] = [{}]
    for place, name in enumerate(order):
        values = _extremes(space, name)[: None if name in varied else 1]
        points = [more for point in points for more in _extend(point, name, space[name], values)]
        # Points that go on alike are one, else what `names` depend on would multiply them.
        rest = varied.intersection(order[place + 1 :])
        points = list({_prospect(space, names, rest, point): point for point in points}.values())
    return points


def _extremes(space: Mapping[str, Parameter], name: str) -> list[Choice]:
    """Return the values that can make a difference: of numbers the least and the greatest."""
    values = list(space[name].corners().values())
    is_parent = any(name in parameter.when for parameter in space.values())
    numbers = [value for value in values if not isinstance(value, str)]
    return values if is_parent or len(numbers) < len(values) else [min(numbers), max(numbers)]


def _extend(point: Point, name: str, parameter: Parameter, values: Sequence[Choice]) -> list[Point]:
    return [{**point, name: value} for value in values] if parameter.is_active(point) else [point]


def _prospect(
    space: Mapping[str, Parameter], names: Collection[str], rest: Collection[str], point: Point
) -> tuple[object, ...]:
    """Return the values of `names` at `point`, and what of the rest may still become active."""
    hopeful = {
        child
        for child in rest
        if all(p in rest or point.get(p) in values for p, values in space[child].when.items())
    }
    return *(point.get(name) for name in names), frozenset(hopeful)


def _with_parents(
    space: Mapping[str, Parameter], order: Sequence[str], names: Collection[str]
) -> set[str]:
    found = {name for name in names if name in space}
    for name in reversed(order):  # so that parents come last
        if name in found:
            found |= space[name].when.keys()
    return found
