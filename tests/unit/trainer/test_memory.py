"""Trainings that are too large for the device's memory: in smaller pieces, or told so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from tests.clips import make_clips, tiny_config
from trainer.config import TrainConfig
from trainer.errors import DoesNotFitError
from trainer.frontend import Frontend, build_frontend
from trainer.inference import predict_logits
from trainer.loop import Ending, fit
from trainer.memory import halve_until_it_fits, must_fit
from trainer.model import Detector, build_model
from trainer.training import Training

CPU = torch.device("cpu")


@contextmanager
def room_for(num_images: int, *, training: bool = True) -> Iterator[None]:
    """Let no model take more images at once, in training or in evaluation; it fails at its end."""

    def check(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        too_many = isinstance(module, Detector) and len(inputs[0]) > num_images
        if too_many and module.training is training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = register_module_forward_hook(check)
    try:
        yield
    finally:
        hook.remove()


def start(config: TrainConfig) -> Training:
    """Return a training of 14 clips: with batches of 4, the last one of an epoch has 2."""
    return Training(config, make_clips(14, seed=1), make_clips(6, seed=2), CPU)


def run_epoch(training: Training) -> dict[str, float]:
    metrics = training.run_epoch(lambda: False)
    assert metrics is not None
    return metrics


def assert_same(one: Training, other: Training, **tolerance: float) -> None:
    """Compare weights and the optimizer's state, bit for bit without a tolerance."""
    others = other.tensors()
    for name, value in one.tensors().items():
        torch.testing.assert_close(value, others[name], **(tolerance or {"rtol": 0, "atol": 0}))


def test_micro_batches_train_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Of a model without BatchNorm; mixup pairs across the whole batch all the same."""
    config = tiny_config(
        backbone="test_convnext", optimizer="sgd", augmentation="strong", grad_clip=1.0
    )
    whole, halved = start(config), start(config)
    expected = run_epoch(whole)
    with room_for(1):
        found = run_epoch(halved)
    events = [(x.message, vars(x)["micro_batch"]) for x in caplog.records]
    assert events == [("micro_batch_halved", 2), ("micro_batch_halved", 1)]
    assert halved.progress.micro_batch == 1
    assert_same(whole, halved, rtol=1e-3, atol=1e-5)
    assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)


def test_repeated_step_leaves_no_trace() -> None:
    """BatchNorm's statistics, dropout and gradients are as if the failed try had not been."""
    config = tiny_config(dropout=0.4, ema_decay=0.9, augmentation="strong")
    halved, small = start(config), start(config)
    small.progress.micro_batch = 2
    with room_for(2):
        run_epoch(halved)
    run_epoch(small)
    assert halved.progress.micro_batch == 2
    assert_same(halved, small)


def test_model_with_batch_norm_never_sees_a_single_image() -> None:
    """It can't normalise one; an odd batch has one micro-batch of three instead."""
    clips = make_clips(5)
    training = Training(tiny_config(batch_size=5), clips, None, CPU)
    sizes = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        if isinstance(module, Detector):
            sizes.append(len(inputs[0]))

    hook = register_module_forward_hook(note)
    with room_for(3):
        run_epoch(training)
    hook.remove()
    assert sizes == [5, 3, 2]


