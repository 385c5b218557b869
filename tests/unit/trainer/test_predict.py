"""Predictions: rows and order of the submission, unreadable files, augmentation, bad input."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from search.views import show_predict_report
from tests.clips import tiny_config
from tests.media import make_tone, write_media
from trainer.config import TrainConfig
from trainer.dataset import Reject
from trainer.errors import DataError, ModelError, TrainerError
from trainer.folder import write_model_folder
from trainer.frontend import build_frontend
from trainer.model import build_model
from trainer.predict import predict
from trainer.recipe import Recipe

CPU = torch.device("cpu")
PRIOR = 0.72


def make_model(out: Path, config: TrainConfig) -> Path:
    """Write a model folder with random weights."""
    torch.manual_seed(3)
    model = build_model(config, build_frontend(config).num_channels)
    metrics = {
        "on": "train",
        "epochs": 1,
        "best_epoch": 1,
        "calibration": {"temperature": 2.0},
        "prior": PRIOR,
    }
    write_model_folder(out, [(Recipe(config), model.state_dict())], metrics, "card")
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    return make_model(tmp_path_factory.mktemp("models") / "model", tiny_config())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of three sounds and a broken file."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, hertz in (("b.wav", 300.0), ("a.flac", 900.0), ("c d é.wav", 1500.0)):
        write_media(folder / name, make_tone(hertz, seconds=1.3))
    (folder / "broken.mp4").write_bytes(b"")
    return folder


def run(model: Path, data: Path, out: Path, tta: int = 1) -> list[tuple[str, float]]:
    """Predict and return the rows of the submission."""
    predict(model, data, out, tta=tta, device=CPU, num_processes=1)
    return read_rows(out)


def read_rows(out: Path) -> list[tuple[str, float]]:
    """Return the rows of a submission; checks its header."""
    with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        header, *rows = csv.reader(file)
    assert header == ["video_name", "y_pred"]
    return [(name, float(value)) for name, value in rows]


def test_folder_is_predicted_in_the_order_of_names(model: Path, data: Path, tmp_path: Path) -> None:
    """The file that can't be read gets the prior and is reported with its reason."""
    counted: list[tuple[int, int]] = []
    report = predict(
        model,
        data,
        tmp_path / "new" / "submission.csv",
        device=CPU,
        progress=lambda done, total: counted.append((done, total)),
        num_processes=1,
    )
    rows = read_rows(tmp_path / "new" / "submission.csv")
    assert [name for name, _ in rows] == ["a.flac", "b.wav", "broken.mp4", "c d é.wav"]
    assert len({value for _, value in rows}) == 4
    assert all(0 < value < 1 for _, value in rows)
    assert rows[2][1] == PRIOR
    assert report.rows == 4
    assert report.unreadable == (Reject("", "broken.mp4", "empty file"),)
    assert counted[-1] == (4, 4)


