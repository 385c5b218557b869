"""Decode one file's sound."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from trainer.dataset import MAX_SECONDS
from trainer.errors import DataError

FloatArray = NDArray[np.float32]

MIN_SECONDS = 0.1
SILENT_PEAK = 1e-4
"""-80 dB of full scale."""
MAX_LOST = 0.05
"""A file is rejected when more than this share of its packets or of its length is lost."""
PLAUSIBLE_RATES = range(1000, 768_001)

# Containers of sound, no playlists: those could name other files and hosts.
_FORMATS = (
    "3g2,3gp,aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,m4a,matroska,mj2,mov,mp2,mp3,mp4,"
    "mpeg,mpegts,ogg,tta,voc,w64,wav,webm,wv"
)
_MAGIC = (b"RIFF", b"OggS", b"fLaC", b"ID3", b"\x1a\x45\xdf\xa3")
_EXACT_LENGTH = {"flac", "mov,mp4,m4a,3gp,3g2,mj2"}
"""Formats whose header tells a track's length, where others guess it."""
_UNKNOWN_LENGTH = 0x7FFF_0000
"""What a RIFF header says at least when it was written before the length was known."""
_SCALES = {"u1": 2**7, "i2": 2**15, "i4": 2**31, "f4": 1, "f8": 1}


class UndecodableError(DataError):
    """A file's sound can't be had; the message is a short phrase that groups alike files."""


class NoSoundError(UndecodableError):
    """There is none in it; its picture may be whole."""


def decode_mono(path: Path, sample_rates: Sequence[int]) -> list[FloatArray]:
    """Return the sound at each of the sample rates, as (T,) in [-1, 1].

    Channels are averaged. Resampling is librosa's own default (soxr, high quality) from the
    file's rate, for every target rate. Of a clip longer than MAX_SECONDS the start is kept.

    Raises:
        UndecodableError: says why in a short phrase.
    """
    samples_T, sample_rate = _decode(path)
    if len(samples_T) < MIN_SECONDS * sample_rate:
        raise UndecodableError(f"shorter than {MIN_SECONDS} s")
    if not np.isfinite(samples_T).all():
        raise UndecodableError("samples that are not numbers")
    if np.abs(samples_T).max() < SILENT_PEAK:
        raise NoSoundError("silent")
    samples_T = np.clip(samples_T, -1, 1)
    return [resample(samples_T, sample_rate, wanted) for wanted in sample_rates]


def resample(samples_T: FloatArray, sample_rate: int, wanted_rate: int) -> FloatArray:
    """Return the samples at another rate, as `librosa.resample` does, kept in [-1, 1]."""
    if sample_rate == wanted_rate:
        return samples_T
    size = ceil(len(samples_T) * wanted_rate / sample_rate)
    resampled_T: FloatArray = soxr.resample(samples_T, sample_rate, wanted_rate, quality="HQ")[
        :size
    ]
    resampled_T = np.pad(resampled_T, (0, size - len(resampled_T)))
    return resampled_T.clip(-1, 1)


def _decode(path: Path) -> tuple[FloatArray, int]:
    """Return the mixed-down samples at the file's own rate, and that rate in Hz."""
    with open_container(path) as container:
        if not container.streams.audio:
            raise NoSoundError("no audio track")
        return _decode_stream(container, container.streams.audio[0])


@contextmanager
def open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a media file; what goes wrong in the block is told in a short phrase.

    Raises:
        UndecodableError: says why it can't be opened or decoded.
    """
    head = _read_head(path)
    try:
        with av.open(
            os.path.abspath(path),  # noqa: PTH100, an absolute path is never taken for a URL
            container_options={"format_whitelist": _FORMATS},
            metadata_errors="replace",
        ) as container:
            yield container
    except av.DecoderNotFoundError as error:
        raise UndecodableError("no decoder for its sound") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        known = head.startswith(_MAGIC) or head[4:8] == b"ftyp"
        raise UndecodableError("damaged or truncated" if known else "not a media file") from error
    except MemoryError as error:
        raise UndecodableError("too large for the memory") from error


def _read_head(path: Path) -> bytes:
    """Return the first bytes, which tell a damaged media file from another kind of file.

    A WAV file's tell its length, too, which FFmpeg would quietly correct.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
            actual_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UndecodableError("unreadable") from error
    if not head:
        raise UndecodableError("empty file")
    size_bytes = int.from_bytes(head[4:8], "little") if head.startswith(b"RIFF") else 0
    if size_bytes < _UNKNOWN_LENGTH and actual_bytes < (1 - MAX_LOST) * size_bytes:
        raise UndecodableError("damaged or truncated")
    return head


def _decode_stream(
    container: av.container.InputContainer, stream: av.AudioStream
) -> tuple[FloatArray, int]:
    chunks: list[FloatArray] = []
    num_samples, sample_rate = 0, 0
    for frame in _decode_frames(container, stream):
        sample_rate = sample_rate or frame.sample_rate
        if sample_rate not in PLAUSIBLE_RATES:
            raise UndecodableError("implausible sample rate")
        if frame.sample_rate != sample_rate:
            raise UndecodableError("sample rate changes midway")
        chunks.append(_mix_down(frame))
        num_samples += frame.samples
        if num_samples >= MAX_SECONDS * sample_rate:
            break
    if not chunks:
        raise NoSoundError("no sound in its audio track")
    seconds = min(_declared_seconds(container, stream), MAX_SECONDS)
    if num_samples < (1 - MAX_LOST) * seconds * sample_rate:
        raise UndecodableError("damaged or truncated")
    return np.concatenate(chunks)[: MAX_SECONDS * sample_rate], sample_rate


def _declared_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """Return how long the header says that the track is, or 0 if it can't know."""
    if container.format.name not in _EXACT_LENGTH or not stream.duration or not stream.time_base:
        return 0.0
    return float(stream.duration * stream.time_base)


def _decode_frames(
    container: av.container.InputContainer, stream: av.AudioStream
) -> Iterator[av.AudioFrame]:
    """Yield the decoded frames; pass over a few damaged packets, as players do."""
    num_packets = num_damaged = 0
    for packet in container.demux(stream):
        num_packets += 1
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            num_damaged += 1
    if num_damaged > MAX_LOST * num_packets:
        raise UndecodableError("damaged or truncated")


def _mix_down(frame: av.AudioFrame) -> FloatArray:
    """Return the mean of a frame's channels as (T,); full scale is 1."""
    try:
        samples = frame.to_ndarray()
    except ValueError as error:  # of 64-bit integers
        raise UndecodableError("its sample format is not supported") from error
    num_channels = frame.layout.nb_channels
    if not frame.format.is_planar:
        samples = samples.reshape(-1, num_channels).T
    scale = _SCALES[samples.dtype.str[1:]]
    offset = scale if samples.dtype.kind == "u" else 0
    mixed_T = samples[0] if num_channels == 1 else samples.mean(axis=0)
    scaled_T = (mixed_T - np.float32(offset)) / np.float32(scale)
    return np.asarray(scaled_T, np.float32)
