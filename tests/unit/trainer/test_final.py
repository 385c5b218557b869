"""The final training: a calibrated model folder, on one split or on both, and its faults."""

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.final import count_epochs
from tests.clips import SAMPLE_RATE, make_clips, tiny_config
from tests.disk import full_disk
from trainer.cache import CachedClip, ClipSet, WaveformCache, join
from trainer.calibration import apply_temperature, fit_temperature
from trainer.config import TrainConfig
from trainer.errors import DataError, ModelError, TrainerError
from trainer.final import TrainingDivergedError, TrainingStoppedError, train_final
from trainer.folder import CONFIG_FILE, METRICS_FILE, MODEL_FILE, MODEL_FOLDER, load_detector
from trainer.history import best_of
from trainer.known_clips import CLIPS_FILE
from trainer.loop import EpochResult
from trainer.metrics import cllr, log_loss
from trainer.recipe import Recipe, read_recipe, read_recipes
from trainer.scoring import score_clips
from trainer.snapshots import best_path
from trainer.splits import divide

CPU = torch.device("cpu")
NUM_TRAIN = 13


@pytest.fixture
def cache(tmp_path: Path) -> WaveformCache:
    """A cache of 13 training and 8 validation clips, without a file."""
    clips = make_clips(21)
    numbers = (clips.targets.tolist(), clips.offsets.tolist(), clips.num_samples.tolist())
    rows = zip(clips.names, *numbers, map(digest_of, range(21)), strict=True)
    return WaveformCache(
        path=tmp_path,
        root=tmp_path,
        sample_rate=SAMPLE_RATE,
        data_fingerprint="f",
        clips=tuple(
            CachedClip("train" if number < NUM_TRAIN else "val", *row)
            for number, row in enumerate(rows)
        ),
        samples_S=clips.samples_S,
        images=None,
    )


def digest_of(number: int) -> str:
    """Return what stands for the digest of a clip's file."""
    return f"{number:016x}"


def read_known(out: Path) -> dict[str, list[str]]:
    """Return which clips a model folder says that its model knows."""
    known: dict[str, list[str]] = json.loads((out / CLIPS_FILE).read_text())
    return known


def train(cache: WaveformCache, out: Path, **options: Any) -> dict[str, Any]:
    """Train a tiny detector to the end."""
    config = options.pop("config", tiny_config(epochs=3, lr=0.003))
    recipes = options.pop("recipes", [Recipe(config, options.pop("origin", {}))])
    return train_final(recipes, cache, out, device=CPU, **options)


def log_odds(out: Path, clips: ClipSet) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the model folder's calibrated log-odds of clips."""
    detector = load_detector(out, CPU)
    probs_NK = apply_temperature(score_clips(detector, clips), detector.temperature)
    return np.log(probs_NK[:, 1] / probs_NK[:, 0])


def test_model_folder_holds_the_calibrated_detector(cache: WaveformCache, tmp_path: Path) -> None:
    """Loaded again it has the very metrics that are written beside it."""
    out = tmp_path / "models" / "first"
    metrics = train(cache, out, origin={"study": "s", "trial": 7, "value": 0.9})
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        CLIPS_FILE,
        CONFIG_FILE,
        METRICS_FILE,
        MODEL_FILE,
    ]
    assert json.loads((out / METRICS_FILE).read_text()) == metrics
    recipe = read_recipe(out / CONFIG_FILE)
    assert recipe.config == tiny_config(epochs=3, lr=0.003)
    assert recipe.origin == {"study": "s", "trial": 7, "value": 0.9}
    val = cache.split("val")
    after = metrics["calibration"]["after"]["nll"]
    assert log_loss(log_odds(out, val), val.targets) == pytest.approx(after, rel=1e-5)
    assert after <= metrics["calibration"]["before"]["nll"]
    assert metrics["prior"] == 6 / 13
    assert [path.name for path in out.parent.iterdir()] == ["first"]


@pytest.mark.parametrize(
    ("sampling", "prior_log_odds"), [("natural", math.log(6 / 7)), ("balanced", 0.0)]
)
def test_cllr_is_by_the_prior_of_the_training(
    cache: WaveformCache, tmp_path: Path, sampling: str, prior_log_odds: float
) -> None:
    """In the epochs and in the report: 6 of 13 training clips are fakes, 4 of 8 of the others."""
    bests: list[EpochResult | None] = []
    metrics = train(
        cache,
        tmp_path / "model",
        config=tiny_config(sampling=sampling),
        objective="cllr",
        on_epoch=lambda stage, member, history: bests.append(best_of(history, "cllr")),
    )
    val = cache.split("val")
    ratios_N = log_odds(tmp_path / "model", val) - prior_log_odds
    after = metrics["calibration"]["after"]["cllr"]
    assert cllr(ratios_N, val.targets) == pytest.approx(after, rel=1e-4)
    assert bests[-1] is not None
    assert bests[-1].metrics["cllr"] == pytest.approx(metrics["validation"]["cllr"], rel=1e-4)
    assert metrics["prior"] == 6 / 13


