"""A study file: study.toml as validated, frozen models, every fault reported at once."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PositiveFloat,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from search.document import read_document
from search.errors import ConfigError
from search.faults import describe, dotted, shown, unknown_key
from search.parameter import CategoricalParameter, FloatParameter, IntParameter, Parameter
from search.rules import Draft, baseline_values, find_faults
from trainer.config import TrainConfig
from trainer.nesting import is_deep
from trainer.objectives import Holdout, Objective

Count = Annotated[int, Field(ge=1, le=1_000_000)]


def _is_no_file(name: str) -> str:
    if name.endswith(".toml"):
        raise ValueError(f"name must not end in .toml, as a study file's does, got {shown(name)}")
    return name


Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._-]{0,63}$"), AfterValidator(_is_no_file)]


class _Section(BaseModel, frozen=True, extra="forbid", strict=True):
    pass


class SamplerSettings(_Section):
    """Which sampler proposes parameters."""

    name: Literal["tpe", "random"] = "tpe"
    startup_trials: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    """tpe: so many trials are random before it starts to learn."""

    @model_validator(mode="after")
    def _sets_nothing_in_vain(self) -> Self:
        if self.name == "random" and self.startup_trials != 10:
            raise ValueError('sampler.startup_trials is of no use to sampler.name = "random"')
        return self


class PrunerSettings(_Section):
    """Which pruner stops trials early, judging by the objective after each epoch."""

    name: Literal["asha", "hyperband", "median", "none"] = "asha"
    min_epochs: Count = 1
    """No trial is pruned before so many epochs."""
    reduction: Annotated[int, Field(ge=2, le=100)] = 3
    """asha, hyperband: one in so many trials goes on from rung to rung."""
    startup_trials: Annotated[int, Field(ge=0, le=1_000_000)] = 5
    """median: no pruning before so many trials are complete."""

    @model_validator(mode="after")
    def _sets_nothing_in_vain(self) -> Self:
        with_rungs = self.name in ("asha", "hyperband")
        faults = []
        if self.reduction != 3 and not with_rungs:
            faults.append(f'pruner.reduction is of no use to pruner.name = "{self.name}"')
        if self.startup_trials != 5 and self.name != "median":
            faults.append(f'pruner.startup_trials is of no use to pruner.name = "{self.name}"')
        if faults:
            raise ValueError("\n".join(faults))
        return self


class LeaseSettings(_Section):
    """How long a worker may hold a trial. Seconds, by the database's clock."""

    ttl_seconds: Annotated[PositiveFloat, Field(le=86_400)] = 60.0
    renew_seconds: Annotated[PositiveFloat, Field(le=86_400)] = 15.0
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 3
    """A trial FAILs when so many workers have died of it."""

    @model_validator(mode="after")
    def _renews_well_before_expiry(self) -> Self:
        if 3 * self.renew_seconds > self.ttl_seconds:
            raise ValueError(
                "lease.renew_seconds must be at most a third of lease.ttl_seconds, "
                f"got {self.renew_seconds:g} and {self.ttl_seconds:g}"
            )
        return self


class StudyConfig(_Section):
    """One search: what to try, how often, and what everything else is fixed to."""

    name: Name
    objective: Objective = "accuracy"
    """On the validation clips that choose; of a trial's best epoch."""
    holdout: Holdout = "half"
    """Which part of the validation clips chooses nothing, and is what the final model is reported
    and calibrated on."""
    trials: Count
    """The budget: so many trials shall end COMPLETE or PRUNED."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the sampler and of every training."""
    max_failed_trials: Annotated[int, Field(ge=0, le=1_000_000)] = 5
    """The study stops when more trials than this have FAILED."""
    sampler: SamplerSettings = SamplerSettings()
    pruner: PrunerSettings = PrunerSettings()
    lease: LeaseSettings = LeaseSettings()
    training: dict[str, Any] = {}
    """Fixed values of TrainConfig."""
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    """What is searched: a field of TrainConfig each."""
    baseline: dict[str, Any] = {}
    """Where the baseline differs from the notebook's recipe."""

    @model_validator(mode="after")
    def _keeps_the_rules(self) -> Self:
        draft = Draft(
            space=self.space,
            declared=list(self.space),
            training=self.training,
            baseline=self.baseline,
            min_epochs=self.pruner.min_epochs,
        )
        if faults := find_faults(draft):
            raise ValueError("\n".join(faults))
        return self

    @property
    def max_epochs(self) -> int:
        """The most epochs that any trial of the study trains, the baseline included."""
        return max(int(self.fixed_values()["epochs"]), self.baseline_config().epochs)

    @property
    def sample_rate(self) -> int:
        """Hz, of the one waveform cache that all trials read."""
        return self.baseline_config().sample_rate

    @property
    def frame_size(self) -> int:
        """Pixels, of the frames that trials read of the cache; 0 if none of them sees."""
        values = self.baseline_config()
        modalities = {values.modality, self.training.get("modality", "audio")}
        if "modality" in self.space:
            modalities |= set(self.space["modality"].corners().values())
        return 0 if modalities == {"audio"} else values.frame_size

    @property
    def needs_codecs(self) -> bool:
        """Whether any trial reads copies of the sounds that codecs made."""
        shares = [self.baseline_config().codec_share, self.training.get("codec_share", 0.0)]
        if "codec_share" in self.space:
            shares += self.space["codec_share"].corners().values()
        return any(shares)

    def fixed_values(self) -> dict[str, Any]:
        """Return what all trials of the study have in common, defaults spelled out."""
        defaults = {name: field.default for name, field in TrainConfig.model_fields.items()}
        values = {**defaults, **self.training, "seed": self.seed}
        return {name: value for name, value in values.items() if name not in self.space}

    def train_config(self, params: Mapping[str, object]) -> TrainConfig:
        """Return the training of a trial with `params`."""
        return TrainConfig.model_validate({**self.training, **params, "seed": self.seed})

    def baseline_config(self) -> TrainConfig:
        """Return the training of the baseline."""
        values = baseline_values(self.training, self.baseline)
        return TrainConfig.model_validate({**values, "seed": self.seed})


