"""Whether the backbones can read what they are given, found out before the training."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from trainer import device as devices
from trainer.batches import read_batch
from trainer.cache import ClipSet
from trainer.config import TrainConfig
from trainer.errors import ModelError
from trainer.faults import is_out_of_memory
from trainer.frontend import SIZED_BY, Frontend
from trainer.fusion import AnyDetector, FusedDetector
from trainer.inference import score, to_inputs, upload_own_samples, upload_pictures

# Shape suffixes: B batch, C channels, M mel bands, F frames.


@torch.no_grad()
def require_readable(
    model: AnyDetector,
    frontend: Frontend,
    clips: ClipSet,
    config: TrainConfig,
    device: torch.device,
) -> None:
    """Let the model read one image, in evaluation mode, which changes and draws nothing.

    Raises:
        ModelError: it can't read images of the frontend's size, or frames of the cache's.
    """
    first = np.zeros(1, np.int64)
    batch = read_batch(clips, config, first, first)
    inputs = to_inputs(devices.upload(batch.inputs, device))
    image_BCMF = frontend.normalise(frontend(inputs))
    pictures = upload_pictures(batch.pictures, device)
    own_samples = upload_own_samples(batch, device)
    model.eval()
    if isinstance(model, FusedDetector):  # its picture alone first, to know whose fault it is
        side = config.frame_size
        what = f"video_backbone {config.video_backbone!r} can't read frames of {side} x {side}"
        with (
            _must_read(what, "choose another video_backbone, or another frame_size"),
            devices.autocast(config.precision, device),
        ):
            model.video(pictures[0])
    height, width = image_BCMF.shape[-2:]
    with _must_read(
        f"backbone {config.backbone!r} can't read the frontend's images of {height} x {width}",
        " or other ".join(["choose another backbone", *SIZED_BY[config.frontend]]),
    ):
        score(model, (image_BCMF, *pictures, *own_samples), config, device)


@contextmanager
def _must_read(what: str, remedy: str) -> Iterator[None]:
    """Turn a backbone's error at an image's size into one that says which, and what to do.

    Raises:
        ModelError
    """
    try:
        yield
    except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(f"{what} ({reason}); {remedy}") from error