def test_model_card_says_what_it_is_and_how_good(cache: WaveformCache, tmp_path: Path) -> None:
    """Backbone, origin, metrics and how to use it."""
    train(cache, tmp_path / "model", origin={"study": "my-study"})
    card = (tmp_path / "model" / "README.md").read_text()
    for words in ("`test_resnet`", "13 clips", "my-study", "AUC", "Temperature", "predict"):
        assert words in card


def test_card_tells_that_the_search_read_other_data(cache: WaveformCache, tmp_path: Path) -> None:
    """Its choice may then be known to the clips that are reported on."""
    cards = []
    for name, fingerprint in (("same", cache.data_fingerprint), ("other", "f" * 64)):
        metrics = train(cache, tmp_path / name, origin={"data_fingerprint": fingerprint})
        assert metrics["data_fingerprint"] == cache.data_fingerprint
        cards.append((tmp_path / name / "README.md").read_text())
    assert ["other clips than the search read" in card for card in cards] == [False, True]


def test_training_on_all_takes_epochs_and_temperature_from_the_first(
    cache: WaveformCache, tmp_path: Path
) -> None:
    """Two stages; the second has as many epochs as were best, and no honest metrics of its own."""
    heard: list[tuple[str, int]] = []

    def on_epoch(stage: str, member: int, history: Sequence[EpochResult]) -> None:
        heard.append((stage, history[-1].epoch))

    alone = train(cache, tmp_path / "alone")
    metrics = train(cache, tmp_path / "all", on="all", on_epoch=on_epoch)
    best = metrics["best_epoch"]
    assert heard == [("train", x) for x in (1, 2, 3)] + [("all", x + 1) for x in range(best)]
    assert metrics["epochs"] == best
    assert metrics["on"] == "all"
    assert metrics["prior"] == pytest.approx(10 / 21)
    for same in ("validation", "calibration"):
        assert metrics[same] == alone[same]
    assert read_known(tmp_path / "all")["trained"] == [digest_of(number) for number in range(21)]
    card = (tmp_path / "all" / "README.md").read_text()
    assert "have seen all clips" in card
    both = join(cache.split("train"), cache.split("val"))
    assert not np.array_equal(log_odds(tmp_path / "all", both), log_odds(tmp_path / "alone", both))


def test_epochs_of_all_members_and_stages_are_one_count(
    cache: WaveformCache, tmp_path: Path
) -> None:
    """What is done only grows, and is all of it once at most, at the end."""
    recipes = [Recipe(tiny_config(epochs=2, seed=seed)) for seed in (1, 2)]
    told: list[tuple[int, int]] = []
    train_final(
        recipes,
        cache,
        tmp_path / "model",
        on="all",
        device=torch.device("cpu"),
        on_epoch=count_epochs(lambda done, total: told.append((done, total)), recipes, "all"),
    )
    counts = [done for done, _ in told]
    assert counts == sorted(set(counts))
    assert {total for _, total in told} == {8}
    assert {1, 2, 3, 5, 6, 7} <= set(counts) <= set(range(1, 9))


@pytest.mark.parametrize("num_questions", [3, 12, 13, 16])
def test_stopped_final_training_goes_on_where_it_was(
    cache: WaveformCache, tmp_path: Path, num_questions: int
) -> None:
    """Stopped in either stage or between, the second call leaves what one call would have."""
    train(cache, tmp_path / "whole", on="all")
    asked = iter(range(1, 1000))
    with pytest.raises(TrainingStoppedError, match="goes on from there"):
        train(cache, tmp_path / "model", on="all", should_stop=lambda: next(asked) >= num_questions)
    assert not (tmp_path / "model").exists()
    train(cache, tmp_path / "model", on="all")
    whole, again = (tmp_path / name / MODEL_FILE for name in ("whole", "model"))
    assert whole.read_bytes() == again.read_bytes()