def read_study(path: Path) -> StudyConfig:
    """Read a study file.

    Raises:
        ConfigError: the file can't be read or is faulty; one line for each of its faults.
    """
    return parse_study(read_document(path), path.name)


def read_study_name(path: Path) -> str:
    """Read the name alone of a study file, whatever is wrong with the rest.

    Raises:
        ConfigError: the file can't be read, or has no name that a study can have.
    """
    document = read_document(path)
    if "name" not in document:
        raise _config_error(["name is missing"], path.name)
    try:
        return TypeAdapter(Name).validate_python(document["name"], strict=True)
    except ValidationError as error:
        faults = [describe(detail, "name") for detail in error.errors()]
    raise _config_error(faults, path.name)


def parse_study(document: Mapping[str, object], source: str) -> StudyConfig:
    """Return the study that `document` describes; `source` is named in messages.

    Raises:
        ConfigError: one line for each fault.
    """
    if is_deep(document):
        raise _config_error(["nested too deeply"], source)
    try:
        return StudyConfig.model_validate(document)
    except ValidationError as error:
        # What pydantic finds wrong with one key keeps it from judging the keys together.
        found = [line for detail in error.errors() for line in _describe(detail)]
        found += find_faults(_draft(document))
    raise _config_error(found, source)


def check_backbones(config: StudyConfig, source: str = "study.toml") -> None:
    """Check that timm has every backbone of the study. Slow: imports timm.

    Raises:
        ConfigError: one line for each unknown backbone, with the nearest names.
    """
    from trainer.model import is_backbone, nearest_backbones

    names = {}
    for field in ("backbone", "video_backbone"):
        names[f"training.{field}"] = config.training.get(field)
        names[f"baseline.{field}"] = config.baseline.get(field)
        if field in config.space:
            corners = config.space[field].corners().items()
            names |= {f"space.{field}.{corner}": value for corner, value in corners}
    faults = [
        f"{key} must be a timm model, got {shown(name)}, "
        f"the nearest are: {', '.join(nearest_backbones(name)) or 'none'}"
        for key, name in names.items()
        if name is not None and not is_backbone(name)
    ]
    if faults:
        raise _config_error(faults, source)


def _config_error(faults: Iterable[str], source: str) -> ConfigError:
    return ConfigError("\n".join(f"{line} ({source})" for line in dict.fromkeys(faults)))


def _describe(error: ErrorDetails) -> list[str]:
    """Return the lines for one finding, none for broken rules: those are found on the draft."""
    path = error["loc"]
    if path[:1] == ("space",) and len(path) > 2:
        path = path[:2] + path[3:]  # without the tag by which pydantic chose among the types
    if not path:
        return []
    if error["type"] == "extra_forbidden":
        return [unknown_key(path, _known_keys(error["loc"]))]
    return describe(error, dotted(path)).splitlines()


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    models: dict[str | int, type[BaseModel]] = {
        "sampler": SamplerSettings,
        "pruner": PrunerSettings,
        "lease": LeaseSettings,
        "float": FloatParameter,
        "int": IntParameter,
        "categorical": CategoricalParameter,
    }
    if len(path) == 1:
        return list(StudyConfig.model_fields)
    return list(models[path[2] if path[0] == "space" else path[0]].model_fields)


def _draft(document: Mapping[str, object]) -> Draft:
    space = _table(document, "space")
    parameters = {name: _try_to_read(Parameter, raw) for name, raw in space.items()}
    pruner = _try_to_read(PrunerSettings, _table(document, "pruner"))
    return Draft(
        space={name: parameter for name, parameter in parameters.items() if parameter},
        declared=list(space),
        training=_table(document, "training"),
        baseline=_table(document, "baseline"),
        min_epochs=pruner.min_epochs if pruner else 1,
    )


def _table(document: Mapping[str, object], key: str) -> dict[str, object]:
    value = document.get(key, {})
    return value if isinstance(value, dict) else {}


def _try_to_read(kind: Any, raw: object) -> Any:
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError:
        return None
