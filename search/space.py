"""The search space in Optuna's terms: trial to TrainConfig and back, and what of it is frozen."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

from optuna.trial import BaseTrial
from pydantic import ValidationError

from search.config import StudyConfig
from search.corners import corner_points
from search.errors import StudyError
from search.faults import shown
from search.parameter import CategoricalParameter, Choice, FloatParameter, Parameter, in_order
from trainer.config import TrainConfig, notebook_recipe

_PRETRAINED = ("backbone", "weights", "modality", "video_backbone")


class SpaceRow(NamedTuple):
    """One parameter of the space, for people."""

    name: str
    range: str
    condition: str


def suggest(trial: BaseTrial, config: StudyConfig) -> TrainConfig:
    """Give `trial` its parameters, parents first, and return what it trains.

    Idempotent: a trial that has some of its parameters keeps them and is given the others.
    """
    params: dict[str, Choice] = {}
    for name in in_order(config.space):
        parameter = config.space[name]
        if parameter.is_active(params):
            params[name] = _suggest_value(trial, name, parameter)
    return _train_config(config, params)


def suggest_baseline(trial: BaseTrial, config: StudyConfig) -> TrainConfig:
    """Give the enqueued baseline its parameters and return what it trains; idempotent.

    What the space can't express of the baseline, such as another frontend, is in the result alone.
    """
    for name in baseline_params(config):
        _suggest_value(trial, name, config.space[name])
    return config.baseline_config()


def baseline_params(config: StudyConfig) -> dict[str, Choice]:
    """Return the part of the baseline that lies in the space: what is enqueued for its trial."""
    values = config.baseline_config().model_dump()
    params: dict[str, Choice] = {}
    for name in in_order(config.space):
        parameter = config.space[name]
        if parameter.is_active(params) and parameter.takes(values[name]):
            params[name] = values[name]
    return params


def config_from_params(
    config: StudyConfig, params: Mapping[str, object], baseline: bool
) -> TrainConfig:
    """Return what a trial with `params` trained.

    Raises:
        StudyError: no trial of the study can have these parameters.
    """
    if baseline:
        return config.baseline_config()
    active = {name for name in config.space if config.space[name].is_active(params)}
    if active != params.keys():
        raise StudyError(
            f"study {config.name!r}: a trial must have the parameters {', '.join(sorted(active))}, "
            f"got {', '.join(sorted(params)) or 'none'}"
        )
    return _train_config(config, params)


def imagenet_backbones(config: StudyConfig) -> list[str]:
    """Return the backbones whose ImageNet weights a trial of the study may load, sorted.

    They are those of the baseline and of all values of the space that can come together.
    """
    points = [config.baseline_config().model_dump(include=set(_PRETRAINED))]
    defaults = {name: TrainConfig.model_fields[name].default for name in _PRETRAINED}
    for params in corner_points(config.space, _PRETRAINED):
        points.append({**defaults, **config.training, **params})
    found = set()
    for values in points:
        if values["weights"] == "imagenet":
            found |= {values["backbone"]} if values["modality"] != "video" else set()
            found |= {values["video_backbone"]} if values["modality"] != "audio" else set()
    return sorted(found)


def contract(config: StudyConfig) -> dict[str, Any]:
    """Return all of the study file that its results depend on, as JSON can hold it.

    Defaults are spelled out, so that to spell them out in the file changes nothing. Not in it is
    what may change while the study goes on: budget, leases, how many trials may fail.
    """
    kept = {"objective", "holdout", "seed", "sampler", "pruner", "space"}
    return {
        **config.model_dump(mode="json", include=kept),
        "training": {k: v for k, v in config.fixed_values().items() if k != "seed"},
        "baseline": config.baseline_config().model_dump(mode="json", exclude={"seed"}),
    }


def diff_contract(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line for each difference, such as `space.lr.high: study 0.01, here 0.1`."""
    return list(_diff(old, new, ""))


def without_new_defaults(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return contract `new` without the settings that the version which froze `old` didn't know.

    Those alone whose value is the one that changes nothing.
    """
    kept = dict(new)
    if "holdout" not in old and new["holdout"] == "none":
        del kept["holdout"]
    fields = {name: field.default for name, field in TrainConfig.model_fields.items()}
    for section, defaults in (("training", fields), ("baseline", notebook_recipe().model_dump())):
        kept[section] = {
            name: value
            for name, value in new[section].items()
            if name in old[section] or value != defaults[name]
        }
    return kept


def describe(config: StudyConfig) -> list[SpaceRow]:
    """Return what is searched, one row for each parameter, parents first."""
    return [
        SpaceRow(name, _describe_range(config.space[name]), _describe_when(config.space[name]))
        for name in in_order(config.space)
    ]


def _suggest_value(trial: BaseTrial, name: str, parameter: Parameter) -> Choice:
    if isinstance(parameter, CategoricalParameter):
        return cast(Choice, trial.suggest_categorical(name, parameter.choices))
    low, high, step, log = parameter.low, parameter.high, parameter.step, parameter.log
    if isinstance(parameter, FloatParameter):
        return trial.suggest_float(name, low, high, step=step, log=log)
    return trial.suggest_int(name, parameter.low, parameter.high, step=parameter.step, log=log)


def _train_config(config: StudyConfig, params: Mapping[str, object]) -> TrainConfig:
    try:
        return config.train_config(params)
    except ValidationError as error:
        faults = "; ".join(detail["msg"] for detail in error.errors())
        raise StudyError(
            f"study {config.name!r}: no training has the parameters {dict(params)}: {faults}"
        ) from error


def _diff(old: object, new: object, key: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            part = f"{key}.{name}" if key else name
            yield from _diff(old.get(name), new.get(name), part)
    elif old != new:
        yield f"{key}: study {_describe_value(old)}, here {_describe_value(new)}"


def _describe_value(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        inner = (f"{name} = {_describe_value(v)}" for name, v in value.items() if v is not None)
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_describe_value, value)) + "]"
    return shown(value)


def _describe_range(parameter: Parameter) -> str:
    if isinstance(parameter, CategoricalParameter):
        return ", ".join(map(_plain, parameter.choices))
    text = f"{parameter.low:g} to {parameter.high:g}"
    if parameter.log:
        return f"{text}, logarithmic"
    stepped = parameter.step is not None and (parameter.type == "float" or parameter.step != 1)
    return f"{text} in steps of {parameter.step:g}" if stepped else text


def _describe_when(parameter: Parameter) -> str:
    return " and ".join(
        f"{parent} is {' or '.join(map(_plain, values))}"
        for parent, values in parameter.when.items()
    )


def _plain(value: Choice) -> str:
    return value if isinstance(value, str) else shown(value)
