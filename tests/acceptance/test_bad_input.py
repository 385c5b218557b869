"""Everything a user can get wrong: a clear message, the right exit code, no traceback."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from search.claim import ClaimedTrial, Claims
from search.study import open_study
from storage.database import Database, parse_url
from storage.embedded import embedded_server
from storage.leases import Leases
from tests.command import TINY_STUDY, Result, limit_files, run, succeed, user_folder
from tests.media import make_tone, small_clips, write_dataset, write_media, write_silent_picture

DATA_FAILED, CONFIG_WRONG = 1, 2
PASSWORD = "not-to-be-seen"


def expect(result: Result, code: int, *words: str) -> None:
    """The command ended with this code and said all these words on the standard error."""
    assert result.code == code, result
    for word in words:
        assert word in result.err, result.err


def write_study(folder: Path, *changes: tuple[str, str], name: str = "study.toml") -> Path:
    """Write the tiny study with some of its text replaced."""
    text = TINY_STUDY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / name).write_text(text)
    return folder / name


# --- the command line itself


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["serach"], "No such command 'serach'"),
        (["prepare"], "Missing argument 'DATA'"),
        (["prepare", "data", "--fast"], "No such option"),
        (["prepare", "data", "--sample-rate", "0"], "--sample-rate"),
        (["up", "study.toml", "--workers", "0"], "--workers"),
        (["up", "study.toml", "--port", "70000"], "--port"),
        (["sample-data", "demo", "--clips", "3"], "--clips"),
        (["audit", "data", "--seed", "5000000000"], "--seed"),
        (["predict", "model", "data", "--tta", "0"], "--tta"),
        (["train", "best.toml", "--on", "val"], "--on"),
        (["status", "tiny"], "melsearch up study.toml --data DATA"),
        (["create", "study.toml"], "no such study file: study.toml"),
        (["prepare", "data", "--study", "study.toml"], "no such study file: study.toml"),
        (["status", "study.toml"], "no such study file: study.toml"),
        (["worker", "study.toml"], "no such study file: study.toml"),
        (["train", "best.toml"], "no such file: best.toml"),
    ],
)
def test_wrong_usage_is_told(tmp_path: Path, arguments: list[str], word: str) -> None:
    """A slip on the command line is explained, exits with 2 and leaves nothing behind."""
    expect(run(tmp_path, *arguments), CONFIG_WRONG, word)
    assert list(tmp_path.iterdir()) == []


def test_unknown_device_is_told(tmp_path: Path) -> None:
    """The devices that this machine has are named."""
    result = run(tmp_path, "predict", "model", "data", "--device", "gpu")
    expect(result, CONFIG_WRONG, "device must be one of auto, cpu", "'gpu'")


# --- the data folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", ["can't open the folder nowhere", "No such file"]),
        ("file", ["not a folder: file"]),
        ("empty", ["4 faults", "trainset/: no such folder", "valset_label.txt: no such file"]),
        ("[/b]\udcff", ["can't open the folder"]),
    ],
)
def test_folder_that_holds_no_data_is_told(tmp_path: Path, name: str, words: list[str]) -> None:
    """No such folder, a file, an empty folder, a name that is no text: each has its message."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    expect(run(tmp_path, "prepare", name), DATA_FAILED, *words)
    assert not (tmp_path / ".melsearch").exists()


