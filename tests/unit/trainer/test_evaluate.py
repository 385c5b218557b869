"""Evaluation: figures that scikit-learn confirms, groups, and a page that shows them."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from search.evaluate import evaluate_model
from tests.clips import SAMPLE_RATE, tiny_config
from tests.media import make_tone, small_clips, write_dataset, write_labels, write_media
from tests.unit.trainer.test_predict import PRIOR, make_model
from trainer.cache import WaveformCache, prepare
from trainer.errors import DataError, ModelError
from trainer.evaluate import Evaluation, evaluate
from trainer.evaluation_page import write_evaluation
from trainer.final import train_final
from trainer.known_clips import CLIPS_FILE
from trainer.metrics import cllr
from trainer.recipe import Recipe

CPU = torch.device("cpu")
NUM_CLIPS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    return make_model(tmp_path_factory.mktemp("models") / "model", tiny_config())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validation split of tones, half of them fakes of two attacks, and a broken file."""
    root = tmp_path_factory.mktemp("data")
    (root / "valset").mkdir()
    labels, manifest = ["video_name,target"], ["video_name,attack,id,language"]
    for number in range(NUM_CLIPS):
        target = number % 2
        name = f"<{number}>.wav"
        tone = make_tone(200.0 + 55 * number + 300 * target, seconds=0.6 + 0.05 * number)
        write_media(root / "valset" / name, tone)
        labels.append(f"{name},{target}")
        attack = ("world" if number < 14 else "<b>rare</b>") if target else "bonafide"
        manifest.append(f"{name},{attack},{number},{'en' if number < 12 else 'fr'}")
    (root / "valset" / "broken.wav").write_bytes(b"no sound")
    labels.append("broken.wav,1")
    (root / "valset_label.txt").write_text("\n".join(labels) + "\n")
    (root / "manifest.csv").write_text("\n".join(manifest) + "\n")
    return root


@pytest.fixture(scope="module")
def evaluation(model: Path, data: Path) -> Evaluation:
    """The model's evaluation on the data."""
    return evaluate(model, data, device=CPU, num_processes=1)


def test_figures_are_those_of_the_scores(evaluation: Evaluation) -> None:
    """AUC by scikit-learn; every clip that can be read counts, the others are named."""
    assert len(evaluation.clips) == NUM_CLIPS
    assert [(reject.name, reject.split) for reject in evaluation.rejects] == [("broken.wav", "val")]
    auc = evaluation.metrics["auc"]
    assert auc is not None
    expected = roc_auc_score(evaluation.targets_N, evaluation.log_odds_N)
    assert auc.value == pytest.approx(expected)
    assert auc.low <= auc.value <= auc.high


def test_temperature_changes_only_what_reads_probabilities(evaluation: Evaluation) -> None:
    """The model's temperature is 2, and both sides of it are shown."""
    ratio = evaluation.logits_NK[:, 1] - evaluation.logits_NK[:, 0]
    assert ratio == pytest.approx(2 * evaluation.log_odds_N)
    before, after = evaluation.calibration["nll"]
    assert before != after
    assert evaluation.metrics["nll"] is not None
    assert evaluation.metrics["nll"].value == pytest.approx(after)


@pytest.mark.parametrize(
    ("sampling", "prior_log_odds"), [("natural", math.log(PRIOR / (1 - PRIOR))), ("balanced", 0)]
)
def test_cllr_is_by_the_prior_of_the_training(
    data: Path, tmp_path: Path, sampling: str, prior_log_odds: float
) -> None:
    """The share of fakes that was drawn to train on counts, not that of the set."""
    model = make_model(tmp_path / "model", tiny_config(sampling=sampling))
    found = evaluate(model, data, device=CPU, num_processes=1)
    expected = cllr(found.log_odds_N - prior_log_odds, found.targets_N)
    assert found.metrics["cllr"] is not None
    assert found.metrics["cllr"].value == pytest.approx(expected)
    assert found.calibration["cllr"][1] == pytest.approx(expected)
    assert found.detector.prior == PRIOR


