"""Every fault of a study is found, named with its key, and told what would be right."""

from typing import Any

import pytest

from search.config import parse_study
from search.errors import ConfigError


def document(**changes: Any) -> dict[str, Any]:
    """Return a sound study file as TOML reads it, with changed keys."""
    return {
        "name": "tiny",
        "trials": 4,
        "space": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
        **changes,
    }


def search(**parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a sound study file but for its space."""
    return document(space=parameters)


def faults_of(study: dict[str, Any]) -> list[str]:
    """Return the lines of the refusal, none if the study is sound."""
    try:
        parse_study(study, "study.toml")
    except ConfigError as error:
        return str(error).splitlines()
    return []


def categorical(*choices: object, **more: Any) -> dict[str, Any]:
    """Return a categorical parameter."""
    return {"type": "categorical", "choices": list(choices), **more}


def number(low: object, high: object, **more: Any) -> dict[str, Any]:
    """Return a float parameter."""
    return {"type": "float", "low": low, "high": high, **more}


def test_every_fault_is_reported_at_once() -> None:
    """Faults of all kinds in all sections come in one message, each with its key and file."""
    faulty = document(
        trials="ten",
        sampler={"nmae": "tpe"},
        lease={"ttl_seconds": 30, "renew_seconds": 20},
        training={"epochs": 0, "learning_rate": 0.1},
        space={
            "lr": number(0.01, 0.001),
            "dropot": number(0, 1),
            "momentum": number(0.5, 0.9, when={"optimizer": "sgd"}),
            "strength": {"type": "int"},
        },
        baseline={"lr": 0},
    )
    assert faults_of(faulty) == [
        'trials must be a whole number, got "ten" (study.toml)',
        "sampler.nmae is unknown, the nearest known key is name (study.toml)",
        "lease.renew_seconds must be at most a third of lease.ttl_seconds, got 20 and 30"
        " (study.toml)",
        "space.strength.low is missing (study.toml)",
        "space.strength.high is missing (study.toml)",
        "space.dropot is unknown, the nearest known key is dropout (study.toml)",
        "space.lr.low must be below space.lr.high, got 0.01 and 0.001 (study.toml)",
        "space.momentum.when.optimizer is no parameter of [space], the nearest is dropot"
        " (study.toml)",
        "training.epochs must be greater than or equal to 1, got 0 (study.toml)",
        "training.learning_rate is unknown, the nearest known key is lr (study.toml)",
        "baseline.lr must be greater than 0, got 0 (study.toml)",
    ]


@pytest.mark.parametrize(
    ("study", "fault"),
    [
        (document(trails=3), "trails is unknown, the nearest known key is trials"),
        (
            document(name="My Study"),
            "name must match pattern '^[a-z0-9][a-z0-9._-]{0,63}$', got \"My Study\"",
        ),
        (document(trials=0), "trials must be greater than or equal to 1, got 0"),
        (document(trials=2.0), "trials must be a whole number, got 2.0"),
        (document(trials=True), "trials must be a whole number, got true"),
        (
            document(objective="beauty"),
            "objective must be 'accuracy', 'balanced_accuracy', 'auc', 'eer', 'tpr_at_fpr_1e-2',"
            " 'tpr_at_fpr_1e-3', 'min_dcf', 'cllr', 'nll', 'brier' or 'ece', got \"beauty\"",
        ),
        (document(space={}), "space must not be empty"),
        (document(space=3), "space must be a table, got 3"),
        (document(sampler="tpe"), 'sampler must be a table, got "tpe"'),
        (document(training=[1]), "training must be a table, got an array"),
        (document(seed=2**31), "seed must be less than 2147483648, got 2147483648"),
        (
            document(pruner={"name": "median", "reduction": 4}),
            'pruner.reduction is of no use to pruner.name = "median"',
        ),
        (
            document(pruner={"startup_trials": 4}),
            'pruner.startup_trials is of no use to pruner.name = "asha"',
        ),
        (
            document(sampler={"name": "random", "startup_trials": 4}),
            'sampler.startup_trials is of no use to sampler.name = "random"',
        ),
        (
            document(pruner={"min_epochs": 11}),
            "pruner.min_epochs must be at most training.epochs, got 11 and 10",
        ),
        (
            document(training={"seed": 3}),
            "training.seed is not to be set here: set the study's own seed",
        ),
        (
            document(training={"lr": 0.1}),
            "space.lr is fixed by training.lr already: keep one of them",
        ),
        (document(training={"epochs": "10"}), 'training.epochs must be a whole number, got "10"'),
        (
            document(training={"warmup_epochs": float("inf")}),
            "training.warmup_epochs must be finite, got inf",
        ),
        (
            document(training={"optimizer": "lion"}),
            "training.optimizer must be 'adam', 'adamw' or 'sgd', got \"lion\"",
        ),
        (
            document(baseline={"epoch": 3}),
            "baseline.epoch is unknown, the nearest known key is epochs",
        ),
        (
            document(baseline={"seed": 3}),
            "baseline.seed is not to be set here: set the study's own seed",
        ),
        (
            document(baseline={"hop_length": 4096}),
            "baseline: hop_length must be at most n_fft, got 4096 and 1024",
        ),
        (
            document(baseline={"sample_rate": 8000}),
            "baseline.sample_rate must be that of the study's one waveform cache, 16000, got 8000",
        ),
        (
            search(lr={"low": 1e-4, "high": 1e-2}),
            'space.lr.type is missing, allowed: "float", "int" or "categorical"',
        ),
        (
            search(lr={"type": "real"}),
            'space.lr.type must be "float", "int" or "categorical", got "real"',
        ),
        (document(space={"lr": 3}), "space.lr must be a table, got 3"),
        (search(lr=number("a", 1)), 'space.lr.low must be a number, got "a"'),
        (search(lr=number(0.1, float("inf"))), "space.lr.high must be a finite number, got inf"),
        (
            search(lr=number(0.1, 1, stpe=0.1)),
            "space.lr.stpe is unknown, the nearest known key is step",
        ),
        (
            search(lr=number(0.01, 0.01)),
            "space.lr.low must be below space.lr.high, got 0.01 and 0.01",
        ),
        (
            search(dropout=number(0, 1, log=True)),
            "space.dropout.low must be above 0 for a logarithmic range, got 0.0",
        ),
        (
            search(lr=number(0.1, 1, log=True, step=0.1)),
            "space.lr.step must be left out of a logarithmic range, got 0.1",
        ),
        (
            search(dropout=number(0, 0.5, step=0.2)),
            "space.dropout.high must be space.dropout.low plus a whole number of steps of 0.2",
        ),
        (
            search(dropout=number(0, 1, step=1e-9)),
            "space.dropout.step must leave at most 1,000,000 steps from low to high, got 1e-09",
        ),
        (search(dropout=number(0, 1, step=0)), "space.dropout.step must be greater than 0, got 0"),
        (
            search(dropout=number(0.5, 1.5)),
            "space.dropout.high must be less than or equal to 1, got 1.5",
        ),
        (
            search(batch_size=number(16, 64)),
            "space.batch_size.low must be a whole number, got 16.0",
        ),
        (search(optimizer=categorical()), "space.optimizer.choices must not be empty"),
        (
            search(optimizer=categorical("adam", "lion")),
            "space.optimizer.choices[1] must be 'adam', 'adamw' or 'sgd', got \"lion\"",
        ),
        (
            search(optimizer=categorical("adam", "adam")),
            'space.optimizer.choices[1] is there twice, got "adam"',
        ),
        (
            search(dropout=categorical(0.1, True)),
            "space.dropout.choices[1] must be a number, got true",
        ),
        (
            search(repetition=categorical(True, 1)),
            "space.repetition.choices[1] is there twice, got 1",
        ),
        (
            search(repetition=categorical(2, True)),
            "space.repetition.choices[0] must be true or false, got 2",
        ),
        (
            search(optimizer=categorical([1])),
            "space.optimizer.choices[0] must be a text, a finite number, true or false,"
            " got an array",
        ),
        (
            search(weigth_decay=number(0, 1)),
            "space.weigth_decay is unknown, the nearest known key is weight_decay",
        ),
        (search(seed=number(0, 1)), "space.seed is not searchable: set the study's own seed"),
        (
            search(epochs=number(0, 1)),
            "space.epochs is not searchable: set training.epochs, for all trials alike",
        ),
        (
            search(sample_rate=number(0, 1)),
            "space.sample_rate is not searchable: set training.sample_rate, that of the cache",
        ),
        (
            search(lr=number(0.1, 1, when={"optimiser": "sgd"}), optimizer=categorical("sgd")),
            "space.lr.when.optimiser is no parameter of [space], the nearest is optimizer",
        ),
        (
            search(lr=number(0.1, 1, when={"optimiser": "sgd"})),
            "space.lr.when.optimiser is no parameter of [space]",
        ),
        (
            search(lr=number(0.1, 1, when={"lr": 0.1})),
            "space.lr.when.lr is the parameter itself: name another parameter of [space]",
        ),
        (
            search(lr=number(0.1, 1, when={"dropout": 0.5}), dropout=number(0, 1)),
            "space.lr.when.dropout is of type float: a condition needs a categorical parameter",
        ),
        (
            search(
                lr=number(0.1, 1, when={"optimizer": ["sgd", "adma"]}),
                optimizer=categorical("sgd", "adam"),
            ),
            'space.lr.when.optimizer can\'t become "adma", allowed: "sgd", "adam"',
        ),
        (
            search(lr=number(0.1, 1, when={"optimizer": []}), optimizer=categorical("sgd")),
            "space.lr.when.optimizer must not be empty",
        ),
        (
            search(
                optimizer=categorical("sgd", when={"schedule": "step"}),
                schedule=categorical("step", when={"optimizer": "sgd"}),
            ),
            "space.optimizer.when is part of a cycle: optimizer needs schedule needs optimizer",
        ),
        (
            document(
                training={"optimizer": "sgd"},
                space={"momentum": number(0.1, 0.5, when={"optimizer": "sgd"})},
            ),
            "space.momentum.when.optimizer is fixed in [training]: name a parameter of [space]",
        ),
        (
            search(hop_length=categorical(256, 2048)),
            "training and space together: hop_length must be at most n_fft, got 2048 and 1024",
        ),
        (
            search(n_fft=categorical(1024, 128), hop_length=categorical(64, 256)),
            "training and space together: hop_length must be at most n_fft, got 256 and 128",
        ),
    ],
)
def test_fault_is_named_with_its_key(study: dict[str, Any], fault: str) -> None:
    """A study with one fault is refused with that line, which ends with the file's name."""
    expected = f"{fault} (study.toml)"
    assert expected in faults_of(study)
    related = {line.partition(" ")[0] for line in faults_of(study)}
    assert len(related) <= 2


def test_values_are_judged_together_only_where_they_meet() -> None:
    """A long hop that comes only with the long Fourier transform is no fault."""
    sound = search(
        n_fft=categorical(512, 4096),
        hop_length=number(0, 0)
        | {"type": "int", "low": 600, "high": 2048, "when": {"n_fft": 4096}},
    )
    assert faults_of(sound) == []
    sound["space"]["hop_length"].pop("when")
    assert faults_of(sound) == [
        "training and space together: hop_length must be at most n_fft, got 600 and 512"
        " (study.toml)"
    ]


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        (
            {"frontend": categorical("logmel", "lfcc"), "phase": categorical(False, True)},
            'frontend "lfcc" has no phase: set phase = false',
        ),
        (
            {"pooling": categorical("mean", "attention"), "train_windows": categorical(1, 2, 3)},
            'pooling "attention" learns from several windows: set train_windows above 1',
        ),
        (
            {"modality": categorical("audio", "video"), "train_windows": categorical(1, 2, 3)},
            'modality "video" hears no windows: set train_windows = 1',
        ),
        (
            {"n_fft": categorical(*range(512, 1512)), "hop_length": categorical(*range(64, 1064))},
            "hop_length must be at most n_fft, got 1063 and 512",
        ),
        (
            {
                "precision": categorical("auto", "fp32"),
                "frontend": categorical("lfcc", when={"precision": "fp32"}),
                "n_lfcc": categorical(60, 200, when={"frontend": "lfcc"}),
            },
            "n_lfcc must be at most n_mels, got 200 and 128",
        ),
    ],
)
def test_joint_fault_is_found_in_a_large_space(parameters: dict[str, Any], fault: str) -> None:
    """Sixteen more parameters, numbers and texts, hide nothing."""
    names = ("lr", "weight_decay", "dropout", "drop_path", "strength", "label_smoothing",
             "layer_decay", "warmup_epochs", "step_gamma", "momentum", "codec_share", "focal_gamma",
             "grad_clip")  # fmt: skip
    others = {name: number(0.01, 0.9) for name in names} | {
        "optimizer": categorical("adam", "adamw", "sgd"),
        "schedule": categorical("cosine", "step", "constant"),
        "sampling": categorical("natural", "balanced"),
    }
    for study in (search(**others, **parameters), search(**parameters, **others)):
        assert faults_of(study) == [f"training and space together: {fault} (study.toml)"]


