"""The space in Optuna's terms: suggestions, the baseline, the contract."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial, Trial

from search.config import StudyConfig, parse_study, read_study
from search.errors import StudyError
from search.space import (
    baseline_params,
    config_from_params,
    contract,
    describe,
    diff_contract,
    imagenet_backbones,
    suggest,
    suggest_baseline,
)
from trainer.config import TrainConfig, notebook_recipe

ROOT = Path(__file__).parents[3]


def study_config(**changes: Any) -> StudyConfig:
    """Return a study with a parameter of each type and a chain of conditions."""
    document = {
        "name": "tiny",
        "trials": 4,
        "seed": 3,
        "training": {"epochs": 2},
        "space": {
            "momentum": {"type": "float", "low": 0.5, "high": 0.9, "when": {"optimizer": "sgd"}},
            "optimizer": {
                "type": "categorical",
                "choices": ["adam", "sgd"],
                "when": {"schedule": ["step", "cosine"]},
            },
            "schedule": {"type": "categorical", "choices": ["step", "constant", "cosine"]},
            "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "batch_size": {"type": "int", "low": 8, "high": 32, "step": 8},
            "dropout": {"type": "float", "low": 0.0, "high": 0.3, "step": 0.1},
        },
    }
    return parse_study(document | changes, "study.toml")


def new_study(seed: int = 0) -> optuna.Study:
    """Return an empty study in memory."""
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def ask(study: optuna.Study) -> Trial:
    """Return a new trial."""
    return study.ask()


def test_trial_is_given_active_parameters_alone() -> None:
    """A parameter is suggested only while its parents have the values that it asks for."""
    config = study_config()
    study = new_study()
    seen = set()
    for _ in range(40):
        trial = ask(study)
        suggest(trial, config)
        names = frozenset(trial.params)
        assert ("optimizer" in names) == (trial.params["schedule"] != "constant")
        assert ("momentum" in names) == (trial.params.get("optimizer") == "sgd")
        seen.add(names)
    assert len(seen) == 3


def test_training_holds_params_fixed_values_and_seed() -> None:
    """A trial trains its parameters, the study's fixed values and the study's seed."""
    params = {"schedule": "constant", "lr": 1e-3, "batch_size": 16, "dropout": 0.1}
    expected = TrainConfig(
        schedule="constant", lr=1e-3, batch_size=16, dropout=0.1, epochs=2, seed=3
    )
    assert suggest(FixedTrial(params), study_config()) == expected


def test_params_of_a_trial_give_its_training_again() -> None:
    """What is in the database is enough to know what a trial trained."""
    config = study_config()
    study = new_study()
    for _ in range(10):
        trial = ask(study)
        trained = suggest(trial, config)
        assert config_from_params(config, study.trials[-1].params, baseline=False) == trained


def test_half_suggested_trial_is_completed() -> None:
    """A trial whose worker died in mid-suggestion keeps what it has and is given the rest."""
    config = study_config()
    study = new_study()
    begun = ask(study)
    begun.suggest_categorical("schedule", ["step", "constant", "cosine"])
    schedule = begun.params["schedule"]
    trained = suggest(Trial(study, begun._trial_id), config)
    assert trained.schedule == schedule
    assert suggest(Trial(study, begun._trial_id), config) == trained


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"schedule": "constant", "lr": 1e-3, "batch_size": 16},
        {"schedule": "constant", "lr": 1e-3, "batch_size": 16, "dropout": 0.1, "n_mels": 64},
        {"schedule": "constant", "lr": -1.0, "batch_size": 16, "dropout": 0.1},
    ],
)
def test_params_of_another_study_are_refused(params: dict[str, Any]) -> None:
    """Parameters that no trial of the study can have are refused with the study's name."""
    with pytest.raises(StudyError, match="study 'tiny': "):
        config_from_params(study_config(), params, baseline=False)


def test_baseline_params_are_the_part_that_lies_in_the_space() -> None:
    """Values outside a range, off its steps or of an inactive parameter are left out."""
    config = study_config(baseline={"dropout": 0.25, "momentum": 0.6})
    assert baseline_params(config) == {"schedule": "step", "optimizer": "adam", "lr": 0.003}
    config = study_config(baseline={"dropout": 0.3, "batch_size": 24, "optimizer": "sgd"})
    assert baseline_params(config)["dropout"] == 0.3
    assert baseline_params(config)["batch_size"] == 24
    assert baseline_params(config)["momentum"] == 0.9


