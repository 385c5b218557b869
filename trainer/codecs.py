"""What lossy codecs make of a sound: encoded and decoded, as long and as aligned as before."""

import hashlib
import io
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray
from scipy.signal import correlate

from trainer.audio import FloatArray, resample
from trainer.errors import DataError
from trainer.index import CODECS

# Shape suffixes: T samples.

MAX_DELAY_SECONDS = 0.25
"""Encoders begin with silence, which players are told to skip; more than that none has."""


@dataclass(frozen=True)
class _Codec:
    encoder: str
    muxer: str
    demuxer: str
    rates: tuple[int, ...]
    """Hz that it takes, ascending."""
    bit_rates: tuple[int, ...]
    """Bits per second to draw from; of those that telephony, messengers and platforms use."""


_MPEG_RATES = (8000, 12_000, 16_000, 24_000, 32_000, 44_100, 48_000)
_CODECS = {
    "aac": _Codec("aac", "adts", "aac", _MPEG_RATES, (24_000, 32_000, 48_000, 64_000)),
    "mp3": _Codec("libmp3lame", "mp3", "mp3", _MPEG_RATES, (24_000, 32_000, 48_000, 64_000)),
    "opus": _Codec(
        "libopus", "ogg", "ogg", (16_000, 24_000, 48_000), (8000, 12_000, 16_000, 32_000)
    ),
    "g722": _Codec("g722", "g722", "g722", (16_000,), (64_000,)),
}
assert set(_CODECS) == set(CODECS)


def encode_and_decode(
    samples_T: NDArray[np.int16], sample_rate: int, codec: str, seed: str
) -> NDArray[np.int16]:
    """Return what a codec leaves of a sound, (T,) like the original, in time with it.

    The bit rate is drawn by the seed: equal seeds, equal copies.

    Raises:
        DataError: this build of FFmpeg lacks the encoder.
    """
    if not samples_T.any():
        return samples_T.copy()
    settings = _CODECS[codec]
    rate = next((x for x in settings.rates if x >= sample_rate), settings.rates[-1])
    draw = int.from_bytes(hashlib.sha256(f"{codec} {seed}".encode()).digest()[:4])
    bit_rate = settings.bit_rates[draw % len(settings.bit_rates)]
    original_T = samples_T.astype(np.float32) / np.float32(32768)
    encoded = _encode(resample(original_T, sample_rate, rate), rate, settings, bit_rate)
    decoded_T = resample(_decode(encoded, rate, settings.demuxer), rate, sample_rate)
    aligned_T = _align(decoded_T, original_T, round(MAX_DELAY_SECONDS * sample_rate))
    return (aligned_T * 32768).round().clip(-32768, 32767).astype(np.int16)


def _encode(sound_T: FloatArray, rate: int, settings: _Codec, bit_rate: int) -> bytes:
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=settings.muxer) as container:
            stream = container.add_stream(settings.encoder, rate=rate, layout="mono")
            stream.bit_rate = bit_rate
            context = stream.codec_context
            context.open()
            resampler = av.AudioResampler(
                context.format, context.layout, context.rate, context.frame_size or 1024
            )
            frame = av.AudioFrame.from_ndarray(sound_T[None], "fltp", "mono")
            frame.sample_rate, frame.pts = rate, 0
            for part in [*resampler.resample(frame), *resampler.resample(None), None]:
                container.mux(stream.encode(part))
    except (av.FFmpegError, av.codec.codec.UnknownCodecError) as error:
        raise DataError(
            f"this FFmpeg can't encode {settings.encoder}: {error}; install PyAV from its wheel, or"
            " leave --codecs out"
        ) from error
    return file.getvalue()


def _decode(encoded: bytes, rate: int, demuxer: str) -> FloatArray:
    """Return the decoded sound (T,) at the rate at which it was encoded."""
    with av.open(io.BytesIO(encoded), format=demuxer) as container:
        resampler = av.AudioResampler("fltp", "mono", rate)
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        frames += resampler.resample(None)
    parts: list[FloatArray] = [frame.to_ndarray()[0] for frame in frames]
    return np.concatenate(parts)


def _align(decoded_T: FloatArray, original_T: FloatArray, most: int) -> FloatArray:
    """Return the decoded sound shifted to where it fits best, cut or padded to the original."""
    correlation = correlate(decoded_T, original_T, mode="full", method="fft")
    zero = len(original_T) - 1
    begin = max(0, zero - most)
    delay = begin + int(np.argmax(correlation[begin : zero + most + 1])) - zero
    moved_T = decoded_T[delay:] if delay >= 0 else np.pad(decoded_T, (-delay, 0))
    moved_T = moved_T[: len(original_T)]
    return np.pad(moved_T, (0, len(original_T) - len(moved_T)))
