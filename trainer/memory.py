"""When a device's memory is too small: less of it at a time, or a message that says so."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from trainer.batches import window_samples
from trainer.cache import IMAGE_SHAPE
from trainer.config import TrainConfig
from trainer.device import free_memory
from trainer.errors import DoesNotFitError
from trainer.faults import is_out_of_memory
from trainer.frontend import SIZED_BY, num_bands
from trainer.model import reason_of

logger = logging.getLogger(__name__)

T = TypeVar("T")


def halve_until_it_fits(
    attempt: Callable[[int], T], num_images: int, size: int, smallest: int, device: torch.device
) -> tuple[T, int]:
    """Return what `attempt` returns of at most `size` of the images at once, and the size that fit.

    Raises:
        RuntimeError: the attempt's own, out of memory only with the smallest number.
    """
    while True:
        try:
            return attempt(size), size
        except RuntimeError as error:
            tried = min(size, num_images)
            if tried <= smallest or not is_out_of_memory(error):
                raise
            reason = reason_of(error)
        # Only here, as the error holds the frames, and they the tensors, of what was too much.
        size = max(smallest, tried // 2)
        free_memory(device)
        logger.warning("micro_batch_halved", extra={"micro_batch": size, "reason": reason})


@contextmanager
def must_fit(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Turn the device's word that its memory is too small into one that says what to do.

    Raises:
        DoesNotFitError
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFitError(
            f"does not fit: the memory of {device} is too small for {_describe_models(config)},"
            f" however few at once ({reason_of(error)}); choose a smaller"
            f" {' or '.join(config.backbones)}{_smaller_images(config)}, a"
            " smaller batch_size, or a device with more memory"
        ) from error


def _describe_models(config: TrainConfig) -> str:
    width = 1 + window_samples(config) // config.hop_length
    if config.frontend == "notebook":
        width = IMAGE_SHAPE[1]
    side = config.frame_size
    read = {
        "backbone": f"images of {num_bands(config)} x {width}",
        "video_backbone": f"frames of {side} x {side}",
    }
    models = " and ".join(f"{field} {name!r}" for field, name in config.backbones.items())
    images = " and ".join(read[field] for field in config.backbones)
    return f"{models} with batch_size {config.batch_size} and {images}"


def _smaller_images(config: TrainConfig) -> str:
    """Return what to change for smaller images, if anything does."""
    sizes = {"backbone": SIZED_BY[config.frontend], "video_backbone": ("frame_size",)}
    names = [name for field in config.backbones for name in sizes[field]]
    return f" or smaller images ({', '.join(names)})" if names else ""
