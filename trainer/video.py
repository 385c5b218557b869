"""Decode one file's picture: pairs of frames at moments spread over its sound, around the face."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.audio import (
    MIN_SECONDS,
    FloatArray,
    NoSoundError,
    UndecodableError,
    decode_mono,
    open_container,
)
from trainer.dataset import MAX_SECONDS
from trainer.faces import crop_face, track_face
from trainer.index import FRAMES_PER_MOMENT, MOMENTS, frame_shape

# Shape suffixes: P moments, D the two frames of a moment, S height and width, C colours.

LONGEST_SIDE = 480
"""Frames are made as small as this before anything is done with them."""

Image = NDArray[np.uint8]
"""(H, W, 3) in RGB."""


def decode_frames(path: Path, frame_size: int, seconds: float) -> NDArray[np.uint8]:
    """Return a clip's frames (P, D, S, S, C) in RGB; all black if it has no picture.

    `seconds` is how long its sound is: the moments are spread over that, from the sound's start.
    A picture that ends earlier stands still from there. The face is cut out, the same cut for both
    frames of a moment; if none is found anywhere, the whole frame is there.
    """
    moments = [(number + 0.5) / MOMENTS * seconds for number in range(MOMENTS)]
    pairs: list[list[Image]] = []
    # What can't be decoded of the picture doesn't make the sound useless.
    with suppress(UndecodableError), open_container(path) as container:
        if container.streams.video:
            pairs = _pick(container, moments)
    if not pairs:
        return np.zeros(frame_shape(frame_size), np.uint8)
    boxes_P3 = track_face([first for first, _ in pairs])
    return np.stack(
        [
            np.stack([crop_face(image, box, frame_size) for image in pair])
            for pair, box in zip(pairs, boxes_P3, strict=True)
        ]
    )


def decode_mono_or_silence(path: Path, sample_rates: Sequence[int]) -> list[FloatArray]:
    """Return what decode_mono does; of a file that has only a picture, silence as long as that.

    Raises:
        UndecodableError: it has neither, or its sound is there but damaged.
    """
    try:
        return decode_mono(path, sample_rates)
    except NoSoundError:
        seconds = _picture_seconds(path)
        if seconds < MIN_SECONDS:
            raise
        return [np.zeros(round(seconds * rate), np.float32) for rate in sample_rates]


def _picture_seconds(path: Path) -> float:
    """Return how long a file's picture is, as far as its header tells; 0 without one."""
    with open_container(path) as container:
        if container.streams.video and container.duration:
            return float(min(container.duration / av.time_base, MAX_SECONDS))
    return 0.0


def _pick(container: av.container.InputContainer, moments: list[float]) -> list[list[Image]]:
    """Return the first frame at or after each moment, with the one after it."""
    pairs: list[list[Image]] = []
    last = None
    for seconds, frame in _frames(container):
        waiting = [pair for pair in pairs[-1:] if len(pair) < FRAMES_PER_MOMENT]
        num_due = sum(moment <= seconds for moment in moments[len(pairs) :])
        if waiting or num_due:
            image = _to_image(frame)
            for pair in pairs:
                if len(pair) < FRAMES_PER_MOMENT:
                    pair.append(image)
            pairs += [[image] for _ in range(num_due)]
        last = frame
        if len(pairs) == len(moments) and len(pairs[-1]) == FRAMES_PER_MOMENT:
            break
    if last is None:
        return []
    image = _to_image(last)
    pairs += [[image] for _ in moments[len(pairs) :]]
    return [pair if len(pair) == FRAMES_PER_MOMENT else pair * 2 for pair in pairs]


def _frames(container: av.container.InputContainer) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield the frames, each with its time in seconds after the sound's start."""
    video = container.streams.video[0]
    leading = container.streams.audio[0] if container.streams.audio else video
    start = float((leading.start_time or 0) * (leading.time_base or 0))
    for packet in container.demux(video):
        with suppress(av.InvalidDataError):  # players, too, pass over damaged packets
            for frame in packet.decode():
                seconds = (frame.time or 0.0) - start
                if seconds > MAX_SECONDS:
                    return
                yield seconds, frame


def _to_image(frame: av.VideoFrame) -> Image:
    """Return a frame upright, its longer side at most LONGEST_SIDE."""
    image = frame.to_ndarray(format="rgb24")
    scale = LONGEST_SIDE / max(image.shape)
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
