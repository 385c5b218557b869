"""fit(): callbacks, metrics, the best epoch, divergence and full disks."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.clips import make_clips, tiny_config
from tests.disk import full_disk
from tests.privileges import unprivileged
from trainer.cache import ClipSet
from trainer.checkpoint import load_checkpoint, read_scalars, save_checkpoint
from trainer.config import TrainConfig
from trainer.device import choose_device
from trainer.errors import DataError, ModelError, TrainerError
from trainer.frontend import build_frontend
from trainer.history import best_of
from trainer.inference import predict_logits
from trainer.loop import Ending, EpochResult, FitResult, fit
from trainer.model import build_model
from trainer.snapshots import best_path, list_checkpoints
from trainer.training import Training

CPU = torch.device("cpu")


def train(
    config: TrainConfig,
    folder: Path,
    *,
    val: ClipSet | None = None,
    objective: str = "accuracy",
    on_start: Callable[[Sequence[EpochResult]], None] = lambda history: None,
    on_epoch: Callable[[Sequence[EpochResult]], bool] = lambda history: False,
    should_stop: Callable[[], bool] = lambda: False,
) -> FitResult:
    """Train on 9 clips, in batches of 4."""
    return fit(
        config,
        make_clips(9, seed=1),
        val,
        folder=folder,
        device=CPU,
        objective=objective,
        on_start=on_start,
        on_epoch=on_epoch,
        should_stop=should_stop,
    )


def test_training_learns_what_tells_fakes_apart(tmp_path: Path) -> None:
    """A tone marks the fakes; some epochs are enough to hear it, also with everything on."""
    config = tiny_config(
        lr=0.003, epochs=6, augmentation="spec", label_smoothing=0.1, dropout=0.1, ema_decay=0.8
    )
    clips = make_clips(24, seed=1)
    result = fit(config, clips, make_clips(10, seed=2), folder=tmp_path, device=CPU)
    assert result.best is not None
    assert result.best.metrics["auc"] == 1.0
    assert result.history[-1].metrics["train_loss"] < result.history[0].metrics["train_loss"]


def test_epochs_have_all_metrics(tmp_path: Path) -> None:
    """Numbers of training and of evaluation, and how fast it was."""
    result = train(tiny_config(), tmp_path, val=make_clips(4, seed=2))
    assert result.ending is Ending.FINISHED
    assert [epoch.epoch for epoch in result.history] == [1, 2]
    names = {"train_loss", "loss", "accuracy", "auc", "eer", "seconds", "samples_per_second", "lr"}
    assert names <= result.history[0].metrics.keys()
    assert all(math.isfinite(value) for value in result.history[0].metrics.values())


def test_epoch_is_on_the_disk_before_anybody_hears_of_it(tmp_path: Path) -> None:
    """on_epoch finds its epoch in the checkpoint."""
    stored = []

    def look(history: Sequence[EpochResult]) -> bool:
        scalars = read_scalars(list_checkpoints(tmp_path)[-1])
        stored.append([result["epoch"] for result in scalars["history"]])
        return False

    train(tiny_config(), tmp_path, val=make_clips(4), on_epoch=look)
    assert stored == [[1], [1, 2]]


def test_true_from_on_epoch_prunes(tmp_path: Path) -> None:
    """The training ends with the epoch that it was told of."""
    result = train(tiny_config(epochs=5), tmp_path, val=make_clips(4), on_epoch=lambda h: True)
    assert result.ending is Ending.PRUNED
    assert len(result.history) == 1


def test_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    """The second call reports the history from the checkpoint and is done."""
    first = train(tiny_config(), tmp_path, val=make_clips(4))
    heard: list[int] = []

    def on_epoch(history: Sequence[EpochResult]) -> bool:
        raise AssertionError("there is no epoch left")

    second = train(
        tiny_config(),
        tmp_path,
        val=make_clips(4),
        on_start=lambda history: heard.append(len(history)),
        on_epoch=on_epoch,
    )
    assert heard == [2]
    assert second == first


def test_resumed_training_needs_its_weights_file_no_more(tmp_path: Path) -> None:
    """The checkpoint holds what became of them."""
    path = tmp_path / "start.safetensors"
    save_file(build_model(tiny_config(), 1).state_dict(), path)
    config = tiny_config(weights=str(path))
    train(config, tmp_path / "trial", val=make_clips(4), on_epoch=lambda history: True)
    path.unlink()
    assert train(config, tmp_path / "trial", val=make_clips(4)).ending is Ending.FINISHED


def rename_tensor(tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> None:
    tensors["model/backbone.renamed"] = tensors.pop(
        "model/backbone.layer2.0.downsample.2.running_var"
    )


def reshape_tensor(tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> None:
    tensors["optimizer/0.exp_avg"] = torch.zeros(7, 7)


def add_progress(tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> None:
    scalars["progress"]["unknown"] = 1


def rename_history(tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> None:
    scalars["history"][0]["number"] = scalars["history"][0].pop("epoch")


def rewrite(
    folder: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]
) -> None:
    """Leave checkpoints as other code would have written them."""
    for path in list_checkpoints(folder):
        tensors, scalars = load_checkpoint(path)
        change(tensors, scalars)
        path.unlink()
        save_checkpoint(path, tensors, scalars)


@pytest.mark.parametrize("change", [rename_tensor, reshape_tensor, add_progress, rename_history])
def test_training_whose_checkpoint_does_not_fit_starts_over(
    change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From the weights that the config names, and nothing of the old ones stays."""
    path = tmp_path / "start.safetensors"
    save_file(build_model(tiny_config(), 1).state_dict(), path)
    config = tiny_config(weights=str(path), epochs=3)
    train(config, tmp_path / "whole", val=make_clips(4))
    questions = iter(range(100))
    old = tmp_path / "old"
    train(config, old, val=make_clips(4), should_stop=lambda: next(questions) > 9)
    rewrite(old, change)
    best = best_path(old, 2)
    save_checkpoint(best, load_checkpoint(best_path(tmp_path / "whole", 1))[0], {"epoch": 2})
    caplog.clear()
    heard: list[int] = []
    train(config, old, val=make_clips(4), on_start=lambda history: heard.append(len(history)))
    assert heard == [0]
    events = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert events == ["checkpoint_ignored"]
    names = [sorted(x.name for x in folder.iterdir()) for folder in (tmp_path / "whole", old)]
    assert names[0] == names[1]
    for name in names[0]:
        expected, found = (load_checkpoint(x / name)[0] for x in (tmp_path / "whole", old))
        assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_checkpoint_without_a_micro_batch_is_gone_on_from(tmp_path: Path) -> None:
    """It is of code that knew none."""
    train(tiny_config(), tmp_path, val=make_clips(4), on_epoch=lambda history: True)
    rewrite(tmp_path, lambda tensors, scalars: scalars["progress"].pop("micro_batch"))
    heard: list[int] = []
    result = train(
        tiny_config(),
        tmp_path,
        val=make_clips(4),
        on_start=lambda history: heard.append(len(history)),
    )
    assert (heard, result.micro_batch) == ([1], 4)