@pytest.mark.parametrize(("backbone", "smallest"), [("test_convnext", 1), ("test_resnet", 2)])
def test_training_that_does_not_fit_says_what_is_too_large(
    backbone: str, smallest: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the device's own error as its cause, by which a GPU full of strangers is known."""
    config = tiny_config(backbone=backbone)
    pattern = rf"does not fit: .*'{backbone}' with batch_size 4 and images of 32 x 32.*; choose a"
    with room_for(0), pytest.raises(DoesNotFitError, match=pattern) as caught:
        fit(config, make_clips(9), None, folder=tmp_path, device=CPU)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert vars(caplog.records[-1])["micro_batch"] == smallest


@pytest.mark.parametrize(
    ("modality", "words"),
    [
        ("video", ["for video_backbone 'test_vit' with", " and frames of 64 x 64", "(frame_size)"]),
        (
            "both",
            [
                "for backbone 'test_resnet' and video_backbone 'test_vit' with",
                " and images of 32 x 32 and frames of 64 x 64",
                "(n_mels, window_seconds, hop_length, frame_size)",
            ],
        ),
    ],
)
def test_picture_that_does_not_fit_is_told_as_such(modality: str, words: list[str]) -> None:
    """What only hears is not named where nothing hears."""
    config = tiny_config(modality=modality, video_backbone="test_vit", frame_size=64)
    with pytest.raises(DoesNotFitError) as caught, must_fit(config, CPU):
        allocate(3)
    assert all(word in str(caught.value) for word in words)
    assert ("test_resnet" in str(caught.value)) == (modality == "both")


def test_images_that_do_not_fit_have_the_height_of_their_frontend() -> None:
    """Coefficients, not mel bands."""
    config = tiny_config(frontend="lfcc", n_lfcc=20)
    with pytest.raises(DoesNotFitError, match="images of 20 x 32"), must_fit(config, CPU):
        allocate(3)


def test_model_that_does_not_fit_is_told_before_the_training(tmp_path: Path) -> None:
    """Its first image, too, and that the backbone can't read it would be untrue."""
    with room_for(0, training=False), pytest.raises(DoesNotFitError):
        fit(
            tiny_config(),
            make_clips(9),
            None,
            folder=tmp_path,
            device=CPU,
            on_start=lambda history: pytest.fail("trained"),
        )


def test_other_errors_pass_through(tmp_path: Path) -> None:
    """Only memory is worth another try."""

    def fail(history: object) -> bool:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        fit(tiny_config(), make_clips(9), None, folder=tmp_path, device=CPU, on_epoch=fail)


def test_resumed_training_keeps_its_micro_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where more would fit: it equals the uninterrupted one, and the result tells."""

    def train(folder: Path, **options: Any) -> Any:
        return fit(tiny_config(), make_clips(9), None, folder=folder, device=CPU, **options)

    with room_for(2):
        whole = train(tmp_path / "whole")
        stopped = train(tmp_path / "stopped", on_epoch=lambda history: True)
    caplog.clear()
    resumed = train(tmp_path / "stopped")
    assert (stopped.ending, resumed.ending) == (Ending.PRUNED, Ending.FINISHED)
    assert resumed.micro_batch == whole.micro_batch == 2
    losses = [
        [epoch.metrics["train_loss"] for epoch in result.history] for result in (whole, resumed)
    ]
    assert losses[0] == losses[1]
    assert "micro_batch_halved" not in {record.message for record in caplog.records}


def test_evaluation_halves_its_batches(caplog: pytest.LogCaptureFixture) -> None:
    """The logits stay those of whole batches; one window that doesn't fit is told."""
    config, clips = tiny_config(), make_clips(20)
    frontend = build_frontend(config)
    model = build_model(config, frontend.num_channels)
    whole = predict_logits(model, frontend, clips, config, CPU)
    with room_for(3, training=False):
        halved = predict_logits(model, frontend, clips, config, CPU)
    assert [vars(x)["micro_batch"] for x in caplog.records] == [16, 8, 4, 2]
    assert whole is not None
    assert halved is not None
    np.testing.assert_allclose(halved, whole, rtol=1e-4, atol=1e-5)
    with room_for(0, training=False), pytest.raises(DoesNotFitError):
        predict_logits(model, frontend, clips, config, CPU)


def allocate(num_images: int) -> torch.Tensor:
    """Ask for a petabyte where there are more than two images."""
    return torch.empty(1 if num_images <= 2 else 2**50, dtype=torch.uint8)


def test_allocator_that_fails_is_known() -> None:
    """The CPU's real one: halved until it can allocate, told where it never can."""
    assert halve_until_it_fits(allocate, 16, 16, 1, CPU)[1] == 2
    with pytest.raises(DoesNotFitError, match="memory of cpu"), must_fit(tiny_config(), CPU):
        halve_until_it_fits(allocate, 16, 16, 4, CPU)


def test_short_batch_is_not_tried_again_unchanged() -> None:
    """The last batch of an epoch, of 10 images where 64 are allowed; what fits changes nothing."""
    tried: list[int] = []

    def attempt(size: int) -> torch.Tensor:
        tried.append(size)
        return allocate(min(size, 10))

    assert halve_until_it_fits(attempt, 10, 64, 1, CPU)[1] == 2
    assert tried == [64, 5, 2]
    assert halve_until_it_fits(lambda size: size, 10, 64, 1, CPU) == (64, 64)


def test_images_are_made_in_parts_that_fit(caplog: pytest.LogCaptureFixture) -> None:
    """The frontend's memory is halved apart from the model's, and once for all steps."""
    clips = make_clips(14, seed=1)
    whole, halved = (
        Training(tiny_config(augmentation="strong"), clips, None, CPU) for _ in range(2)
    )
    run_epoch(whole)

    def check(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        if isinstance(module, Frontend) and len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = register_module_forward_hook(check)
    try:
        run_epoch(halved)
    finally:
        hook.remove()
    assert [vars(x)["micro_batch"] for x in caplog.records] == [2]
    assert halved.progress.micro_batch == 4
    assert_same(whole, halved, rtol=1e-3, atol=1e-5)


def test_message_of_a_callback_is_not_the_devices(tmp_path: Path) -> None:
    """A database, too, may run out of memory."""

    def fail(history: object) -> bool:
        raise RuntimeError("database: out of memory")

    with pytest.raises(RuntimeError, match=r"^database: out of memory$"):
        fit(tiny_config(), make_clips(9), None, folder=tmp_path, device=CPU, on_epoch=fail)
