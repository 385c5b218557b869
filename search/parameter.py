"""One parameter of the search space: which values it takes, and when it is searched."""

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from graphlib import TopologicalSorter
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator
from pydantic_core import PydanticCustomError

from search.faults import shown

MAX_STEPS = 1_000_000
EXACT_IN_A_FLOAT = 2**53


def _to_choice(value: object) -> str | bool | int | float:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and abs(value) < math.inf:
        return value
    raise PydanticCustomError(
        "choice_type", "Input should be a text, a finite number, true or false"
    )


def _to_array(value: object) -> object:
    return value if isinstance(value, list | tuple | dict) else [value]


Choice = Annotated[str | bool | int | float, PlainValidator(_to_choice)]
Choices = Annotated[tuple[Choice, ...], Field(strict=False, min_length=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=-EXACT_IN_A_FLOAT, le=EXACT_IN_A_FLOAT)]


class _Parameter(BaseModel, frozen=True, extra="forbid", strict=True):
    when: dict[str, Annotated[Choices, BeforeValidator(_to_array)]] = {}
    """Searched only while each of these parameters has one of these values."""

    def is_active(self, params: Mapping[str, object]) -> bool:
        """Return whether a trial with `params` has this parameter."""
        return all(
            parent in params and params[parent] in values for parent, values in self.when.items()
        )


class FloatParameter(_Parameter):
    """A real number from low to high, both included."""

    type: Literal["float"]
    low: Finite
    high: Finite
    log: bool = False
    step: Annotated[Finite, Field(gt=0)] | None = None

    def corners(self) -> dict[str, Choice]:
        """Return the extreme values by the key that sets them."""
        return {"low": self.low, "high": self.high}

    def takes(self, value: object) -> bool:
        """Return whether the parameter can have `value`."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        return self.step is None or _num_steps(self.low, value, self.step).denominator == 1


class IntParameter(_Parameter):
    """A whole number from low to high, both included."""

    type: Literal["int"]
    low: Whole
    high: Whole
    log: bool = False
    step: Annotated[Whole, Field(ge=1)] = 1

    def corners(self) -> dict[str, Choice]:
        """Return the extreme values by the key that sets them."""
        return {"low": self.low, "high": self.high}

    def takes(self, value: object) -> bool:
        """Return whether the parameter can have `value`."""
        if not isinstance(value, int) or not self.low <= value <= self.high:
            return False
        return (value - self.low) % self.step == 0


class CategoricalParameter(_Parameter):
    """One of several values without an order."""

    type: Literal["categorical"]
    choices: Choices

    def corners(self) -> dict[str, Choice]:
        """Return all values by the key that sets them."""
        return {f"choices[{index}]": choice for index, choice in enumerate(self.choices)}

    def takes(self, value: object) -> bool:
        """Return whether the parameter can have `value`."""
        return value in self.choices


Parameter = Annotated[
    FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")
]


def find_range_faults(key: str, parameter: Parameter) -> Iterator[str]:
    """Yield what is wrong with the values of the parameter at `key`, whatever it is used for."""
    if isinstance(parameter, CategoricalParameter):
        for index, choice in enumerate(parameter.choices):
            if choice in parameter.choices[:index]:
                yield f"{key}.choices[{index}] is there twice, got {shown(choice)}"
        return
    low, high = parameter.low, parameter.high
    if low >= high:
        yield f"{key}.low must be below {key}.high, got {low} and {high}"
    if parameter.log and low <= 0:
        yield f"{key}.low must be above 0 for a logarithmic range, got {low}"
    if parameter.step not in (None, 1) and parameter.log:
        yield f"{key}.step must be left out of a logarithmic range, got {parameter.step}"
    elif parameter.step is not None and low < high:
        yield from _find_step_faults(key, _num_steps(low, high, parameter.step), parameter.step)


def in_order(space: Mapping[str, Parameter]) -> list[str]:
    """Return the names of `space`, each parameter after those that it depends on.

    Raises:
        graphlib.CycleError: parameters depend on each other.
    """
    parents = {name: [p for p in space[name].when if p in space] for name in space}
    return list(TopologicalSorter(parents).static_order())


def _find_step_faults(key: str, num_steps: Fraction, step: float) -> Iterator[str]:
    if num_steps > MAX_STEPS:
        yield f"{key}.step must leave at most {MAX_STEPS:,} steps from low to high, got {step}"
    elif num_steps.denominator != 1:
        yield f"{key}.high must be {key}.low plus a whole number of steps of {step}"


def _num_steps(low: float, high: float, step: float) -> Fraction:
    """Count in decimals, as people write them, so that 0.3 is three steps of 0.1."""
    return (Fraction(str(high)) - Fraction(str(low))) / Fraction(str(step))