def test_every_fault_of_the_labels_is_told_at_once(tmp_path: Path) -> None:
    """Labels that can't be trusted are refused before any decoding, all faults in one message."""
    data = write_dataset(tmp_path / "data", small_clips())
    rows = ["000.wav,0", "000.wav,1", "001.wav,2", "../x.wav,0", "/etc/passwd,1", "n\udce4.wav,1"]
    text = "video_name,target\n" + "\n".join(rows)
    (data / "trainset_label.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    (data / "valset_label.txt").write_text("name,label\n000.wav,0\n")
    expect(
        run(tmp_path, "prepare", data),
        DATA_FAILED,
        "6 faults",
        "line 3: '000.wav' is 1, but 0 in line 2",
        "line 4: target must be 0, 1, real or fake, got '2'",
        "line 5: video_name must stay inside the folder",
        "line 6: video_name must be relative",
        "line 7: isn't UTF-8",
        "valset_label.txt, line 1: needs one column video_name and one target",
    )
    assert not (tmp_path / ".melsearch").exists()


def test_missing_label_file_is_told(tmp_path: Path) -> None:
    """Both spellings of the missing file are named."""
    data = write_dataset(tmp_path / "data", small_clips())
    (data / "valset_label.txt").unlink()
    result = run(tmp_path, "prepare", data)
    expect(result, DATA_FAILED, "valset_label.txt: no such file (nor val_label.txt)")


def test_broken_videos_are_rejected_with_their_reason(tmp_path: Path) -> None:
    """Every kind of broken file is listed with its reason; whatever can be heard is kept.

    The label file has a byte order mark, Windows line ends, words for targets and a repetition.
    """
    data = write_dataset(tmp_path / "data", small_clips())
    rejects, kept = write_odd_files(data / "trainset")
    rows = ["000.wav,real", "001.wav,FAKE", "002.wav,0", "003.wav,1", "000.wav,0"]
    rows += [f'"{name}",1' for name in [*rejects, *kept]]
    text = "\ufeffvideo_name,target\r\n" + "\r\n".join(rows) + "\r\n"
    (data / "trainset_label.txt").write_bytes(text.encode())
    write_media(data / "trainset" / "unlabelled.mp4")
    out = succeed(tmp_path, "prepare", data)
    for name, reason in {**rejects, "unlabelled.mp4": "no label"}.items():
        assert f"rejected 1: {reason} ({name})" in out
    assert f"{4 + len(kept)} " in next(line for line in out.splitlines() if "train " in line)
    assert "'000.wav' again" in out
    assert "1 clips are longer than 10 min: cut to that" in out
    (tmp_path / "best.toml").write_text('backbone = "test_resnet"\n')
    told = run(tmp_path, "cross-validate", "best.toml", "--folds", "20", "--data", data).err
    assert "rejected 1: damaged or truncated (truncated.mp4)" in told
    assert "warning: 1 clips are longer than 10 min: cut to that" in told


def write_odd_files(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Write files that are rejected, by name with their reasons, and odd ones that are kept."""
    (folder / "zero.mp4").touch()
    write_media(folder / "truncated.mp4", make_tone(seconds=2.0), video=True)
    whole = (folder / "truncated.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("this is no video")
    write_silent_picture(folder / "mute.mp4")
    write_media(folder / "short.mp4", make_tone(seconds=0.02), video=True)
    write_media(folder / "silent.mp4", np.zeros((1, 16_000), np.float32))
    (folder / "circle.mp4").symlink_to(folder / "circle.mp4")
    (folder / "folder.mp4").mkdir()
    rejects = {
        "zero.mp4": "empty file",
        "truncated.mp4": "damaged or truncated",
        "text.mp4": "not a media file",
        "mute.mp4": "no audio track",
        "short.mp4": "shorter than 0.1 s",
        "silent.mp4": "silent",
        "circle.mp4": "unreadable",
        "folder.mp4": "a folder, not a file",
        "gone.mp4": "no such file",
    }
    kept = ["two  words.mp4", "голос-🎤.mp4", "two\nlines.mp4", "stereo.mp4", "hour.wav"]
    for number, name in enumerate(kept):
        rate, channels = (48_000, 2) if name == "stereo.mp4" else (16_000, 1)
        tone = make_tone(500 + 10 * number, rate=rate, channels=channels)
        write_media(folder / name, tone, rate, video=name.endswith(".mp4"))
    make_an_hour_long(folder / "hour.wav")
    return rejects, kept


def make_an_hour_long(path: Path) -> None:
    """Make a WAV file of 16 kHz an hour long; the silence at its end takes no space on disk."""
    data = bytearray(path.read_bytes())
    num_bytes = 3600 * 16_000 * 2
    start = data.index(b"data") + 4
    data[4:8] = (num_bytes + start - 4).to_bytes(4, "little")
    data[start : start + 4] = num_bytes.to_bytes(4, "little")
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(start + 4 + num_bytes)


def test_split_with_one_class_warns_and_makes_no_study(tmp_path: Path, database_url: str) -> None:
    """`prepare` warns of a missing class; `create` and its check refuse, and leave no study."""
    clips = {"train": {"a.wav": 0, "b.wav": 1}, "val": {"c.wav": 1, "d.wav": 1}}
    data = write_dataset(tmp_path / "data", clips)
    study = write_study(tmp_path)
    environ = {"MELSEARCH_STORAGE": database_url}
    assert "valset/ has no real clip" in succeed(tmp_path, "prepare", data)
    for extra in (["--check"], []):
        result = run(tmp_path, "create", study, "--data", data, *extra, environ=environ)
        expect(result, DATA_FAILED, "the val split has no real clip (of 2)")
    result = run(tmp_path, "status", "tiny", environ=environ)
    expect(result, CONFIG_WRONG, "no study is called 'tiny'")


def test_full_disk_ends_prepare_and_loses_nothing(tmp_path: Path) -> None:
    """Without space left `prepare` says so; with space again the same command comes to its end."""
    data = write_dataset(tmp_path / "data", small_clips())
    expect(run(tmp_path, "prepare", data, before=limit_files(50_000)), DATA_FAILED, "no space left")
    assert "cache built" in succeed(tmp_path, "prepare", data)


# --- the study file


def test_every_fault_of_a_study_file_is_told_at_once(tmp_path: Path) -> None:
    """Unknown keys, wrong types, low above high and unknown parents: one line each, exit code 2."""
    study = write_study(
        tmp_path,
        ("trials = 3", 'trials = "three"\nobjektive = "auc"'),
        ("high = 1e-2", 'high = 1e-4\nwhen = { optimiser = "sgd" }'),
    )
    expect(
        run(tmp_path, "create", study, "--check"),
        CONFIG_WRONG,
        'trials must be a whole number, got "three"',
        "objektive is unknown, the nearest known key is objective",
        "space.lr.low must be below space.lr.high",
        "optimiser",
        "(study.toml)",
    )
    assert not (tmp_path / ".melsearch").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"name = [", "not TOML"), (b'name = "\xff"', "not UTF-8"), (b"", "is missing")],
    ids=["toml", "utf-8", "empty"],
)
def test_file_that_is_no_study_is_told(tmp_path: Path, content: bytes, word: str) -> None:
    """Something else than a study file is named with its line, and exits with 2."""
    (tmp_path / "study.toml").write_bytes(content)
    expect(run(tmp_path, "up", "study.toml", "--data", "data"), CONFIG_WRONG, word, "study.toml")


def test_unknown_backbone_is_told_with_the_nearest_names(tmp_path: Path) -> None:
    """A backbone that timm lacks is refused before anything is made."""
    study = write_study(tmp_path, ('backbone = "test_resnet"', 'backbone = "resnet81"'))
    result = run(tmp_path, "create", study)
    expect(result, CONFIG_WRONG, 'training.backbone must be a timm model, got "resnet81"')
    assert "resnet18" in result.err.partition("nearest are:")[2]
    assert not (tmp_path / ".melsearch").exists()


# --- the database


@pytest.mark.parametrize(
    ("url", "code", "word"),
    [
        (f"postgresql://u:{PASSWORD}@127.0.0.1:1/x", DATA_FAILED, "can't be reached"),
        (f"mysql://u:{PASSWORD}@127.0.0.1/x", CONFIG_WRONG, "must be a postgresql:// URL"),
        (f"{PASSWORD}", CONFIG_WRONG, "MELSEARCH_STORAGE must be postgresql://"),
    ],
)
def test_database_that_is_not_there_is_told(tmp_path: Path, url: str, code: int, word: str) -> None:
    """A service that is down exits with 1, a wrong address with 2; neither shows the password."""
    result = run(tmp_path, "status", "tiny", environ={"MELSEARCH_STORAGE": url})
    expect(result, code, word)
    assert PASSWORD not in result.err


def test_wrong_password_is_told(tmp_path: Path, database_url: str) -> None:
    """A password that the server refuses exits with 2 and is not shown."""
    demand_password(database_url, "stranger")
    url = database_url.replace("postgres@/", f"stranger:{PASSWORD}@/")
    result = run(tmp_path, "status", "tiny", environ={"MELSEARCH_STORAGE": url})
    expect(result, CONFIG_WRONG, "password authentication failed", "set MELSEARCH_STORAGE")
    assert PASSWORD not in result.err


def demand_password(url: str, role: str) -> None:
    """Make the server ask this one role, a new one, for a password."""
    engine = sa.create_engine(parse_url(url, {}), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        rules = Path(connection.execute(sa.text("show hba_file")).scalar_one())
        rules.write_text(f"local all {role} scram-sha-256\n{rules.read_text()}")
        connection.execute(sa.text(f"create role {role} login password 'the right one'"))
        connection.execute(sa.text("select pg_reload_conf()"))
    engine.dispose()


# --- a study that is there


@pytest.fixture(scope="module")
def desk() -> Iterator[Path]:
    """A folder with data, a study of one complete trial, and the database up all the while."""
    other = {split: {f"{i}.wav": i % 2 for i in range(6)} for split in ("train", "val")}
    with user_folder() as folder, embedded_server(folder / ".melsearch" / "postgres") as url:
        write_dataset(folder / "data", small_clips())
        write_dataset(folder / "other", other)
        study = write_study(folder)
        succeed(folder, "create", study, "--data", "data")
        complete_a_trial(url)
        yield folder


def complete_a_trial(url: str) -> None:
    """Let the study's baseline be complete, without the training."""
    database = Database(parse_url(url, {}))
    study = open_study(database, "tiny")
    claims = Claims(study, Leases(database, 60), "test", "cpu")
    claimed = claims.claim()
    assert isinstance(claimed, ClaimedTrial)
    claims.finish(claimed, TrialState.COMPLETE, 0.75)
    database.close()


@pytest.mark.parametrize("command", ["status", "export"])
def test_unknown_study_is_told_with_those_that_there_are(desk: Path, command: str) -> None:
    """A slip in the name is told with the names that the database has."""
    expect(run(desk, command, "tony"), CONFIG_WRONG, "no study is called 'tony'; there are: tiny")


@pytest.mark.parametrize(
    ("changes", "data", "words"),
    [
        (("high = 1e-2", "high = 1e-1"), "data", ["space.lr.high: study 0.01, here 0.1"]),
        (("trials = 3", "trials = 2"), "data", ["trials: study 3, here 2 (a budget only grows)"]),
        (("trials = 3", "trials = 3"), "other", ["data_fingerprint: study"]),
    ],
    ids=["space", "budget", "data"],
)
def test_study_of_that_name_with_another_contract_is_told(
    desk: Path, changes: tuple[str, str], data: str, words: list[str]
) -> None:
    """What differs is printed line by line, and the study stays what it was."""
    before = succeed(desk, "status", "tiny", "--json")
    study = write_study(desk, changes, name="changed.toml")
    result = run(desk, "up", study, "--data", data)
    expect(result, CONFIG_WRONG, "frozen with another contract", *words)
    assert succeed(desk, "status", "tiny", "--json") == before


def test_worker_with_a_cache_of_other_data_does_not_join(desk: Path) -> None:
    """A worker whose cache was made from other data prints both fingerprints and exits with 2."""
    home = desk / "elsewhere"
    succeed(desk, "prepare", "other", environ={"MELSEARCH_HOME": str(home)})
    (home / "postgres").symlink_to(desk / ".melsearch" / "postgres")
    result = run(desk, "worker", "tiny", environ={"MELSEARCH_HOME": str(home)})
    expect(result, CONFIG_WRONG, "are not here", "data_fingerprint: study", "melsearch prepare")


def test_full_disk_at_export_keeps_the_older_file(desk: Path) -> None:
    """What can't be written whole is not written at all."""
    (desk / "best.toml").write_text("older")
    files = set(desk.iterdir())
    result = run(desk, "export", "tiny", before=limit_files(100))
    expect(result, DATA_FAILED, "File too large")
    assert (desk / "best.toml").read_text() == "older"
    assert set(desk.iterdir()) == files
    expect(run(desk, "export", "tiny", "-o", "data"), DATA_FAILED, "data: a folder")
    expect(run(desk, "export", "tiny", "--trial", "1"), CONFIG_WRONG, "trial 1 has no value")


def test_taken_port_is_told(desk: Path) -> None:
    """The dashboard's port that another program has is named, with the option that mends it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(desk, "dashboard", "--port", str(port))
    expect(result, DATA_FAILED, f"127.0.0.1:{port}", "Address already in use", "--port")


# --- the recipe and the model


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lr = [", ["best.toml can't be read as TOML"]),
        (
            'lr = -1\nepochs = "many"\nbackbon = "x"\norigin = 5\n',
            ["lr: ", "got -1", "epochs: ", "got 'many'", "backbon is no setting", "origin must be"],
        ),
        ('backbone = "resnet81"', ["backbone must be a timm model, got 'resnet81'", "resnet18"]),
        (
            'video_backbone = "resnet81"',
            ["video_backbone must be a timm model, got 'resnet81'", "resnet18"],
        ),
        ("lr = 0.1", ["the data with fingerprint (none is named) are not in", "--data DATA"]),
    ],
    ids=["toml", "values", "backbone", "video-backbone", "no-data"],
)
def test_recipe_of_nonsense_is_told(tmp_path: Path, content: str, words: list[str]) -> None:
    """best.toml edited into nonsense exits with 2, with every fault, before any training."""
    (tmp_path / "best.toml").write_text(content)
    expect(run(tmp_path, "train", "best.toml"), CONFIG_WRONG, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["best.toml"]


def test_data_that_leave_the_objective_undefined_are_told(tmp_path: Path) -> None:
    """A recipe that chooses by AUC and other data, whose validation clips are all fake."""
    recipe = 'backbone = "test_resnet"\n[origin]\nobjective = "auc"\n'
    (tmp_path / "best.toml").write_text(recipe)
    write_dataset(tmp_path / "data", {"train": {"a.wav": 0, "b.wav": 1}, "val": {"c.wav": 1}})
    result = run(tmp_path, "train", "best.toml", "--data", "data")
    expect(result, DATA_FAILED, "objective auc needs real and fake", "got 0 real and 1 fake")
    assert not (tmp_path / "model").exists()


def test_model_folder_with_a_file_missing_is_told(tmp_path: Path) -> None:
    """The files that a model folder lacks are named, and no submission is written."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.toml").touch()
    result = run(tmp_path, "predict", "model", ".", "-o", "out.csv")
    expect(result, DATA_FAILED, "model lacks model.safetensors, metrics.json")
    assert not (tmp_path / "out.csv").exists()
