"""Logits of whole clips: several windows of each, their logits averaged."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.augment import build_augment
from trainer.batches import Batch, evaluation_batches
from trainer.cache import ClipSet
from trainer.config import TrainConfig
from trainer.device import autocast, eval_batch_size, upload
from trainer.frontend import Frontend
from trainer.fusion import AnyDetector
from trainer.memory import halve_until_it_fits, must_fit
from trainer.pictures import Pictures
from trainer.pooling import NUM_CLASSES, pool_clips

# Shape suffixes: N clips, W windows, B batch, C channels, M mel bands, F frames, K classes.

GOLDEN_RATIO = 0.6180339887498949
"""Its multiples, modulo 1, never crowd: the shifts of any number of passes are well spread."""
GAINS_DB = (0.0, -3.0, 3.0)
IMAGE_SHIFT = 8
"""Columns of the notebook's image, 3 % of a clip, by which a pass moves it further."""


def predict_logits(
    model: AnyDetector,
    frontend: Frontend,
    clips: ClipSet,
    config: TrainConfig,
    device: torch.device,
    *,
    test_pass: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> NDArray[np.float64] | None:
    """Return the logits (N, K) of every clip, None if `should_stop` said so between two batches.

    Pass 0 is the plain evaluation; every further pass of test-time augmentation moves the windows
    and changes the level a little, always in the same way. Leaves the model in evaluation mode.
    Batches that don't fit into the device's memory are halved, which changes no clip's logits.

    Raises:
        DoesNotFitError: not even one window at once does.
    """
    model.eval()
    augment = build_augment(config)
    shift = test_pass * GOLDEN_RATIO % 1
    batch_size = micro_batch = eval_batch_size(config.batch_size, device)

    def score_batch(batch: Batch, size: int) -> Tensor:
        begins = range(0, len(batch.indices), size)
        return torch.cat([score_part(batch, slice(begin, begin + size)) for begin in begins])

    def score_part(batch: Batch, part: slice) -> Tensor:
        inputs = _vary(to_inputs(upload(batch.inputs[part], device)), config, test_pass)
        image_BCMF = augment.evaluation_image(frontend(inputs))
        pictures = upload_pictures(batch.pictures, device, part)
        own_samples = upload_own_samples(batch, device, part)
        read = (frontend.normalise(image_BCMF), *pictures, *own_samples)
        return score(model, read, config, device)

    answers, indices_W = [], []
    with torch.inference_mode(), must_fit(config, device):
        for batch in evaluation_batches(clips, config, batch_size, shift):
            if should_stop():
                return None
            attempt = partial(score_batch, batch)
            answers_BX, micro_batch = halve_until_it_fits(
                attempt, len(batch.inputs), micro_batch, 1, device
            )
            answers.append(answers_BX)
            indices_W.append(batch.indices)
    if not answers:
        return np.zeros((0, NUM_CLASSES))
    answers_WX = torch.cat(answers).double().cpu().numpy()
    return pool_clips(answers_WX, np.concatenate(indices_W), len(clips))


def to_inputs(inputs: Tensor) -> Tensor:
    """Return int16 waveforms (B, T) as float32 in [-1, 1); uint8 images as they are."""
    return inputs.float() / 32768 if inputs.dtype == torch.int16 else inputs


def upload_pictures(
    pictures: Pictures | None, device: torch.device, part: slice = slice(None)
) -> tuple[Tensor, ...]:
    """Return a batch's frames in [0, 1], loudness and presence on the device, or nothing."""
    if pictures is None:
        return ()
    frames, loudness, is_there = (upload(array[part], device) for array in pictures)
    return frames.float() / 255, loudness, is_there


def upload_own_samples(
    batch: Batch, device: torch.device, part: slice = slice(None)
) -> tuple[Tensor, ...]:
    """Return how many samples of a batch's windows are their clips' own, or nothing."""
    return () if batch.own_samples is None else (upload(batch.own_samples[part], device),)


def score(
    model: AnyDetector, inputs: tuple[Tensor, ...], config: TrainConfig, device: torch.device
) -> Tensor:
    """Return the model's answers (B, X) as score_heads does, by all that it hears and sees."""
    return score_heads(model, inputs, config, device)[0]


def score_heads(
    model: AnyDetector, inputs: tuple[Tensor, ...], config: TrainConfig, device: torch.device
) -> list[Tensor]:
    """Return the answers (B, X) of each head as float32, computed in the config's precision.

    `inputs` are images (B, C, M, F), then what upload_pictures and upload_own_samples returned.
    """
    image_BCMF, *others = inputs
    with autocast(config.precision, device):
        heads = model.heads(image_BCMF.contiguous(memory_format=torch.channels_last), *others)
    return [answers_BX.float() for answers_BX in heads]


def _vary(inputs: Tensor, config: TrainConfig, test_pass: int) -> Tensor:
    """Return the inputs as a pass of test-time augmentation hears or sees them.

    The notebook's images are flipped only if the model was trained on flipped ones.
    """
    if inputs.is_floating_point():
        return inputs * 10 ** (GAINS_DB[test_pass % len(GAINS_DB)] / 20)
    if config.augmentation != "notebook":
        return inputs.roll(_alternate(test_pass) * IMAGE_SHIFT, dims=2)
    flipped = [axis for axis, bit in ((2, 1), (1, 2)) if test_pass & bit]
    return inputs.flip(flipped).roll(_alternate(test_pass // 4) * IMAGE_SHIFT, dims=2)


def _alternate(number: int) -> int:
    """Return 0, 1, -1, 2, -2 and so on."""
    return (number + 1) // 2 * (1 if number % 2 else -1)