def test_older_model_is_replaced(cache: WaveformCache, tmp_path: Path) -> None:
    """The same folder again, with another config and a cache from before clips had digests."""
    train(cache, tmp_path / "model")
    config = tiny_config(epochs=1, lr=0.001)
    clips = tuple(clip._replace(source_digest="") for clip in cache.clips)
    train(replace(cache, clips=clips), tmp_path / "model", config=config)
    assert not (tmp_path / "model" / CLIPS_FILE).exists()
    assert load_detector(tmp_path / "model", CPU).members[0].config == config
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("names", [["notes.txt"], [MODEL_FILE, "notes.txt"], ["README.md"]])
def test_folder_with_other_files_is_not_overwritten(
    names: list[str], cache: WaveformCache, tmp_path: Path
) -> None:
    """It is refused before the training, and left as it is."""
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ModelError, match="which would be lost"):
        train(cache, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_file_in_the_place_of_the_folder_is_refused(cache: WaveformCache, tmp_path: Path) -> None:
    """A model is a folder."""
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ModelError, match="is a file"):
        train(cache, tmp_path / "model")


def test_cache_of_another_sample_rate_is_refused(cache: WaveformCache, tmp_path: Path) -> None:
    """Everything would sound higher or lower."""
    config = TrainConfig(backbone="test_resnet")
    with pytest.raises(DataError, match="prepare the data at 16000 Hz"):
        train(cache, tmp_path / "model", config=config)


def test_full_disk_is_told_at_the_end_of_training(cache: WaveformCache, tmp_path: Path) -> None:
    """Without best weights on the disk there is no model."""
    with full_disk(), pytest.raises(TrainerError, match="no space left"):
        train(cache, tmp_path / "model")


def test_weights_of_an_earlier_epoch_are_no_model(cache: WaveformCache, tmp_path: Path) -> None:
    """The disk was full when the best epoch's weights came."""
    config = tiny_config(epochs=3, optimizer="sgd", lr=0.0003, batch_size=2)
    with ExitStack() as disk:

        def on_epoch(stage: str, member: int, history: Sequence[EpochResult]) -> None:
            if len(history) == 1:
                disk.enter_context(full_disk())
            if len(history) == 3:
                disk.close()

        with pytest.raises(TrainerError, match=r"no space.*best-00003"):
            train(cache, tmp_path / "model", config=config, objective="loss", on_epoch=on_epoch)
    assert not (tmp_path / "model").exists()
    again = train(cache, tmp_path / "model", config=config, objective="loss")
    assert again["best_epoch"] == 3


def test_weights_of_another_recipe_are_no_model(cache: WaveformCache, tmp_path: Path) -> None:
    """An interrupted training left them, and the disk was full for the next one's."""
    asked = iter(range(1, 100))
    with pytest.raises(TrainingStoppedError):
        train(cache, tmp_path / "model", should_stop=lambda: next(asked) >= 12)
    with ExitStack() as disk, pytest.raises(TrainerError, match=r"no space.*best-00001"):
        disk.enter_context(full_disk())
        train(
            cache,
            tmp_path / "model",
            config=tiny_config(epochs=1),
            on_epoch=lambda stage, member, history: disk.close(),
        )


def test_unwritable_work_folder_is_told_before_the_training(
    cache: WaveformCache, tmp_path: Path
) -> None:
    """A file stands where the folder should be; no epoch is lost to it."""
    (tmp_path / "work").write_text("")
    with pytest.raises(OSError, match="work"):
        train(
            cache,
            tmp_path / "model",
            work=tmp_path / "work",
            on_epoch=lambda stage, member, history: pytest.fail("trained"),
        )


def test_diverged_training_is_no_model(cache: WaveformCache, tmp_path: Path) -> None:
    """However good an epoch before was; the same command says the same again."""
    config = tiny_config(optimizer="sgd", lr=10.0, schedule="constant", epochs=50, momentum=0.99)
    reasons = []
    for _ in range(2):
        with pytest.raises(TrainingDivergedError, match=r"epoch \d+.*lower lr") as caught:
            train(cache, tmp_path / "model", config=config)
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1]
    assert not (tmp_path / "model").exists()


def test_lost_best_weights_are_trained_again(cache: WaveformCache, tmp_path: Path) -> None:
    """The checkpoint alone makes no model; the one before it leads to the same model."""
    config = tiny_config(epochs=3, optimizer="sgd", lr=0.0003, batch_size=2)
    train(cache, tmp_path / "whole", config=config, objective="loss")
    work = tmp_path / "work"

    def fail(stage: str, member: int, history: Sequence[EpochResult]) -> None:
        if len(history) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cache, tmp_path / "model", config=config, objective="loss", work=work, on_epoch=fail)
    best_path(work / "train" / "0", 3).unlink()
    again = train(cache, tmp_path / "model", config=config, objective="loss", work=work)
    assert again["best_epoch"] == 3
    whole, model = (tmp_path / name / MODEL_FILE for name in ("whole", "model"))
    assert whole.read_bytes() == model.read_bytes()


