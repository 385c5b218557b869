"""The picture of a sample clip: a drawn face whose mouth follows the loudness of the sound."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from trainer.sample_voice import SAMPLE_RATE, FloatArray

# Shape suffixes: T samples, F video frames, H rows, W columns, C colours (RGB).
ImageArray = NDArray[np.uint8]

SIZE = 128
"""Width and height in pixels."""
FRAMES_PER_SECOND = 12


@dataclass(frozen=True)
class _Face:
    """What stays the same through a clip."""

    background_HWC: ImageArray
    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    width: int
    height: int


def draw_face(samples_T: FloatArray, num_frames: int, rng: np.random.Generator) -> list[ImageArray]:
    """Return `num_frames` pictures, (H, W, C) each, of somebody who says `samples_T`."""
    face = _draw_looks(rng)
    opening_F = _mouth_opening(samples_T, num_frames)
    sway_FC = 1.5 * gaussian_filter1d(rng.standard_normal((num_frames, 2)), 3.0, axis=0) * 3.0
    blink_frame = int(rng.integers(num_frames))
    return [
        _draw_frame(face, float(opening), sway_FC[frame], frame == blink_frame)
        for frame, opening in enumerate(opening_F)
    ]


def _mouth_opening(samples_T: FloatArray, num_frames: int) -> FloatArray:
    """Return how far the mouth is open in each video frame, from 0 to 1, (F,)."""
    step = SAMPLE_RATE / FRAMES_PER_SECOND
    starts = (np.arange(num_frames) * step).astype(int)
    energy_F = np.add.reduceat(samples_T**2, starts)
    return np.asarray(np.sqrt(energy_F / energy_F.max()), dtype=np.float64)


def _draw_looks(rng: np.random.Generator) -> _Face:
    ends = rng.uniform(40, 200, size=(2, 1, 1, 3))
    slope = np.linspace(0, 1, SIZE)[:, None, None]
    grain = rng.normal(0, rng.uniform(1, 6), size=(SIZE, SIZE, 1))
    background_HWC = np.clip(ends[0] * (1 - slope) + ends[1] * slope + grain, 0, 255)
    tone, dark = rng.uniform(0.4, 1.0), rng.uniform(0.1, 0.9)
    return _Face(
        background_HWC=background_HWC.astype(np.uint8),
        skin=(int(235 * tone), int(190 * tone), int(160 * tone)),
        hair=(int(120 * dark), int(85 * dark), int(50 * dark)),
        width=int(rng.integers(28, 36)),
        height=int(rng.integers(38, 46)),
    )


def _draw_frame(face: _Face, opening: float, sway_C: FloatArray, blink: bool) -> ImageArray:
    frame_HWC = face.background_HWC.copy()
    x, y = SIZE // 2 + round(float(sway_C[0])), SIZE // 2 + 4 + round(float(sway_C[1]))
    _fill(frame_HWC, (x, SIZE + 12), (52, 36), face.hair)
    _fill(frame_HWC, (x, y - 8), (face.width + 5, face.height + 3), face.hair)
    _fill(frame_HWC, (x, y), (face.width, face.height), face.skin)
    for side in (-1, 1):
        eye = (x + side * face.width // 2, y - face.height // 4)
        _fill(frame_HWC, eye, (6, 1 if blink else 4), (245, 245, 245))
        _fill(frame_HWC, eye, (2, 1 if blink else 3), (40, 30, 30))
    mouth = (x, y + face.height // 2)
    _fill(frame_HWC, mouth, (12, 3 + round(8 * opening)), (160, 70, 70))
    _fill(frame_HWC, mouth, (9, round(8 * opening)), (50, 15, 20))
    return frame_HWC


def _fill(
    image_HWC: ImageArray, centre: tuple[int, int], axes: tuple[int, int], colour: Any
) -> None:
    cv2.ellipse(image_HWC, centre, axes, 0, 0, 360, colour, cv2.FILLED, cv2.LINE_AA)
