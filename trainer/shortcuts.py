"""What tells of a clip without listening: length, level, silence, band, size, construction."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.audio import UndecodableError, decode_mono, open_container

# Shape suffixes: T samples, F frames, N frequency bins.

GROUPS: Mapping[str, tuple[str, ...]] = {
    "duration": ("seconds",),
    "level": ("rms_db", "peak_db", "crest_db", "offset", "clipped_share"),
    "silence": ("leading_quiet_seconds", "trailing_quiet_seconds", "quiet_share"),
    "bandwidth": ("rolloff_85_hz", "rolloff_95_hz", "rolloff_99_hz", "cutoff_hz"),
    "file size": ("size_bytes", "bytes_per_second"),
    "construction": (
        "container", "encoder", "num_streams", "audio_codec", "sample_rate", "channels",
        "audio_bit_rate", "video_codec", "width", "height", "frames_per_second", "video_bit_rate",
    ),
    "order of names": ("place",),
}  # fmt: skip
"""What is measured, by what it says of a clip; `place` is the audit's own."""
WORDS = ("container", "encoder", "audio_codec", "video_codec")
"""Those that are no numbers."""

SAMPLE_RATE = 44_100
"""Hz, of the sound that is measured."""
FRAME, HOP = 2048, 512
CHUNK = 1024
"""Frames that are measured at once, in about 40 MiB."""
QUIET_DB = 40.0
"""Below the loudest frame."""
CUTOFF_DB = 60.0
"""Below the strongest frequency, on average over the clip."""
CLIPPED = 0.999
_TINY = 1e-10

Shortcuts = dict[str, float | str]


def measure_shortcuts(path: Path, sample_rate: int = SAMPLE_RATE) -> Shortcuts | str:
    """Return all but the place of a file by name, or why it can't be read."""
    try:
        (samples_T,) = decode_mono(path, [sample_rate])
        seconds = len(samples_T) / sample_rate
        return measure_sound(samples_T, sample_rate) | measure_construction(path, seconds)
    except UndecodableError as error:
        return str(error)


def measure_sound(samples_T: NDArray[np.float32], sample_rate: int) -> Shortcuts:
    """Return duration, level, silence and bandwidth of a sound in [-1, 1].

    What it needs beside the sound is nearly the same for any length.
    """
    total = energy = peak = 0.0
    num_clipped = 0
    power_N = np.zeros(FRAME // 2 + 1)
    rms = []
    for begin in range(0, len(samples_T) + 1, CHUNK * HOP):
        part_T = samples_T[begin : begin + CHUNK * HOP].astype(np.float64)
        total += float(part_T.sum())
        energy += float(np.square(part_T).sum())
        peak = max(peak, float(np.abs(part_T).max(initial=0)))
        num_clipped += int((np.abs(part_T) >= CLIPPED).sum())
        frames_FT = _cut_frames(samples_T, begin)
        rms.append(np.sqrt(np.square(frames_FT).mean(axis=1)))
        power_N += (np.abs(np.fft.rfft(frames_FT * np.hanning(FRAME), axis=1)) ** 2).sum(axis=0)
    rms_F = np.concatenate(rms)
    loudness = _decibels(math.sqrt(energy / len(samples_T)))
    return {
        "seconds": len(samples_T) / sample_rate,
        "rms_db": loudness,
        "peak_db": _decibels(peak),
        "crest_db": _decibels(peak) - loudness,
        "offset": abs(total / len(samples_T)),
        "clipped_share": num_clipped / len(samples_T),
        **_measure_silence(rms_F, sample_rate),
        **_measure_band(power_N / len(rms_F), sample_rate),
    }


def measure_construction(path: Path, seconds: float) -> Shortcuts:
    """Return what the container says of itself; nan or nothing where it doesn't.

    Raises:
        UndecodableError: it can't be opened.
    """
    size_bytes = path.stat().st_size
    with open_container(path) as container:
        audio = container.streams.audio[0] if container.streams.audio else None
        video = container.streams.video[0] if container.streams.video else None
        return {
            "size_bytes": float(size_bytes),
            "bytes_per_second": size_bytes / seconds,
            "container": container.format.name,
            "encoder": container.metadata.get("encoder", ""),
            "num_streams": float(len(container.streams)),
            "audio_codec": audio.codec_context.name if audio else "",
            "sample_rate": _number(audio and audio.sample_rate),
            "channels": _number(audio and audio.layout.nb_channels),
            "audio_bit_rate": _number(audio and audio.bit_rate),
            "video_codec": video.codec_context.name if video else "",
            "width": _number(video and video.width),
            "height": _number(video and video.height),
            "frames_per_second": _number(video and video.average_rate),
            "video_bit_rate": _number(video and video.bit_rate),
        }


def _cut_frames(samples_T: NDArray[np.float32], begin: int) -> NDArray[np.float64]:
    """Return the frames (F, T) around a chunk's samples, with silence around the sound."""
    size = min(CHUNK * HOP, len(samples_T) + 1 - begin)
    before, after = begin - FRAME // 2, begin + size - 1 + FRAME // 2
    around_T = np.pad(
        samples_T[max(before, 0) : after].astype(np.float64),
        (max(-before, 0), max(after - len(samples_T), 0)),
    )
    return np.lib.stride_tricks.sliding_window_view(around_T, FRAME)[::HOP]


def _measure_silence(rms_F: NDArray[np.float64], sample_rate: int) -> Shortcuts:
    quiet_F = rms_F < rms_F.max() * 10 ** (-QUIET_DB / 20)
    loud = np.flatnonzero(~quiet_F)
    step = HOP / sample_rate
    return {
        "leading_quiet_seconds": float(loud[0] * step),
        "trailing_quiet_seconds": float((len(quiet_F) - 1 - loud[-1]) * step),
        "quiet_share": float(quiet_F.mean()),
    }


def _measure_band(power_N: NDArray[np.float64], sample_rate: int) -> Shortcuts:
    """Return below which frequencies the power lies, and the highest one that is heard at all."""
    hertz_N = np.fft.rfftfreq(FRAME, 1 / sample_rate)
    below_N = np.cumsum(power_N) / max(power_N.sum(), _TINY)
    heard = np.flatnonzero(power_N > power_N.max() * 10 ** (-CUTOFF_DB / 10))
    rolloffs = {
        f"rolloff_{percent}_hz": float(hertz_N[np.argmax(below_N >= percent / 100)])
        for percent in (85, 95, 99)
    }
    return {**rolloffs, "cutoff_hz": float(hertz_N[heard[-1]]) if len(heard) else 0.0}


def _decibels(amplitude: float) -> float:
    return 20 * math.log10(max(amplitude, _TINY))


def _number(value: object) -> float:
    return float(value) if value else math.nan  # type: ignore[arg-type]