def test_groups_follow_the_manifest(evaluation: Evaluation) -> None:
    """An attack is measured against all bona fide clips, a language by its own; ids are none."""
    groups = {(group.column, group.value): group for group in evaluation.groups}
    assert [key for key in groups if key[0] != "id"] == [
        ("attack", "<b>rare</b>"), ("attack", "bonafide"), ("attack", "world"),
        ("language", "en"), ("language", "fr"),
    ]  # fmt: skip
    world = groups["attack", "world"]
    assert (world.num_real, world.num_fake, world.against) == (0, 7, "all bona fide")
    is_in = [clip.target == 0 or int(clip.name.strip("<>.wav")) < 14 for clip in evaluation.clips]
    expected = roc_auc_score(evaluation.targets_N[is_in], evaluation.log_odds_N[is_in])
    assert world.metrics["auc"].value == pytest.approx(expected)
    is_own = [x and clip.target == 1 for x, clip in zip(is_in, evaluation.clips, strict=True)]
    caught = evaluation.log_odds_N[is_own] > 0
    assert world.metrics["accuracy"].value == pytest.approx(caught.mean())
    assert np.mean((evaluation.log_odds_N > 0) == evaluation.targets_N) != caught.mean()
    english = groups["language", "en"]
    assert (english.num_real, english.num_fake, english.against) == (6, 6, "its own")


