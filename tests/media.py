"""Tiny media files and data folders that the tests make for themselves."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from trainer.decode import DecodeSettings, Outcome, decode_clip

FloatArray = NDArray[np.float32]
AUDIO_CODECS = {
    ".wav": "pcm_s16le",
    ".flac": "flac",
    ".mp3": "libmp3lame",
    ".m4a": "aac",
    ".mp4": "aac",
    ".ogg": "libopus",
    ".mkv": "flac",
    ".webm": "libopus",
}
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm")


def make_tone(
    hertz: float = 440.0, seconds: float = 0.5, rate: int = 16_000, channels: int = 1
) -> FloatArray:
    """Return a sine at a quarter of full scale, as (channels, T)."""
    times_T = np.arange(round(seconds * rate)) / rate
    tone_T = 0.25 * np.sin(2 * np.pi * hertz * times_T)
    return np.tile(tone_T, (channels, 1)).astype(np.float32)


def write_media(
    path: Path,
    samples: FloatArray | None = None,
    rate: int = 16_000,
    *,
    codec: str | None = None,
    video: bool = False,
    options: Mapping[str, str] | None = None,
) -> Path:
    """Write samples, (channels, T), into the container that the file's suffix names.

    By default a short tone; with `video` a picture comes with it.
    """
    samples = make_tone(rate=rate) if samples is None else np.atleast_2d(samples)
    with av.open(str(path), "w", options=dict(options or {})) as container:
        layout = "mono" if len(samples) == 1 else "stereo"
        sound = container.add_stream(codec or AUDIO_CODECS[path.suffix], rate=rate, layout=layout)
        if video:
            _write_picture(container)
        _write_sound(container, sound, samples, rate, layout)
    return path


def write_silent_picture(path: Path) -> Path:
    """Write a video that has no audio track."""
    with av.open(str(path), "w") as container:
        _write_picture(container)
    return path


def write_dataset(root: Path, clips: Mapping[str, Mapping[str, int]]) -> Path:
    """Write an FFDV folder of short WAV tones, each at its own pitch: {split: {name: target}}."""
    pitch = 200
    for split, targets in clips.items():
        folder = root / f"{split}set"
        folder.mkdir(parents=True)
        for name in targets:
            write_media(folder / name, make_tone(pitch, 0.2))
            pitch += 10
        write_labels(root, split, targets)
    return root


def write_labels(root: Path, split: str, targets: Mapping[str, int]) -> Path:
    """Write a split's label file."""
    path = root / f"{split}set_label.txt"
    rows = "".join(f"{name},{target}\n" for name, target in targets.items())
    path.write_text(f"video_name,target\n{rows}", encoding="utf-8")
    return path


def small_clips(count: int = 2) -> dict[str, dict[str, int]]:
    """Return names and targets for `write_dataset`: so many clips of each class in each split."""
    targets = {f"{i:03}.wav": i % 2 for i in range(2 * count)}
    return {"train": targets, "val": dict(targets)}


def decode_or_die(path: Path, settings: DecodeSettings) -> Outcome:
    """Decode like the product, but die as from a decoder's own fault of a file called `killer`."""
    if path.name.startswith("killer"):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_clip(path, settings)


def _write_sound(
    container: av.container.OutputContainer,
    stream: av.AudioStream,
    samples: FloatArray,
    rate: int,
    layout: str,
) -> None:
    context = stream.codec_context
    if not context.is_open:
        context.open()
    resampler = av.AudioResampler(
        context.format, context.layout, context.rate, context.frame_size or 1024
    )
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
    frame.sample_rate = rate
    frame.pts = 0
    for part in [*resampler.resample(frame), *resampler.resample(None), None]:
        container.mux(stream.encode(part))


def _write_picture(container: av.container.OutputContainer) -> None:
    name = "libvpx" if container.format.name == "webm" else "mpeg4"
    stream = container.add_stream(name, rate=25, width=16, height=16, pix_fmt="yuv420p")
    for level in range(5):
        picture = np.full((16, 16, 3), 40 * level, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
    container.mux(stream.encode(None))
