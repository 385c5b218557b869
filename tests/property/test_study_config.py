"""Any study file is either read, and then whole, or refused with a ConfigError."""

import copy
import json
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from search.config import StudyConfig, parse_study, read_study
from search.errors import ConfigError
from search.parameter import in_order
from search.space import baseline_params, config_from_params, contract, diff_contract, suggest
from trainer.config import TrainConfig

WORDS = [
    "name", "objective", "trials", "seed", "max_failed_trials", "sampler", "pruner", "lease",
    "training", "space", "baseline", "type", "low", "high", "log", "step", "choices", "when",
    "ttl_seconds", "renew_seconds", "min_epochs", "startup_trials", "reduction",
    "float", "int", "categorical", *TrainConfig.model_fields,
]  # fmt: skip
TEXTS = st.sampled_from([*WORDS, "sgd", "adam", "none", "tpe", "asha", "auc"]) | st.text(max_size=8)
SCALARS = (
    st.integers(-(2**70), 2**70)
    | st.integers(-2, 300)
    | st.floats()
    | st.floats(0, 1)
    | st.booleans()
    | TEXTS
    | st.dates()
)
VALUES = st.recursive(
    st.composite(lambda draw: draw(SCALARS))(),  # keeps the repr short, which else is warned of
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=6),
    max_leaves=12,
)
RANGES: dict[str, tuple[type, float, float]] = {
    "lr": (float, 1e-6, 10.0),
    "dropout": (float, 0.0, 1.0),
    "strength": (float, 0.0, 1.0),
    "weight_decay": (float, 1e-9, 10.0),
    "batch_size": (int, 2, 65_536),
    "n_mels": (int, 8, 512),
}
CHOICES: dict[str, list[str | float | int]] = {
    "optimizer": ["adam", "adamw", "sgd"],
    "schedule": ["cosine", "step", "constant"],
    "augmentation": ["none", "notebook", "spec", "strong"],
    "momentum": [0.0, 0.5, 0.9],
    "eval_windows": [1, 2, 3, 8],
}


@st.composite
def ranges(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Draw a sound range for a parameter."""
    kind, lowest, highest = RANGES[name]
    bounds = st.floats(lowest, highest) if kind is float else st.integers(int(lowest), int(highest))
    low, high = sorted(draw(st.lists(bounds, min_size=2, max_size=2, unique=True)))
    return {
        "type": kind.__name__,
        "low": low,
        "high": high,
        "log": draw(st.booleans()) if low > 0 else False,
    }


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a sound space; each parameter may depend on categorical ones drawn before it."""
    space: dict[str, Any] = {}
    names = st.lists(st.sampled_from([*CHOICES, *RANGES]), min_size=1, max_size=6, unique=True)
    for name in draw(names):
        parents = [parent for parent in space if parent in CHOICES]
        if name in RANGES:
            parameter = draw(ranges(name))
        else:
            few = st.lists(st.sampled_from(CHOICES[name]), min_size=1, unique=True)
            parameter = {"type": "categorical", "choices": draw(few)}
        if draw(st.booleans()) and parents:
            parent = draw(st.sampled_from(parents))
            some = st.lists(st.sampled_from(space[parent]["choices"]), min_size=1, unique=True)
            values = draw(some)
            parameter["when"] = {parent: values if draw(st.booleans()) else values[0]}
        space[name] = parameter
    return dict(draw(st.permutations(list(space.items()))))


SOUND = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
        "trials": st.integers(1, 1000),
        "space": spaces(),
    },
    optional={
        "objective": st.sampled_from(["accuracy", "auc", "eer"]),
        "seed": st.integers(0, 2**31 - 1),
        "max_failed_trials": st.integers(0, 9),
        "training": st.fixed_dictionaries({}, optional={"epochs": st.integers(1, 99)}),
        "pruner": st.sampled_from([{"name": "none"}, {"name": "hyperband", "reduction": 4}]),
        "lease": st.sampled_from([{}, {"ttl_seconds": 30, "renew_seconds": 5.5}]),
        "baseline": st.sampled_from([{}, {"weights": "none"}]),
    },
)


