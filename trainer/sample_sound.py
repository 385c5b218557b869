"""The sound of a sample clip: a voice with human or with vocoder-like traits, and the channel.

Both classes run through the same code. They differ in nothing but the distributions that seven
strengths are drawn from, and these overlap, so no single trait tells the classes apart.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import fftconvolve, lfilter

from trainer.sample_voice import SAMPLE_RATE, FloatArray, Traits, synthesize_voice

# Shape suffixes: T samples, F frames, N frequency bins.
ComplexArray = NDArray[np.complex128]

_FFT_SIZE = 512
_HOP = 128
_VOCODER_PASSES = 3
_BETA_MORE, _BETA_LESS = 3.6, 1.5
"""Parameters of the Beta distributions of the traits; nearer to each other is harder."""


def render_sound(target: int, num_samples: int, rng: np.random.Generator) -> FloatArray:
    """Return a clip's sound in [-1, 1], (T,), at SAMPLE_RATE; target 1 is spoof."""
    traits = draw_traits(target, rng)
    voice_T = synthesize_voice(traits, num_samples, rng)
    voice_T = resynthesize(voice_T, traits.detail, traits.phase, rng)
    voice_T = _reverberate(voice_T, rng.uniform(0.02, 0.08), 0.1 + 0.6 * traits.room, rng)
    return _send_through_channel(voice_T, rng)


def draw_traits(target: int, rng: np.random.Generator) -> Traits:
    """Return traits of a bona fide (0) or a spoof (1) voice."""
    shape = (_BETA_MORE, _BETA_LESS) if target == 0 else (_BETA_LESS, _BETA_MORE)
    return Traits(*rng.beta(*shape, size=7).tolist())


def resynthesize(
    voice_T: FloatArray, detail: float, phase: float, rng: np.random.Generator
) -> FloatArray:
    """Return the voice from its smoothed magnitudes and half-guessed phases, (T,).

    With `detail` and `phase` at 1 it is the voice itself.

    Source: Griffin and Lim, IEEE Trans. ASSP 32, 1984.
    """
    spectrum_FN = _analyse(voice_T)
    log_FN = np.log(np.abs(spectrum_FN) + 1e-4)
    magnitude_FN = np.exp(gaussian_filter1d(log_FN, 1e-3 + 4.0 * (1 - detail), axis=0))
    guess_FN = rng.uniform(-np.pi, np.pi, size=spectrum_FN.shape) * (1 - phase)
    phase_FN = np.exp(1j * (np.angle(spectrum_FN) + guess_FN))
    for _ in range(_VOCODER_PASSES):
        consistent_FN = _analyse(_overlap_add(magnitude_FN * phase_FN, len(voice_T)))
        phase_FN = np.exp(1j * np.angle(consistent_FN))
    return _overlap_add(magnitude_FN * phase_FN, len(voice_T))


def _window() -> FloatArray:
    """Return the periodic Hann window whose squares add up to 1 at a hop of a quarter, (N,)."""
    return np.asarray(
        np.sin(np.pi * np.arange(_FFT_SIZE) / _FFT_SIZE) ** 2 / np.sqrt(1.5), dtype=np.float64
    )


def _analyse(samples_T: FloatArray) -> ComplexArray:
    tail = -len(samples_T) % _HOP
    padded_T = np.pad(samples_T, (_FFT_SIZE - _HOP, _FFT_SIZE - _HOP + tail))
    frames_FT = np.lib.stride_tricks.sliding_window_view(padded_T, _FFT_SIZE)[::_HOP]
    return np.fft.rfft(frames_FT * _window(), axis=1)


def _overlap_add(spectrum_FN: ComplexArray, num_samples: int) -> FloatArray:
    frames_FT = np.fft.irfft(spectrum_FN, axis=1) * _window()
    parts = _FFT_SIZE // _HOP
    hops = np.zeros((len(frames_FT) + parts - 1, _HOP))
    for part in range(parts):
        hops[part : part + len(frames_FT)] += frames_FT[:, part * _HOP : (part + 1) * _HOP]
    start = _FFT_SIZE - _HOP
    return hops.ravel()[start : start + num_samples]


def _reverberate(
    dry_T: FloatArray, decay_seconds: float, wet: float, rng: np.random.Generator
) -> FloatArray:
    seconds_T = np.arange(int(4 * decay_seconds * SAMPLE_RATE)) / SAMPLE_RATE
    response_T = rng.standard_normal(len(seconds_T)) * np.exp(-seconds_T / decay_seconds)
    response_T *= wet / np.sqrt(np.sum(response_T**2))
    response_T[0] = 1.0
    return np.asarray(fftconvolve(dry_T, response_T)[: len(dry_T)], dtype=np.float64)


def _send_through_channel(voice_T: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return the voice as a microphone gives it: room, timbre, limiter, noise and level, (T,)."""
    voice_T = _reverberate(voice_T, rng.uniform(0.03, 0.15), rng.uniform(0.05, 0.5), rng)
    voice_T = lfilter([1.0, rng.uniform(-0.5, 0.1)], [1.0, rng.uniform(-0.3, 0.1)], voice_T)
    drive = rng.uniform(0.25, 0.6)
    voice_T = np.tanh(drive * voice_T / voice_T.std())
    noise_T = lfilter([1.0], [1.0, -rng.uniform(0.0, 0.9)], rng.standard_normal(len(voice_T)))
    snr_db, level_db = rng.uniform(18, 38), rng.uniform(-34, -18)
    sound_T = voice_T / voice_T.std() + noise_T / noise_T.std() * 10 ** (-snr_db / 20)
    sound_T *= 10 ** (level_db / 20) / sound_T.std()
    return np.asarray(np.tanh(sound_T), dtype=np.float64)