def test_child_of_a_parent_outside_the_space_is_left_out() -> None:
    """Where the parent's value can't be expressed, neither can what depends on it."""
    space = {
        "optimizer": {"type": "categorical", "choices": ["sgd", "adamw"]},
        "momentum": {"type": "float", "low": 0.5, "high": 0.95, "when": {"optimizer": "sgd"}},
    }
    assert baseline_params(study_config(space=space)) == {}


@pytest.mark.parametrize("file", ["study.toml", "examples/speech.toml"])
def test_enqueued_baseline_trains_the_baseline(file: str) -> None:
    """The enqueued trial has the baseline's parameters and trains the baseline, and again."""
    config = read_study(ROOT / file)
    study = new_study()
    study.enqueue_trial(baseline_params(config), user_attrs={"baseline": True})
    trial = ask(study)
    assert suggest_baseline(trial, config) == config.baseline_config()
    assert trial.params == baseline_params(config)
    assert trial.params["lr"] == 0.003
    assert suggest_baseline(Trial(study, trial._trial_id), config) == config.baseline_config()
    assert config_from_params(config, trial.params, baseline=True) == config.baseline_config()


def test_baseline_is_the_notebooks_recipe() -> None:
    """With nothing overridden the baseline is the recipe with the study's seed."""
    config = study_config()
    assert config_from_params(config, {}, baseline=True) == notebook_recipe(seed=3)


def test_contract_is_json_and_survives_it() -> None:
    """What is frozen is the same after its way through the database."""
    config = read_study(ROOT / "study.toml")
    stored = json.loads(json.dumps(contract(config)))
    assert diff_contract(stored, contract(config)) == []


def test_what_may_change_is_not_in_the_contract() -> None:
    """A larger budget, other leases or another name leave the contract as it is."""
    other = study_config(name="other", trials=9, max_failed_trials=1, lease={"ttl_seconds": 90})
    assert contract(other) == contract(study_config())


def test_spelling_out_a_default_is_no_difference() -> None:
    """A study file may say what is so anyway."""
    spelled = study_config(
        training={"epochs": 2, "weights": "none", "window_seconds": 4},
        baseline={"lr": 0.003},
        sampler={"name": "tpe"},
    )
    assert diff_contract(contract(study_config()), contract(spelled)) == []


def test_each_difference_is_a_line_with_its_key() -> None:
    """What was frozen and what is here stand side by side."""
    old = study_config()
    space = old.model_dump(mode="json")["space"]
    space["lr"]["high"] = 0.1
    space["schedule"]["choices"] = ["step", "constant", "cosine"][::-1]
    del space["dropout"]
    space["n_mels"] = {"type": "int", "low": 64, "high": 96}
    new = study_config(
        space=space, seed=4, training={"epochs": 3}, pruner={"name": "none"}, baseline={"lr": 0.01}
    )
    assert sorted(diff_contract(contract(old), contract(new))) == [
        "baseline.lr: study 0.003, here 0.01",
        'pruner.name: study "asha", here "none"',
        "seed: study 3, here 4",
        'space.dropout: study {when = {}, type = "float", low = 0.0, high = 0.3, log = false,'
        " step = 0.1}, here nothing",
        "space.lr.high: study 0.01, here 0.1",
        'space.n_mels: study nothing, here {when = {}, type = "int", low = 64, high = 96,'
        " log = false, step = 1}",
        'space.schedule.choices: study ["step", "constant", "cosine"],'
        ' here ["cosine", "constant", "step"]',
        "training.dropout: study nothing, here 0.0",
        "training.epochs: study 2, here 3",
        "training.n_mels: study 128, here nothing",
    ]