def test_console_says_whose_clips_a_group_is_against(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An attack all bona fide clips; a language needs no word, and the page has a column."""
    monkeypatch.setenv("COLUMNS", "200")
    evaluate_model(model, data, tmp_path / "out", "val", 1, "cpu")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    [world] = [line for line in lines if line.startswith("attack world (0 real, 7 fake)")]
    assert re.search(r"accuracy .*, auc .*, eer .* against all bona fide$", world)
    [english] = [line for line in lines if line.startswith("language en")]
    assert "against" not in english
    page = (tmp_path / "out" / "index.html").read_text()
    assert "auc and eer against" in page


def test_page_shows_figures_curves_and_mistakes(evaluation: Evaluation, tmp_path: Path) -> None:
    """All in one file, and a name from the data is text, never markup."""
    out = tmp_path / "out"
    write_evaluation(evaluation, out, "model on <data>")
    page = (out / "index.html").read_text()
    assert "model on &lt;data&gt;" in page
    assert "attack: &lt;b&gt;rare&lt;/b&gt;" in page
    assert "<b>" not in page
    assert page.count("data:image/svg+xml") == 1
    assert page.count("data:image/png") > 0
    assert "http" not in page
    assert "broken.wav" in page


def test_files_for_programs_agree_with_each_other(evaluation: Evaluation, tmp_path: Path) -> None:
    """metrics.json is what scikit-learn finds in scores.csv; an older evaluation is replaced."""
    out = tmp_path / "out"
    for _ in range(2):
        write_evaluation(evaluation, out, "title")
    assert {path.name for path in out.iterdir()} == {"index.html", "metrics.json", "scores.csv"}
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    targets = [int(row["target"]) for row in rows]
    auc = roc_auc_score(targets, [float(row["p_fake"]) for row in rows])
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["metrics"]["auc"]["value"] == pytest.approx(auc)
    assert figures["num_clips"] == {"real": 12, "fake": 12}


def test_one_class_leaves_metrics_undefined_not_faked(
    model: Path, data: Path, tmp_path: Path
) -> None:
    """What needs both classes is null in the figures and said on the page."""
    lines = (data / "valset_label.txt").read_text().split()
    (tmp_path / "valset").symlink_to(data / "valset")
    (tmp_path / "manifest.csv").symlink_to(data / "manifest.csv")
    fakes = "\n".join(line for line in lines if not line.endswith(",0"))
    (tmp_path / "valset_label.txt").write_text(fakes + "\n")
    found = evaluate(model, tmp_path, device=CPU, num_processes=1)
    assert found.metrics["auc"] is None
    assert found.metrics["accuracy"] is not None
    [world] = [group for group in found.groups if group.value == "world"]
    assert set(world.metrics) == {"accuracy"}
    write_evaluation(found, tmp_path / "out", "fakes")
    figures = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert figures["metrics"]["auc"] is None
    assert "undefined: a class is missing" in (tmp_path / "out" / "index.html").read_text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data of a training, four clips in each split, and the model folder."""
    root = tmp_path_factory.mktemp("trained")
    data = write_dataset(root / "data", small_clips())
    prepared = prepare(
        data, root / "cache", sample_rate=SAMPLE_RATE, notebook_images=False, num_processes=1
    )
    cache = WaveformCache.open(prepared.cache)
    train_final([Recipe(tiny_config(epochs=1))], cache, root / "model", device=CPU, holdout="half")
    return data, root / "model"


@pytest.fixture
def mixed(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """A set of one clip that trained the model, four of its validation, and three new ones."""
    source, folder = trained[0], tmp_path / "mixed" / "valset"
    write_dataset(tmp_path / "mixed", {"val": {}})
    shutil.copy(source / "trainset" / "001.wav", folder / "renamed.wav")
    for number in range(4):
        shutil.copy(source / "valset" / f"{number:03}.wav", folder / f"other-{number}.wav")
    for number in range(3):  # one under the name of a clip that trained
        write_media(folder / f"{number:03}.wav", make_tone(3000.0 + number))
    targets = {path.name: number % 2 for number, path in enumerate(sorted(folder.iterdir()))}
    write_labels(tmp_path / "mixed", "val", targets)
    return tmp_path / "mixed"


def test_clips_that_the_model_knows_are_counted_whatever_their_names(
    trained: tuple[Path, Path], mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five of eight, on the console, in the figures, and on top of the page."""
    evaluate_model(trained[1], mixed, tmp_path / "out", "val", 1, "cpu")
    told = (
        "the model knows 5 of 8 clips: 1 trained it, 2 chose it, 2 fitted its temperature;"
        " the figures flatter"
    )
    assert told in capsys.readouterr().out.splitlines()
    assert read_known(tmp_path / "out") == {"known": 5, "trained": 1, "chose": 2, "calibrated": 2}
    page = (tmp_path / "out" / "index.html").read_text()
    assert 0 < page.index(told) < page.index("real clips")


@pytest.mark.parametrize("is_older", [False, True])
def test_nothing_is_said_of_clips_where_none_is_known(
    trained: tuple[Path, Path], mixed: Path, tmp_path: Path, is_older: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Of new clips, and by the folder of an older model, which can't tell."""
    model = shutil.copytree(trained[1], tmp_path / "model")
    if is_older:
        (model / CLIPS_FILE).unlink()
    else:
        write_labels(mixed, "val", {"000.wav": 0, "001.wav": 1})
    evaluate_model(model, mixed, tmp_path / "out", "val", 1, "cpu")
    assert "knows" not in capsys.readouterr().out
    assert "knows" not in (tmp_path / "out" / "index.html").read_text()
    none = {"known": 0, "trained": 0, "chose": 0, "calibrated": 0}
    assert read_known(tmp_path / "out") == (None if is_older else none)


def read_known(out: Path) -> dict[str, int] | None:
    """Return what an evaluation's figures say of clips that the model knows."""
    known: dict[str, int] | None = json.loads((out / "metrics.json").read_text())["known_clips"]
    return known


def test_damaged_record_of_known_clips_is_named(
    trained: tuple[Path, Path], mixed: Path, tmp_path: Path
) -> None:
    """An evaluation that may flatter is not passed off as an honest one."""
    model = shutil.copytree(trained[1], tmp_path / "model")
    (model / CLIPS_FILE).write_bytes((model / CLIPS_FILE).read_bytes()[:20])
    with pytest.raises(ModelError, match=r"clips\.json is damaged; copy the folder again"):
        evaluate(model, mixed, device=CPU, num_processes=1)


@pytest.mark.parametrize("name", ["thesis.tex", "index.html", "metrics.json", "scores.csv"])
def test_folder_with_other_files_is_left_alone(
    evaluation: Evaluation, tmp_path: Path, name: str
) -> None:
    """What is no evaluation is never replaced by one, whatever its files are called."""
    (tmp_path / name).write_text("ten years")
    with pytest.raises(DataError, match=f"holds {name}, which would be lost"):
        write_evaluation(evaluation, tmp_path, "title")
    assert (tmp_path / name).read_text() == "ten years"