def test_mount_point_is_refused() -> None:
    """It can't be replaced; the message says what can."""
    with pytest.raises(ModelError, match=r"mount point.*/proc/model"):
        MODEL_FOLDER.check(Path("/proc"))


def test_older_model_comes_back_if_the_new_one_cannot_take_its_place(
    cache: WaveformCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of the two renames fails."""
    train(cache, tmp_path / "model", config=tiny_config(epochs=1))
    old = (tmp_path / "model" / MODEL_FILE).read_bytes()
    rename = Path.rename

    def fail(source: Path, target: Path) -> Path:
        if source.name == "fresh":
            raise OSError("no")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ModelError, match="can't write"):
        train(cache, tmp_path / "model", config=tiny_config(epochs=1, seed=1))
    assert (tmp_path / "model" / MODEL_FILE).read_bytes() == old


def test_clips_carry_their_caches_fingerprint(cache: WaveformCache) -> None:
    """So a checkpoint of other sound is none of theirs."""
    sets = (cache.split("train"), cache.split("val"), cache.all_clips())
    assert {clips.data_fingerprint for clips in sets} == {"f"}


def test_nonsensical_objective_is_told_before_the_training(
    cache: WaveformCache, tmp_path: Path
) -> None:
    """A recipe's origin may name anything."""
    with pytest.raises(TrainerError, match=r"one of loss, accuracy, .*, ece, got 'beauty'"):
        train(cache, tmp_path / "model", objective="beauty")


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("objective", ["auc", "eer", "balanced_accuracy", "cllr", "min_dcf"])
def test_objective_that_the_validation_clips_leave_undefined_is_told_before_the_training(
    cache: WaveformCache, tmp_path: Path, objective: str, target: int
) -> None:
    """Of one class nothing would choose the epoch; the message says what would."""
    clips = tuple(c._replace(target=target) if c.split == "val" else c for c in cache.clips)
    one_class = replace(cache, clips=clips)
    got = f"got {8 - 8 * target} real and {8 * target} fake"
    words = rf"objective {objective} needs .*{got}; .* loss, accuracy, nll, brier, ece \("
    with pytest.raises(DataError, match=words):
        train(
            one_class,
            tmp_path / "model",
            objective=objective,
            on_epoch=lambda stage, member, history: pytest.fail("trained"),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [MODEL_FILE, CONFIG_FILE, METRICS_FILE])
@pytest.mark.parametrize("damage", ["missing", "truncated", "of another model"])
def test_damaged_model_folder_is_named(
    name: str, damage: str, cache: WaveformCache, tmp_path: Path
) -> None:
    """Each file, gone or cut short or from elsewhere."""
    train(cache, tmp_path / "model")
    path = tmp_path / "model" / name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:20])
    else:
        others = {
            MODEL_FILE: path.read_bytes()[::-1],
            CONFIG_FILE: b'backbone = "test_convnext"\nnonsense = 1\n',
            METRICS_FILE: b'{"calibration": {"temperature": -1}, "prior": 0.5}',
        }
        path.write_bytes(others[name])
    with pytest.raises(ModelError, match=name):
        load_detector(tmp_path / "model", CPU)


def test_weights_of_another_backbone_are_told(cache: WaveformCache, tmp_path: Path) -> None:
    """Whole files that don't belong together."""
    train(cache, tmp_path / "model")
    path = tmp_path / "model" / CONFIG_FILE
    path.write_text(path.read_text().replace("test_resnet", "test_convnext"))
    with pytest.raises(ModelError, match="of two models, or of another version; copy"):
        load_detector(tmp_path / "model", CPU)


def test_undefined_metrics_are_null_in_json(cache: WaveformCache, tmp_path: Path) -> None:
    """A validation split of one class has no AUC, and metrics.json stays valid JSON."""
    clips = tuple(c._replace(target=1) if c.split == "val" else c for c in cache.clips)
    one_class = replace(cache, clips=clips)
    metrics = train(one_class, tmp_path / "model", config=tiny_config(epochs=1))
    assert math.isnan(metrics["validation"]["auc"])
    stored = json.loads((tmp_path / "model" / METRICS_FILE).read_text(), parse_constant=pytest.fail)
    assert stored["validation"]["auc"] is None
    assert "undefined" in (tmp_path / "model" / "README.md").read_text()