def test_exception_of_should_stop_writes_nothing(tmp_path: Path) -> None:
    """A worker that lost its lease leaves in this way."""

    def fail() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), tmp_path, val=make_clips(4), should_stop=fail)
    assert list(tmp_path.iterdir()) == []


def test_changed_config_starts_anew(tmp_path: Path) -> None:
    """A checkpoint of other parameters in the same folder is no state to go on from."""
    train(tiny_config(), tmp_path, val=make_clips(4))
    heard: list[int] = []
    train(
        tiny_config(lr=0.1),
        tmp_path,
        val=make_clips(4),
        on_start=lambda history: heard.append(len(history)),
    )
    assert heard == [0]


def test_best_weights_give_the_best_epochs_metrics(tmp_path: Path) -> None:
    """The file holds the model of the epoch that the result calls the best."""
    config, val = tiny_config(epochs=4, ema_decay=0.5), make_clips(12, seed=2)
    result = train(config, tmp_path, val=val, objective="loss")
    assert result.best is not None
    assert result.best.metrics["loss"] == min(x.metrics["loss"] for x in result.history)
    weights, _ = load_checkpoint(best_path(tmp_path, result.best.epoch))
    frontend = build_frontend(config)
    model = build_model(config, frontend.num_channels)
    model.load_state_dict(weights)
    model = model.to(memory_format=torch.channels_last)
    logits_NK = predict_logits(model, frontend, val, config, CPU)
    assert logits_NK is not None
    losses_N = np.logaddexp.reduce(logits_NK, axis=1) - logits_NK[np.arange(12), val.targets]
    assert losses_N.mean() == pytest.approx(result.best.metrics["loss"], rel=1e-5)


def test_training_without_validation_keeps_the_last_epoch(tmp_path: Path) -> None:
    """There is nothing to choose by."""
    result = train(tiny_config(), tmp_path)
    assert result.best == result.history[-1]
    assert read_scalars(best_path(tmp_path, 2))["epoch"] == 2
    assert "accuracy" not in result.history[0].metrics


def test_full_disk_costs_the_checkpoint_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No checkpoint can be written, and each one that can't be is logged."""
    with full_disk():
        result = train(tiny_config(), tmp_path / "trial", val=make_clips(4))
    assert result.ending is Ending.FINISHED
    assert {record.message for record in caplog.records} == {"checkpoint_failed"}


def test_read_only_folder_ends_the_training_before_its_first_epoch(tmp_path: Path) -> None:
    """Unlike a full disk it would be as bad after every epoch."""
    tmp_path.chmod(0o500)
    with unprivileged(), pytest.raises(PermissionError):
        train(tiny_config(), tmp_path, on_start=lambda history: pytest.fail("trained"))


def test_unknown_objective_is_refused(tmp_path: Path) -> None:
    """It would make the last epoch the best in silence; without validation clips that is meant."""
    with pytest.raises(TrainerError, match=r"objective must be one of.*got 'acuracy'"):
        train(tiny_config(), tmp_path, val=make_clips(4), objective="acuracy")