def test_many_conditions_are_judged_at_once() -> None:
    """What hangs on very many parameters is judged without all of their combinations."""
    names = ("lr", "weight_decay", "dropout", "drop_path", "strength", "label_smoothing",
             "layer_decay", "warmup_epochs", "step_gamma", "momentum", "codec_share", "focal_gamma",
             "grad_clip", "ema_decay", "modality_dropout", "window_seconds")  # fmt: skip
    parents = {name: categorical(0.1, 0.2, 0.3, 0.4, 0.5) for name in names}
    phase = categorical(True, when={name: [0.2, 0.4] for name in names})
    study = search(**parents, phase=phase, frontend=categorical("logmel", "notebook"))
    assert faults_of(study) == [
        'training and space together: frontend "notebook" has no phase: set phase = false'
        " (study.toml)"
    ]


def test_two_cycles_are_two_faults() -> None:
    """Each cycle of conditions is named once."""
    study = search(
        optimizer=categorical("sgd", when={"schedule": "step"}),
        schedule=categorical("step", when={"optimizer": "sgd"}),
        augmentation=categorical("none", when={"precision": "fp32"}),
        precision=categorical("fp32", when={"augmentation": "none"}),
    )
    assert len([line for line in faults_of(study) if "cycle" in line]) == 2


def test_condition_on_a_faulty_parameter_is_not_a_second_fault() -> None:
    """A parameter that can't be read is still known by its name."""
    study = search(optimizer={"type": "categorical"}, lr=number(0.1, 1, when={"optimizer": "sgd"}))
    assert faults_of(study) == ["space.optimizer.choices is missing (study.toml)"]
