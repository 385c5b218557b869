"""The rules of a study beyond the types of its keys: space, conditions, training and baseline."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from search.corners import corner_points
from search.faults import describe, dotted, nearest, shown, unknown_key
from search.parameter import CategoricalParameter, Parameter, find_range_faults, in_order
from trainer.config import READ_TOGETHER, TrainConfig, notebook_recipe

NOT_SEARCHABLE = {
    "seed": "set the study's own seed",
    "epochs": "set training.epochs, for all trials alike",
    "sample_rate": "set training.sample_rate, that of the cache",
    "frame_size": "set training.frame_size, that of the cache",
}
_OF_THE_CACHE = ("sample_rate", "frame_size")
"""Equal for all trials, the baseline included: they read one cache."""
_OTHER_NAMES = {"learning_rate": "lr", "model": "backbone"}
_FIELDS = TrainConfig.model_fields


@dataclass(frozen=True)
class Draft:
    """What could be read of a study file, be it faulty elsewhere."""

    space: Mapping[str, Parameter]
    declared: Collection[str]
    """All names of the space, those whose parameter could not be read included."""
    training: Mapping[str, object]
    baseline: Mapping[str, object]
    min_epochs: int


def find_faults(draft: Draft) -> list[str]:
    """Return every broken rule, one a line, each with its dotted key."""
    space = [*_find_space_faults(draft), *_find_condition_faults(draft)]
    training = list(_find_section_faults("training", draft.training))
    if not training:
        training += _find_epoch_faults(draft)
    baseline = list(_find_section_faults("baseline", draft.baseline))
    if not training and not baseline:
        baseline += _find_baseline_faults(draft)
    if not training and not space and len(draft.space) == len(draft.declared):
        space += _find_corner_faults(draft)
    return space + training + baseline


def baseline_values(
    training: Mapping[str, object], baseline: Mapping[str, object]
) -> dict[str, object]:
    """Return the values of the baseline: the notebook's recipe on the study's waveform cache."""
    of_the_cache = {name: _of_the_cache(training, name) for name in _OF_THE_CACHE}
    return {**notebook_recipe().model_dump(), **of_the_cache, **baseline}


def _of_the_cache(training: Mapping[str, object], name: str) -> object:
    return training.get(name, _FIELDS[name].default)


def _find_space_faults(draft: Draft) -> Iterator[str]:
    for name in draft.declared:
        key = dotted(["space", name])
        if name not in _FIELDS:
            yield _unknown_field("space", name, _FIELDS.keys() - NOT_SEARCHABLE.keys())
        elif name in NOT_SEARCHABLE:
            yield f"{key} is not searchable: {NOT_SEARCHABLE[name]}"
        elif name in draft.training:
            yield f"{key} is fixed by training.{name} already: keep one of them"
    for name, parameter in draft.space.items():
        key = dotted(["space", name])
        yield from find_range_faults(key, parameter)
        if name in _FIELDS and name not in NOT_SEARCHABLE:
            for corner, value in parameter.corners().items():
                yield from _find_value_faults(f"{key}.{corner}", name, value)


def _unknown_field(section: str, name: str, known: Collection[str]) -> str:
    known = {_OTHER_NAMES[name]} if name in _OTHER_NAMES else known
    return unknown_key((section, name), sorted(known))


def _find_condition_faults(draft: Draft) -> Iterator[str]:
    for name, parameter in draft.space.items():
        for parent, values in parameter.when.items():
            yield from _find_parent_faults(draft, name, parent, values)
    # A parameter on itself has been named above, and each cycle is to be named once.
    rest = {
        name: parameter.model_copy(
            update={"when": {p: v for p, v in parameter.when.items() if p != name}}
        )
        for name, parameter in draft.space.items()
    }
    while cycle := _find_cycle(rest):
        yield f"{dotted(['space', cycle[0], 'when'])} is part of a cycle: " + " needs ".join(
            dotted([name]) for name in cycle
        )
        rest = {name: parameter for name, parameter in rest.items() if name not in cycle}


def _find_parent_faults(
    draft: Draft, name: str, parent: str, values: tuple[object, ...]
) -> Iterator[str]:
    key = dotted(["space", name, "when", parent])
    if parent == name:
        yield f"{key} is the parameter itself: name another parameter of [space]"
    elif parent in draft.training:
        yield f"{key} is fixed in [training]: name a parameter of [space]"
    elif parent not in draft.declared:
        others = [other for other in draft.declared if other != name]
        hint = f", the nearest is {nearest(parent, others)}" if others else ""
        yield f"{key} is no parameter of [space]{hint}"
    elif parent in draft.space:
        parameter = draft.space[parent]
        if not isinstance(parameter, CategoricalParameter):
            yield f"{key} is of type {parameter.type}: a condition needs a categorical parameter"
            return
        allowed = ", ".join(map(shown, parameter.choices))
        for value in values:
            if not parameter.takes(value):
                yield f"{key} can't become {shown(value)}, allowed: {allowed}"


def _find_cycle(space: Mapping[str, Parameter]) -> list[str]:
    try:
        in_order(space)
    except CycleError as error:
        # graphlib names each node before those that need it.
        cycle: list[str] = list(reversed(error.args[1]))
        return cycle
    return []


def _find_section_faults(section: str, values: Mapping[str, object]) -> Iterator[str]:
    for name, value in values.items():
        key = dotted([section, name])
        if name not in _FIELDS:
            yield _unknown_field(section, name, _FIELDS.keys() - {"seed"})
        elif name == "seed":
            yield f"{key} is not to be set here: {NOT_SEARCHABLE[name]}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{key} must be finite, got {value}"
        else:
            yield from _find_value_faults(key, name, value)


def _find_value_faults(key: str, name: str, value: object) -> Iterator[str]:
    """Yield what TrainConfig has against `value` alone, whatever the other values are."""
    for error in _try_training({name: value}):
        if error["loc"]:
            yield describe(error, key)


def _find_joint_faults(values: Mapping[str, object]) -> Iterator[str]:
    """Yield what TrainConfig has against values that are good one by one."""
    for error in _try_training(values):
        if not error["loc"]:
            yield from describe(error, "").split("; ")


def _try_training(values: Mapping[str, object]) -> list[ErrorDetails]:
    try:
        TrainConfig.model_validate(values, strict=True)
    except ValidationError as error:
        return error.errors()
    return []


def _find_epoch_faults(draft: Draft) -> Iterator[str]:
    epochs = draft.training.get("epochs", _FIELDS["epochs"].default)
    if isinstance(epochs, int) and draft.min_epochs > epochs:
        yield (
            "pruner.min_epochs must be at most training.epochs, "
            f"got {draft.min_epochs} and {epochs}"
        )


def _find_baseline_faults(draft: Draft) -> Iterator[str]:
    values = baseline_values(draft.training, draft.baseline)
    for name in _OF_THE_CACHE:
        value = _of_the_cache(draft.training, name)
        if values[name] != value:
            yield (
                f"baseline.{name} must be that of the study's one waveform cache, {value}, "
                f"got {shown(values[name])}"
            )
    for message in _find_joint_faults(values):
        yield f"baseline: {message}"


def _find_corner_faults(draft: Draft) -> Iterator[str]:
    """Yield what TrainConfig has against values together, one line for each of its rules."""
    seen = set()
    for point in (p for names in READ_TOGETHER for p in corner_points(draft.space, names)):
        for message in _find_joint_faults({**draft.training, **point}):
            rule = message.partition(", got ")[0]
            if rule not in seen:
                seen.add(rule)
                yield f"training and space together: {message}"