def test_submission_file_gives_the_rows_and_their_order(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each name is looked for in the root and in the splits' folders; repeated rows are kept."""
    for number, place in enumerate(["", "valset", "testset", "trainset"]):
        (tmp_path / "data" / place).mkdir(exist_ok=True, parents=True)
        tone = make_tone(300.0 + 300 * number, seconds=0.6)
        write_media(tmp_path / "data" / place / f"{number}.wav", tone)
    names = ["3.wav", "1.wav", "gone.mp4", "0.wav", "2.wav", "1.wav", "gone.mp4"]
    lines = ["video_name,y_pred", *(f"{name},0.5" for name in names)]
    (tmp_path / "data" / "prediction.txt.csv").write_text("\n".join(lines))
    report = predict(model, tmp_path / "data", tmp_path / "out.csv", device=CPU, num_processes=1)
    rows = read_rows(tmp_path / "out.csv")
    assert [name for name, _ in rows] == names
    assert rows[1] == rows[5]
    assert rows[2][1] == PRIOR
    assert len({value for _, value in rows}) == 5
    assert report.unreadable == (Reject("", "gone.mp4", "no such file"),)
    assert report.num_prior == 2
    show_predict_report(report, Path("out.csv"))
    assert capsys.readouterr().out.endswith("\n7 rows in out.csv, 2 of them with the prior\n")


def test_root_without_a_submission_file_predicts_its_validation_split(
    model: Path, tmp_path: Path
) -> None:
    """The labels are not needed."""
    for place in ("valset", "trainset"):
        (tmp_path / place).mkdir()
        write_media(tmp_path / place / f"{place}.wav")
    rows = run(model, tmp_path, tmp_path / "out.csv")
    assert [name for name, _ in rows] == ["valset.wav"]


def test_augmented_predictions_differ_and_repeat(model: Path, data: Path, tmp_path: Path) -> None:
    """More passes change the probabilities a little; the same passes give the same bytes."""
    plain = run(model, data, tmp_path / "plain.csv")
    augmented = run(model, data, tmp_path / "augmented.csv", tta=3)
    run(model, data, tmp_path / "again.csv", tta=3)
    assert plain != augmented
    assert np.allclose([x for _, x in plain], [x for _, x in augmented], atol=0.2)
    assert (tmp_path / "augmented.csv").read_bytes() == (tmp_path / "again.csv").read_bytes()


def test_notebook_model_predicts_from_images(data: Path, tmp_path: Path) -> None:
    """The images are made on the way."""
    config = tiny_config(frontend="notebook", augmentation="notebook", sample_rate=16_000)
    rows = run(make_model(tmp_path / "model", config), data, tmp_path / "out.csv", tta=2)
    assert rows[2] == ("broken.mp4", PRIOR)
    assert all(0 < value < 1 for _, value in rows)


def test_name_of_other_bytes_comes_out_as_it_was(model: Path, tmp_path: Path) -> None:
    """A file name outside of UTF-8, and one with a newline, keep their row."""
    (tmp_path / "data").mkdir()
    write_media(tmp_path / "tone.wav")
    sound = (tmp_path / "tone.wav").read_bytes()
    names = [os.fsdecode(b"caf\xe9.wav"), "two\nlines.wav"]
    for name in names:
        (tmp_path / "data" / name).write_bytes(sound)
    rows = run(model, tmp_path / "data", tmp_path / "out.csv")
    assert [name for name, _ in rows] == names


def test_name_in_another_unicode_form_finds_its_file(model: Path, tmp_path: Path) -> None:
    """Some systems decompose the letters of a file's name."""
    write_media(tmp_path / "cafe\u0301.wav")
    (tmp_path / "prediction.txt.csv").write_text("video_name,y_pred\ncaf\u00e9.wav,0.5\n")
    report = predict(model, tmp_path, tmp_path / "out.csv", device=CPU, num_processes=1)
    assert report.unreadable == ()


def test_overlong_name_gets_the_prior(model: Path, data: Path) -> None:
    """No file system knows such a name."""
    name = "x" * 5000 + ".mp4"
    (data / "prediction.txt.csv").write_text(f"video_name,y_pred\n{name},0.5\nb.wav,0.5\n")
    assert run(model, data, data / "out.csv")[0] == (name, PRIOR)


def test_submission_file_without_rows_is_refused(model: Path, data: Path) -> None:
    """A header alone asks for nothing."""
    (data / "prediction.txt.csv").write_text("video_name,y_pred\n")
    with pytest.raises(DataError, match=r"prediction.txt.csv lists no video"):
        run(model, data, data / "out.csv")
    assert not (data / "out.csv").exists()


def test_submission_of_the_prior_alone_is_refused(model: Path, data: Path) -> None:
    """The reasons are told, and an older submission stays."""
    names = [f"{number}.mp4" for number in range(12)]
    lines = ["video_name,y_pred", "broken.mp4,0.5", *(f"{name},0.5" for name in names)]
    (data / "prediction.txt.csv").write_text("\n".join(lines))
    (data / "out.csv").write_text("older")
    with pytest.raises(DataError, match="none of the videos") as error:
        run(model, data, data / "out.csv")
    assert "\n  broken.mp4: empty file\n  0.mp4: no such file\n" in str(error.value)
    assert str(error.value).endswith("\n  and 3 more")
    assert (data / "out.csv").read_text() == "older"


def test_folder_without_videos_is_refused(model: Path, tmp_path: Path) -> None:
    """Nor is there a submission of no rows."""
    with pytest.raises(DataError, match="no video in"):
        run(model, tmp_path, tmp_path / "out.csv")
    with pytest.raises(DataError, match="gone"):
        run(model, tmp_path / "gone", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_place_that_cannot_be_written_is_refused_before_the_work(
    model: Path, data: Path, tmp_path: Path
) -> None:
    """A folder, or below a file."""
    with pytest.raises(DataError, match="it is a folder"):
        run(model, data, tmp_path)
    with pytest.raises(DataError, match="can't write"):
        run(model, data, data / "b.wav" / "out.csv")


def test_missing_model_folder_is_named(data: Path, tmp_path: Path) -> None:
    """The message tells what makes one."""
    with pytest.raises(ModelError, match="melsearch train"):
        run(tmp_path / "gone", data, tmp_path / "out.csv")


def test_number_of_passes_has_limits(model: Path, data: Path, tmp_path: Path) -> None:
    """At least the plain one."""
    with pytest.raises(TrainerError, match="got 0"):
        run(model, data, tmp_path / "out.csv", tta=0)


def test_confident_clips_are_no_ties(data: Path, tmp_path: Path) -> None:
    """Every digit of a probability is written, so that their order survives."""
    folder = make_model(tmp_path / "model", tiny_config())
    path = folder / "metrics.json"
    path.write_text('{"calibration": {"temperature": 1e-3}, "prior": 0.5}')
    values = [value for _, value in run(folder, data, tmp_path / "out.csv")]
    texts = (tmp_path / "out.csv").read_text().split()[1:]
    assert [line.rsplit(",", 1)[1] for line in texts if "," in line] == [repr(x) for x in values]
