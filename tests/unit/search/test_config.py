"""A study file is read whole, or refused with every fault at once."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import ValidationError

from search.config import (
    StudyConfig,
    check_backbones,
    parse_study,
    read_study,
    read_study_name,
)
from search.errors import ConfigError, SearchError
from trainer.config import TrainConfig, notebook_recipe

ROOT = Path(__file__).parents[3]
STUDY_FILES = sorted([ROOT / "study.toml", *(ROOT / "examples").glob("*.toml")])


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


def categorical(*choices: object, **more: Any) -> dict[str, Any]:
    """Return a categorical parameter."""
    return {"type": "categorical", "choices": list(choices), **more}


def number(low: object, high: object, **more: Any) -> dict[str, Any]:
    """Return a float parameter."""
    return {"type": "float", "low": low, "high": high, **more}


@pytest.mark.parametrize("path", STUDY_FILES, ids=lambda path: path.name)
def test_study_files_of_the_repository_are_sound(path: Path) -> None:
    """Every study file that we ship is read, and has only backbones that timm has."""
    config = read_study(path)
    check_backbones(config, path.name)
    assert config.name == ("ffdv" if path.name == "study.toml" else path.stem)


def test_there_are_several_examples() -> None:
    """The test above finds the files that it is about."""
    assert {"study.toml", "speech.toml", "demo.toml"} <= {path.name for path in STUDY_FILES}


def test_default_study_searches_what_the_notebook_names() -> None:
    """The default study tries eight to twelve backbones, and the lr range of the notebook."""
    config = read_study(ROOT / "study.toml")
    assert 8 <= len(config.space["backbone"].corners()) <= 12
    assert config.space["lr"].corners() == {"low": 1e-5, "high": 1e-2}
    assert config.baseline_config() == notebook_recipe()


def test_speech_example_downloads_nothing() -> None:
    """The example for the CPU needs no weights from the internet, not even for its baseline."""
    config = read_study(ROOT / "examples" / "speech.toml")
    assert config.baseline_config().weights == "none"
    assert config.fixed_values()["weights"] == "none"


def test_reading_a_study_is_a_light_start() -> None:
    """Neither torch nor timm nor Optuna is imported to read a study file."""
    code = "import sys, search.config; print({'torch', 'timm', 'optuna'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_defaults_are_filled_in() -> None:
    """A short study file is enough."""
    config = parse_study(document(), "study.toml")
    assert (config.objective, config.seed, config.max_failed_trials) == ("accuracy", 0, 5)
    assert (config.sampler.name, config.pruner.name) == ("tpe", "asha")
    assert (config.lease.ttl_seconds, config.lease.renew_seconds) == (60.0, 15.0)


def test_study_is_frozen() -> None:
    """No field of a study can be changed once it is read."""
    config = parse_study(document(), "study.toml")
    with pytest.raises(ValidationError, match="frozen"):
        config.trials = 5  # type: ignore[misc]


def test_unknown_backbones_are_refused_with_the_nearest_names() -> None:
    """Each unknown backbone is named with its key, wherever it stands."""
    study = document(training={"backbone": "resnet81"}, baseline={"backbone": "resnet_18"})
    with pytest.raises(ConfigError) as raised:
        check_backbones(parse_study(study, "study.toml"))
    training, baseline = str(raised.value).splitlines()
    assert training.startswith('training.backbone must be a timm model, got "resnet81", the near')
    assert "resnet18" in baseline
    study = search(backbone=categorical("resnet18", "efficientnetb0"))
    with pytest.raises(ConfigError, match=r"space\.backbone\.choices\[1\] .* efficientnet_b0"):
        check_backbones(parse_study(study, "study.toml"))


def test_baseline_is_the_notebooks_recipe_on_the_studys_cache() -> None:
    """Sample rate and seed come from the study, all else from the recipe and its overrides."""
    study = document(seed=7, training={"sample_rate": 8000}, baseline={"epochs": 12})
    config = parse_study(study, "study.toml")
    assert config.baseline_config() == notebook_recipe().model_copy(
        update={"seed": 7, "sample_rate": 8000, "epochs": 12}
    )
    assert (config.sample_rate, config.max_epochs) == (8000, 12)


def test_training_of_a_trial_takes_fixed_values_params_and_seed() -> None:
    """What a trial trains is the fixed values plus its parameters."""
    config = parse_study(document(seed=7, training={"epochs": 3}), "study.toml")
    assert config.train_config({"lr": 0.5}) == TrainConfig(epochs=3, lr=0.5, seed=7)


def test_study_is_restored_from_json() -> None:
    """What the database keeps gives the same study again."""
    for path in STUDY_FILES:
        config = read_study(path)
        assert StudyConfig.model_validate_json(config.model_dump_json()) == config
        assert StudyConfig.model_validate(config.model_dump(mode="json")) == config


def test_model_refuses_a_broken_rule_too() -> None:
    """A study that came another way than by a file keeps the same rules."""
    with pytest.raises(ValidationError, match=r"space\.lr\.low must be below"):
        StudyConfig.model_validate(search(lr=number(1, 0.1)))


def write(path: Path, content: bytes) -> Path:
    """Write a study file."""
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = 'x'\ntrials = \n", r"not TOML: .*line 2.* \(study\.toml\)"),
        (b"name = 'x'\nname = 'y'\n", r"not TOML: .*line 2.* \(study\.toml\)"),
        (b"name = 'x'\n# \xff\xfe\n", r"not UTF-8, save it as UTF-8 \(study\.toml, line 2\)"),
        (b"a = " + b"[" * 100_000, r"nested too deeply \(study\.toml\)"),
        (b"trials = " + b"9" * 10_000, r"not TOML: .* \(study\.toml\)"),
        (b"", r"name is missing \(study\.toml\)\n.*trials is missing"),
    ],
)
def test_file_that_is_no_study_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Bytes that are no TOML are refused with the line where it breaks."""
    with pytest.raises(ConfigError, match=message):
        read_study(write(tmp_path / "study.toml", content))


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    """A path that can't be read is named."""
    with pytest.raises(ConfigError, match=r"no such study file: .*none\.toml"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="can't read the study file"):
        read_study(tmp_path)
    assert issubclass(ConfigError, SearchError)


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    """A study file from a Windows editor is as good as any."""
    text = tomli_w.dumps(document()).replace("\n", "\r\n").encode("utf-8-sig")
    path = write(tmp_path / "study.toml", text)
    assert read_study(path) == parse_study(document(), "study.toml")


def test_name_is_read_of_a_file_that_is_faulty_elsewhere(tmp_path: Path) -> None:
    """To look at a study needs its name alone."""
    path = tmp_path / "study.toml"
    path.write_text('name = "tiny"\ntrials = "many"\ncolour = 1\n[space.lr]\ntype = "flaot"\n')
    assert read_study_name(path) == "tiny"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trials = 4", "name is missing (study.toml)"),
        ("name = 4", "name must be a text, got 4 (study.toml)"),
        ("[name]", "name must be a text, got a table (study.toml)"),
        ('name = "Ö"', 'name must match pattern .*, got "Ö" (study.toml)'),
        ('name = "a.toml"', 'name must not end in .toml, .* got "a.toml" (study.toml)'),
        ("name = ", "not TOML: .*(study.toml)"),
    ],
)
def test_file_without_a_name_is_refused(tmp_path: Path, content: str, message: str) -> None:
    """The message is that of the whole file's reading."""
    path = tmp_path / "study.toml"
    path.write_text(content)
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ConfigError, match=pattern):
        read_study_name(path)
    with pytest.raises(ConfigError, match=pattern):
        read_study(path)