def test_other_sound_of_equal_lengths_starts_anew(tmp_path: Path) -> None:
    """The clips' fingerprint tells them apart, where names, classes and lengths don't."""
    heard: list[int] = []
    for fingerprint in ("one", "other", "other"):
        fit(
            tiny_config(epochs=1),
            replace(make_clips(9), data_fingerprint=fingerprint),
            None,
            folder=tmp_path,
            device=CPU,
            on_start=lambda history: heard.append(len(history)),
        )
    assert heard == [0, 0, 1]


def test_backbone_that_cannot_read_the_images_is_named(tmp_path: Path) -> None:
    """Halo attention needs sides that its blocks fit into."""
    config = tiny_config(backbone="halonet26t")
    with pytest.raises(ModelError, match=r"'halonet26t' can't read.*32 x 32.*n_mels"):
        train(config, tmp_path)


@pytest.mark.parametrize("modality", ["video", "both"])
def test_backbone_that_cannot_read_the_frames_is_named(modality: str, tmp_path: Path) -> None:
    """With what sizes them, and not the backbone that hears."""
    config = tiny_config(modality=modality, video_backbone="halonet26t", frame_size=32)
    pattern = r"^video_backbone 'halonet26t' can't read frames of 32 x 32 .*frame_size$"
    with pytest.raises(ModelError, match=pattern):
        Training(config, make_clips(4, frame_size=32), None, CPU)


def test_trying_the_model_changes_nothing() -> None:
    """Weights, BatchNorm's statistics and the random numbers are those of the start."""
    config = tiny_config(dropout=0.5)
    training = Training(config, make_clips(4), None, CPU)
    drawn = torch.rand(3)
    torch.manual_seed(config.seed)
    fresh = build_model(config, 1).state_dict()
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(x, fresh[name]) for name, x in training.model.state_dict().items())


def test_bf16_trains_on_the_cpu_too(tmp_path: Path) -> None:
    """Asked for by name; `auto` takes it on GPUs alone."""
    result = train(tiny_config(precision="bf16", epochs=1), tmp_path, val=make_clips(4))
    assert math.isfinite(result.history[0].metrics["loss"])


def test_one_clip_is_too_few(tmp_path: Path) -> None:
    """BatchNorm needs two."""
    with pytest.raises(DataError, match="at least 2 clips, got 1"):
        fit(tiny_config(), make_clips(1), None, folder=tmp_path, device=CPU)


def test_notebook_frontend_without_images_is_refused(tmp_path: Path) -> None:
    """The message tells how to get them."""
    with pytest.raises(DataError, match="prepare the data again with notebook images"):
        train(tiny_config(frontend="notebook"), tmp_path)


def results(*values: float, objective: str = "auc") -> list[EpochResult]:
    """Return a history with these values of the objective."""
    return [EpochResult(epoch, {objective: value}) for epoch, value in enumerate(values, 1)]


def test_best_epoch_is_the_earlier_of_equals_and_never_undefined() -> None:
    """nan loses against every number; of a loss the lowest is the best."""
    best = best_of(results(math.nan, 0.5, 0.8, 0.8), "auc")
    assert best is not None
    assert best.epoch == 3
    best = best_of(results(math.inf, 0.2, 0.3, objective="loss"), "loss")
    assert best is not None
    assert best.epoch == 2
    assert best_of([], "auc") is None


def test_notebook_policy_is_evaluated_on_the_centre_crop() -> None:
    """What lies at the rim of the image changes nothing at full strength, all at strength 0."""
    clips = make_clips(3, images=True)
    assert clips.images is not None
    rim = clips.images.copy()
    rim[:, 15:241, 15:241] = 0
    other = replace(clips, images=clips.images - rim)
    same = {}
    for strength in (0.0, 1.0):
        config = tiny_config(frontend="notebook", augmentation="notebook", strength=strength)
        layers = build_frontend(config)
        torch.manual_seed(0)
        model = build_model(config, layers.num_channels)
        one, two = (predict_logits(model, layers, x, config, CPU) for x in (clips, other))
        assert one is not None
        assert two is not None
        same[strength] = np.allclose(one, two, atol=1e-6)
    assert same == {0.0: False, 1.0: True}


@pytest.mark.parametrize("frontend", ["logmel", "notebook"])
def test_passes_of_augmentation_differ_and_repeat(frontend: str) -> None:
    """Each pass hears something else, and the same again the next time."""
    config = tiny_config(frontend=frontend, augmentation="notebook")
    clips = make_clips(5, images=True)
    layers = build_frontend(config)
    torch.manual_seed(0)
    model = build_model(config, layers.num_channels)
    passes = [
        predict_logits(model, layers, clips, config, CPU, test_pass=number)
        for number in (0, 1, 2, 3, 1)
    ]
    first = [x.tobytes() for x in passes if x is not None]
    assert len(set(first)) == 4
    assert first[1] == first[4]


def test_device_is_chosen_by_name() -> None:
    """A device that this machine lacks is refused with those that it has."""
    assert choose_device("cpu") == CPU
    with pytest.raises(TrainerError, match=r"auto, cpu.*got 'cuda:99'"):
        choose_device("cuda:99")