def test_space_is_described_parents_first() -> None:
    """Each row tells name, range and condition."""
    rows = {row.name: row for row in describe(study_config())}
    assert list(rows).index("schedule") < list(rows).index("optimizer")
    assert list(rows).index("optimizer") < list(rows).index("momentum")
    assert rows["lr"].range == "0.0001 to 0.01, logarithmic"
    assert rows["batch_size"].range == "8 to 32 in steps of 8"
    assert rows["dropout"].range == "0 to 0.3 in steps of 0.1"
    assert rows["optimizer"] == ("optimizer", "adam, sgd", "schedule is step or cosine")
    assert rows["momentum"].condition == "optimizer is sgd"


def test_switch_is_searched_and_decides_what_else_is() -> None:
    """A setting that is on or off is a dimension, its values are written as in the file."""
    space = {
        "repetition": {"type": "categorical", "choices": [True, False]},
        "dropout": {"type": "float", "low": 0.0, "high": 0.3, "when": {"repetition": True}},
    }
    config = study_config(space=space)
    found = {suggest(FixedTrial({"repetition": x, "dropout": 0.2}), config) for x in (True, False)}
    assert {(x.repetition, x.dropout) for x in found} == {(True, 0.2), (False, 0.0)}
    assert baseline_params(config) == {"repetition": False}
    assert describe(config)[0].range == "true, false"
    assert describe(config)[1].condition == "repetition is true"
    assert diff_contract(contract(config), json.loads(json.dumps(contract(config)))) == []


def pretrained_study(
    training: dict[str, Any], space: dict[str, Any], **baseline: str
) -> StudyConfig:
    """Return a study whose baseline is random by default, so that the space alone is looked at."""
    lr = {"type": "float", "low": 1e-4, "high": 1e-2}
    return study_config(
        training=training, space={"lr": lr} | space, baseline={"weights": "none"} | baseline
    )


def one_of(*choices: str, **when: list[str]) -> dict[str, Any]:
    """Return a categorical parameter and its condition."""
    return {"type": "categorical", "choices": list(choices), "when": when}


IMAGENET = {"weights": "imagenet"}


@pytest.mark.parametrize(
    ("training", "space", "expected"),
    [
        ({}, {}, []),
        ({}, {"backbone": one_of("a", "b")}, []),
        (IMAGENET, {}, ["resnet18"]),
        (IMAGENET | {"backbone": "a"}, {}, ["a"]),
        (IMAGENET, {"backbone": one_of("b", "a")}, ["a", "b"]),
        ({"weights": "file.pth"}, {"backbone": one_of("a", "b")}, []),
        ({"backbone": "a"}, {"weights": one_of("none", "file.pth")}, []),
        ({"backbone": "a"}, {"weights": one_of("none", "imagenet")}, ["a"]),
        (
            {},
            {"backbone": one_of("a", "b"), "weights": one_of("none", "imagenet", backbone=["b"])},
            ["b"],
        ),
        (
            IMAGENET,
            {"optimizer": one_of("adam", "sgd"), "backbone": one_of("a", optimizer=["sgd"])},
            ["a", "resnet18"],
        ),
        (
            {},
            {
                "optimizer": one_of("adam", "sgd"),
                "backbone": one_of("a", "b", optimizer=["sgd"]),
                "weights": one_of("imagenet", optimizer=["adam"]),
            },
            ["resnet18"],
        ),
    ],
    ids=[
        "random",
        "random-searched",
        "default-backbone",
        "fixed",
        "searched",
        "file",
        "weights-never",
        "weights-searched",
        "weights-of-one",
        "inactive-backbone",
        "never-together",
    ],
)
def test_backbones_with_imagenet_weights_are_those_that_can_come(
    training: dict[str, Any], space: dict[str, Any], expected: list[str]
) -> None:
    """What is fixed, what is searched and its conditions decide together."""
    assert imagenet_backbones(pretrained_study(training, space)) == expected


def test_baselines_backbone_counts_too() -> None:
    """Its weights are those of the notebook's recipe unless the study says otherwise."""
    assert imagenet_backbones(study_config()) == ["resnet18"]
    assert imagenet_backbones(pretrained_study({}, {}, backbone="c", weights="imagenet")) == ["c"]
    shipped = imagenet_backbones(read_study(ROOT / "study.toml"))
    assert len(shipped) == 11
    assert "convnext_tiny" in shipped
