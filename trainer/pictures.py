"""What a detector that sees reads of a batch besides images of its sound."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trainer.cache import ClipSet
from trainer.config import TrainConfig
from trainer.draws import draw
from trainer.errors import DataError
from trainer.index import MOMENTS

# Shape suffixes: B batch, P moments, D the two frames of a moment, S height and width, C colours,
# L lags, T samples, 2 the streams: sound, picture.

LAG_SECONDS = np.linspace(-0.5, 0.5, 13)
"""(L,); by so much later than the picture the sound is looked at."""
LOUDNESS_SECONDS = 1 / 12
"""Over so much of the sound its power is averaged."""
SILENCE = 1e-6
"""Added to a power of at most 1: -60 dB."""
MAX_SHIFT, MAX_ZOOM, MAX_CONTRAST = 0.1, 0.15, 0.3
"""Of a picture at full strength: of its half width, of its size, of its contrast and level."""


class Pictures(NamedTuple):
    """Arrays of a batch that become tensors when uploaded."""

    frames: NDArray[np.uint8]
    """(B, P, D, S, S, C)"""
    loudness: NDArray[np.float32]
    """(B, P, L), log10 of the sound's power around each moment, at each lag; 0 if nobody asks."""
    is_there: NDArray[np.bool_]
    """(B, 2), whether a clip has a sound, and whether it has a picture."""


def read_pictures(
    clips: ClipSet, config: TrainConfig, indices_B: NDArray[np.int64]
) -> Pictures | None:
    """Return the pictures of some of the clips, None for a detector that only hears.

    Raises:
        CacheDamagedError: what is read isn't as it was written.
    """
    if config.modality == "audio":
        return None
    if clips.frames is None:
        raise RuntimeError("check_frames was not called")
    frames = clips.frames[indices_B]
    sounds = [clips.waveform(index) for index in indices_B.tolist()]
    has_picture_B = frames.any(axis=tuple(range(1, frames.ndim)))
    is_there_B2 = np.stack([np.array([x.any() for x in sounds]), has_picture_B], axis=1)
    loudness_BPL = np.zeros((len(sounds), MOMENTS, len(LAG_SECONDS)), np.float32)
    if config.synchrony:
        loudness_BPL[:] = [loudness(x, config.sample_rate) for x in sounds]
    return Pictures(frames, loudness_BPL, is_there_B2)


def check_frames(clips: ClipSet, config: TrainConfig) -> None:
    """Refuse clips that lack the frames which the config's modality needs.

    Raises:
        DataError: the clips were cached without frames, or with frames of another size.
    """
    if config.modality == "audio":
        return
    size, found = config.frame_size, 0 if clips.frames is None else clips.frames.shape[-2]
    if found != size:
        held = f"frames of {found} pixels" if found else "none"
        raise DataError(
            f'modality "{config.modality}" reads frames of {size} pixels, and the cache holds'
            f" {held}; prepare the data with --video --frame-size {size}, or choose modality"
            ' "audio"'
        )


def loudness(waveform_T: NDArray[np.int16], sample_rate: int) -> NDArray[np.float64]:
    """Return log10 of the sound's power around each moment of its picture, at each lag (P, L)."""
    energy_T = np.concatenate([[0.0], np.cumsum(np.square(waveform_T / 32768.0))])
    moments_P1 = (np.arange(MOMENTS)[:, None] + 0.5) / MOMENTS * len(waveform_T)
    centres_PL = moments_P1 + LAG_SECONDS * sample_rate
    half = LOUDNESS_SECONDS * sample_rate / 2
    begins_PL, ends_PL = (
        np.clip(np.round(centres_PL + side), 0, len(waveform_T)).astype(np.int64)
        for side in (-half, half)
    )
    power_PL = (energy_T[ends_PL] - energy_T[begins_PL]) / np.maximum(ends_PL - begins_PL, 1)
    loudness_PL: NDArray[np.float64] = np.log10(np.maximum(power_PL, 0) + SILENCE)
    return loudness_PL


def vary(frames_BPDSSC: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Return float frames in [0, 1], varied: mirrored, moved, zoomed, of another contrast.

    All frames of a clip vary alike, so that what moves in it is kept.
    """
    num_clips, size = len(frames_BPDSSC), frames_BPDSSC.shape[3]
    draws_SB = draw(5, num_clips, generator)
    mirror_B = torch.where(draws_SB[0] < 0.5, -1.0, 1.0)
    zoom_B = 1 + (draws_SB[1] * 2 - 1) * MAX_ZOOM * strength
    shift_2B = (draws_SB[2:4] * 2 - 1) * MAX_SHIFT * strength
    zero_B = torch.zeros_like(zoom_B)
    theta_B23 = torch.stack(
        [
            torch.stack([mirror_B * zoom_B, zero_B, shift_2B[0]], dim=1),
            torch.stack([zero_B, zoom_B, shift_2B[1]], dim=1),
        ],
        dim=1,
    )
    planes_BNSS = frames_BPDSSC.movedim(-1, 3).flatten(1, 3)
    grid = functional.affine_grid(theta_B23, [num_clips, 1, size, size], align_corners=False)
    planes_BNSS = functional.grid_sample(
        planes_BNSS, grid, padding_mode="border", align_corners=False
    )
    gain_B111 = (1 + (draws_SB[4] * 2 - 1) * MAX_CONTRAST * strength)[:, None, None, None]
    planes_BNSS = (planes_BNSS * gain_B111).clamp(0, 1)
    by_colour = frames_BPDSSC.movedim(-1, 3).shape
    return planes_BNSS.view(by_colour).movedim(3, -1)


def drop_streams(is_there_B2: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return which streams are left when the sound or the picture of some clips is taken away.

    With probability `share` a clip that has both loses one, either as often as the other.
    """
    loses_B, which_B = draw(2, len(is_there_B2), generator)
    loses_B = (loses_B < share) & is_there_B2.all(dim=1)
    lost_B2 = functional.one_hot((which_B < 0.5).long(), 2).bool() & loses_B[:, None]
    left_B2: Tensor = is_there_B2 & ~lost_B2
    return left_B2