def test_held_out_half_chooses_nothing_and_is_reported_on(
    cache: WaveformCache, tmp_path: Path
) -> None:
    """The best epoch is that of one half, temperature and metrics are of the other."""
    choose, report = divide(cache.split("val"), "half")
    bests: list[EpochResult | None] = []
    metrics = train(
        cache,
        tmp_path / "model",
        holdout="half",
        objective="loss",
        on_epoch=lambda stage, member, history: bests.append(best_of(history, "loss")),
    )
    assert bests[-1] is not None
    assert metrics["best_epoch"] == bests[-1].epoch
    assert metrics["num_clips"] == {"train": 13, "val": 8, "reported": len(report)}
    chosen_by = log_loss(
        log_odds(tmp_path / "model", choose) * temperature_of(metrics), choose.targets
    )
    assert chosen_by == pytest.approx(bests[-1].metrics["loss"], rel=1e-5)
    reported = log_loss(
        log_odds(tmp_path / "model", report) * temperature_of(metrics), report.targets
    )
    assert metrics["validation"]["nll"] == pytest.approx(reported, rel=1e-5)
    assert metrics["calibration"]["measured"] == "on clips that it was not fitted on"
    assert "by which nothing was chosen" in (tmp_path / "model" / "README.md").read_text()
    digests = {clip.name: clip.source_digest for clip in cache.clips}
    assert read_known(tmp_path / "model") == {
        "trained": [digest_of(number) for number in range(NUM_TRAIN)],
        "chose": sorted(digests[name] for name in choose.names),
        "calibrated": sorted(digests[name] for name in report.names),
    }


def temperature_of(metrics: dict[str, Any]) -> float:
    """Return what the calibrated log-odds were divided by."""
    return float(metrics["calibration"]["temperature"])


def test_ensemble_averages_its_members_and_is_calibrated_as_one(
    cache: WaveformCache, tmp_path: Path
) -> None:
    """Two recipes in one folder: its logits are the mean of theirs, each trained as if alone."""
    configs = [tiny_config(seed=1), tiny_config(seed=2, frontend="lfcc", n_lfcc=24)]
    recipes = [Recipe(config, {"trial": number}) for number, config in enumerate(configs)]
    metrics = train(cache, tmp_path / "both", recipes=recipes, holdout="half")
    val = cache.split("val")
    alone = []
    for number, recipe in enumerate(recipes):
        train(cache, tmp_path / str(number), recipes=[recipe], holdout="half")
        alone.append(score_clips(load_detector(tmp_path / str(number), CPU), val))
    detector = load_detector(tmp_path / "both", CPU)
    assert [member.config for member in detector.members] == configs
    np.testing.assert_allclose(score_clips(detector, val), np.mean(alone, axis=0), rtol=1e-6)
    assert read_recipes(tmp_path / "both" / CONFIG_FILE) == recipes
    assert [x["seed"] for x in metrics["members"]] == [1, 2]
    report = divide(val, "half")[1]
    temperature = fit_temperature(score_clips(detector, report), report.targets)
    assert detector.temperature == pytest.approx(temperature)
    card = (tmp_path / "both" / "README.md").read_text()
    assert "2 models" in card
    assert card.count("| `test_resnet` |") == 2


def test_ensemble_on_all_keeps_the_report_of_members_that_never_saw_it(
    cache: WaveformCache, tmp_path: Path
) -> None:
    """Trained on everything, its figures and its temperature are the first stage's."""
    recipes = [Recipe(tiny_config(seed=seed)) for seed in (1, 2)]
    alone = train(cache, tmp_path / "alone", recipes=recipes, holdout="half")
    metrics = train(cache, tmp_path / "all", recipes=recipes, holdout="half", on="all")
    assert metrics["validation"] == alone["validation"]
    assert metrics["calibration"] == alone["calibration"]
    known, known_alone = (read_known(tmp_path / name) for name in ("all", "alone"))
    assert [len(known[x]) for x in ("trained", "chose", "calibrated")] == [21, 4, 4]
    assert known | {"trained": known["trained"][:NUM_TRAIN]} == known_alone
    scores = [
        score_clips(load_detector(tmp_path / x, CPU), cache.split("val")) for x in ("alone", "all")
    ]
    assert not np.allclose(*scores)