def refusal_of(document: dict[str, Any]) -> str | None:
    """Return the message if the study is refused; every other error goes through."""
    try:
        config = parse_study(document, "study.toml")
    except ConfigError as error:
        return str(error)
    assert isinstance(config, StudyConfig)
    return None


@given(SOUND)
@settings(max_examples=60, deadline=None)
def test_sound_study_survives_toml_and_json(document: dict[str, Any]) -> None:
    """A sound study is the same after TOML, after the database's JSON, and in its contract."""
    config = parse_study(document, "study.toml")
    assert parse_study(tomllib.loads(tomli_w.dumps(document)), "study.toml") == config
    restored = StudyConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert restored == config
    assert diff_contract(json.loads(json.dumps(contract(config))), contract(restored)) == []


@given(SOUND, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_every_trial_of_a_sound_study_trains(document: dict[str, Any], seed: int) -> None:
    """Whatever is suggested makes a TrainConfig that the trial's parameters give again."""
    config = parse_study(document, "study.toml")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(3):
        trial = study.ask()
        trained = suggest(trial, config)
        assert config_from_params(config, trial.params, baseline=False) == trained


@given(SOUND)
@settings(max_examples=40, deadline=None)
def test_baseline_params_lie_in_the_space(document: dict[str, Any]) -> None:
    """Every enqueued value is one that the search itself could have suggested."""
    config = parse_study(document, "study.toml")
    params = baseline_params(config)
    assert [name for name in in_order(config.space) if name in params] == list(params)
    for name, value in params.items():
        assert config.space[name].takes(value)
        assert config.space[name].is_active(params)


@given(st.dictionaries(TEXTS, VALUES, max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_document_is_read_or_refused(document: dict[str, Any]) -> None:
    """A document of any shape gives a study or a refusal, one fault a line with the file's name."""
    refusal = refusal_of(document)
    if refusal is not None:
        assert all(line.endswith(" (study.toml)") for line in refusal.splitlines())


@given(SOUND, st.data())
@settings(max_examples=150, deadline=None)
def test_study_with_one_thing_changed_is_read_or_refused(
    document: dict[str, Any], data: st.DataObject
) -> None:
    """A sound study in which any one value was replaced gives a study or a refusal."""
    document = table = copy.deepcopy(document)  # examples share what they were sampled from
    while True:
        key = data.draw(st.sampled_from(sorted(table)) | TEXTS if table else TEXTS)
        if not isinstance(table.get(key), dict) or data.draw(st.booleans()):
            break
        table = table[key]
    table[key] = data.draw(VALUES)
    refusal = refusal_of(document)
    assert refusal is None or refusal.splitlines()


@given(st.binary(max_size=200) | SOUND.map(lambda study: tomli_w.dumps(study).encode()), st.data())
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused(content: bytes, data: st.DataObject) -> None:
    """A file of any bytes, be it a study file cut off or overwritten, is no traceback."""
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    content = content[:start] + data.draw(st.binary(max_size=8)) + content[end:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.toml"
        path.write_bytes(content)
        try:
            read_study(path)
        except ConfigError as error:
            assert "study.toml" in str(error)


@pytest.mark.parametrize(
    "text",
    ["trials = " + "[" * 5000, "trials = " + "{a = " * 5000, f"trials = {'9' * 5000}"]
    + [f"{key} = 0x{'f' * 9000}" for key in ("trials", "name", "training.lr", "baseline.lr")]
    + [f"[space.lr]\ntype = 'float'\nlow = 0x{'f' * 9000}\nhigh = 1"],
)
def test_deep_arrays_and_giant_numbers_are_refused(tmp_path: Path, text: str) -> None:
    """They end no reader, and fill no screen."""
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ConfigError) as refusal:
        read_study(tmp_path / "study.toml")
    assert len(str(refusal.value)) < 2000


@given(st.integers(1, 5000), st.sampled_from(["space", "training", "a", "space.lr.type"]))
@settings(max_examples=10, deadline=None)
def test_deep_tables_are_refused(depth: int, key: str) -> None:
    """A key of thousands of parts is refused like any other."""
    text = f"{key}{'.a' * depth} = {'9' * 50}\n"
    assert refusal_of(tomllib.loads(text)) is not None
