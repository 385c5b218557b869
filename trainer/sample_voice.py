"""A made voice: speech-like sound by the source-filter model, glottal pulses and moving resonances.

Source: Fant, Acoustic Theory of Speech Production, 1960 (source and filter); Klatt and Klatt,
JASA 87, 1990 (the pulse, aspiration noise); Peterson and Barney, JASA 24, 1952 (the vowels).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import sosfilt

# Shape suffixes: T samples, F frames of 5 ms, N resonances.
FloatArray = NDArray[np.float64]

SAMPLE_RATE = 16_000
"""Hz."""
FRAME_SAMPLES = 80
FRAMES_PER_SECOND = SAMPLE_RATE // FRAME_SAMPLES

_VOWELS = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (300, 870, 2240),
    (530, 1840, 2480),
    (570, 840, 2410),
    (660, 1720, 2410),
    (490, 1350, 1690),
)
_BANDWIDTHS_N = np.array([70.0, 90.0, 130.0, 250.0, 350.0])
_NEUTRAL = (500, 1500, 2500)


@dataclass(frozen=True)
class Traits:
    """How much a voice has of each human irregularity: 0 none of it, 1 as much as voices have."""

    jitter: float
    """Unequal lengths of the glottal cycles."""
    shimmer: float
    """Unequal loudness of the cycles, and its flutter over some tens of milliseconds."""
    breath: float
    """Aspiration noise within the cycles."""
    wander: float
    """Movement of the pitch."""
    room: float
    """Early reflections at the speaker's place."""
    detail: float
    """Fine structure of the spectrum over time, which vocoders smooth away."""
    phase: float
    """Phases that belong together, which vocoders guess."""


@dataclass(frozen=True)
class _Sound:
    """A piece of an utterance that holds its articulation."""

    seconds: float
    formants: tuple[float, float, float] = _NEUTRAL
    voicing: float = 0.0
    frication: float = 0.0
    centre_hz: float = 4000.0
    """Of the frication noise."""


@dataclass(frozen=True)
class _Tracks:
    """The articulation of a whole utterance, frame by frame."""

    formants_FN: FloatArray
    voicing_F: FloatArray
    frication_F: FloatArray
    centre_hz_F: FloatArray


def synthesize_voice(traits: Traits, num_samples: int, rng: np.random.Generator) -> FloatArray:
    """Return an utterance of nonsense syllables, (T,), by a speaker drawn from `rng`."""
    num_frames = -(-num_samples // FRAME_SAMPLES)
    tracks = _draw_tracks(num_frames, rng)
    f0_T = _to_samples(_draw_pitch(traits.wander, num_frames, rng))
    voicing_T = _to_samples(tracks.voicing_F)
    source_T = _glottal_source(f0_T, voicing_T, traits, rng)
    voiced_T = _resonate(source_T, tracks.formants_FN, _BANDWIDTHS_N)
    noise_T = rng.standard_normal(len(f0_T)) * _to_samples(tracks.frication_F)
    centres_FN = tracks.centre_hz_F[:, None] * np.array([1.0, 1.15])
    hiss_T = np.diff(_resonate(noise_T, centres_FN, np.array([900.0, 1400.0])), prepend=0.0)
    voice_T = voiced_T / _loudness(voiced_T) + 0.5 * hiss_T / _loudness(hiss_T)
    return voice_T[:num_samples]


def _loudness(samples_T: FloatArray) -> float:
    return float(np.sqrt(np.mean(samples_T**2))) + 1e-9


def _to_samples(track_F: FloatArray) -> FloatArray:
    frames = np.arange(len(track_F) * FRAME_SAMPLES) / FRAME_SAMPLES
    return np.interp(frames, np.arange(len(track_F)), track_F)


def _draw_tracks(num_frames: int, rng: np.random.Generator) -> _Tracks:
    sounds = _draw_sounds(num_frames / FRAMES_PER_SECOND, rng)
    lengths = [max(1, round(sound.seconds * FRAMES_PER_SECOND)) for sound in sounds]
    tract = rng.uniform(0.9, 1.2)
    rows = [
        (*sound.formants, 3500, 4400, sound.voicing, sound.frication, sound.centre_hz)
        for sound in sounds
    ]
    track_FN = np.repeat(np.array(rows, dtype=np.float64), lengths, axis=0)[:num_frames]
    formants_FN = gaussian_filter1d(track_FN[:, :5], 5.0, axis=0) * tract
    amplitudes_FN = gaussian_filter1d(track_FN[:, 5:7], 1.5, axis=0)
    return _Tracks(formants_FN, amplitudes_FN[:, 0], amplitudes_FN[:, 1], track_FN[:, 7])


def _draw_sounds(seconds: float, rng: np.random.Generator) -> list[_Sound]:
    sounds = [_Sound(rng.uniform(0.02, 0.2))]
    while sum(sound.seconds for sound in sounds) < seconds + 0.1:
        for _ in range(rng.integers(1, 5)):
            sounds += _draw_consonant(rng)
            vowel = _VOWELS[rng.integers(len(_VOWELS))]
            first, second, third = (hz * rng.uniform(0.93, 1.07) for hz in vowel)
            loudness = rng.uniform(0.6, 1.0)
            sounds.append(_Sound(rng.uniform(0.07, 0.2), (first, second, third), loudness))
        sounds.append(_Sound(rng.uniform(0.05, 0.25)))
    return sounds


def _draw_consonant(rng: np.random.Generator) -> list[_Sound]:
    kind = rng.choice(["fricative", "voiced", "nasal", "plosive", "glide"])
    seconds, centre = rng.uniform(0.05, 0.11), rng.uniform(2200, 6300)
    if kind == "fricative":
        return [_Sound(seconds, frication=0.5, centre_hz=centre)]
    if kind == "voiced":
        return [_Sound(seconds, voicing=0.3, frication=0.25, centre_hz=centre)]
    if kind == "nasal":
        return [_Sound(seconds, (250, 1100, 2300), voicing=0.35)]
    if kind == "glide":
        return [_Sound(seconds, (350, rng.uniform(800, 2200), 2400), voicing=0.6)]
    return [_Sound(seconds), _Sound(0.015, frication=1.0, centre_hz=centre)]


def _draw_pitch(wander: float, num_frames: int, rng: np.random.Generator) -> FloatArray:
    """Return f0 in Hz, (F,): declination, accents, a slow walk and tremor."""
    seconds_F = np.arange(num_frames) / FRAMES_PER_SECOND
    accents_F = gaussian_filter1d(rng.standard_normal(num_frames), 25.0)
    walk_F = gaussian_filter1d(rng.standard_normal(num_frames), 8.0)
    tremor_F = np.sin(2 * np.pi * (rng.uniform(4, 8) * seconds_F + rng.uniform()))
    movement_F = 2.5 * accents_F / accents_F.std() + 0.7 * walk_F / walk_F.std() + 0.25 * tremor_F
    declination_F = rng.uniform(-2.5, -0.5) * seconds_F
    semitones_F = (0.1 + 0.9 * wander) * movement_F + declination_F
    base_hz = 85 * 2 ** rng.uniform(0, 1.4)
    return np.asarray(base_hz * 2 ** (semitones_F / 12), dtype=np.float64)


def _glottal_source(
    f0_T: FloatArray, voicing_T: FloatArray, traits: Traits, rng: np.random.Generator
) -> FloatArray:
    """Return the derivative of the glottal flow with aspiration noise, (T,)."""
    cycles_T = np.cumsum(f0_T) / SAMPLE_RATE
    num_cycles = int(2 * cycles_T[-1]) + 2
    jitter = 0.03 * traits.jitter * rng.standard_normal(num_cycles)
    cycles_T = np.cumsum(f0_T * (1 + jitter[cycles_T.astype(int)])) / SAMPLE_RATE
    shimmer = np.exp(0.3 * traits.shimmer * rng.standard_normal(num_cycles))
    flutter_T = _draw_flutter(len(f0_T), rng)
    loudness_T = voicing_T * shimmer[cycles_T.astype(int)] * np.exp(traits.shimmer * flutter_T)
    open_T = (cycles_T % 1.0) / rng.uniform(0.5, 0.7)
    pulse_T = np.where(open_T < 1, 2 * open_T - 3 * open_T**2, 0.0)
    aspiration_T = rng.standard_normal(len(f0_T)) * np.where(open_T < 1, 1.0, 0.3)
    flow_T = pulse_T + (0.01 + 0.25 * traits.breath) * aspiration_T
    return np.asarray(loudness_T * flow_T, dtype=np.float64)


def _draw_flutter(num_samples: int, rng: np.random.Generator) -> FloatArray:
    """Return a walk of the loudness in nepers over some tens of milliseconds, (T,)."""
    num_frames = -(-num_samples // FRAME_SAMPLES)
    flutter_F = gaussian_filter1d(rng.standard_normal(num_frames), 2.0)
    track_F = np.asarray(0.3 * flutter_F / flutter_F.std(), dtype=np.float64)
    return _to_samples(track_F)[:num_samples]


def _resonate(source_T: FloatArray, centres_FN: FloatArray, bandwidths_N: FloatArray) -> FloatArray:
    """Return the source after a cascade of resonances that move from frame to frame, (T,)."""
    radius_N = np.exp(-np.pi * bandwidths_N / SAMPLE_RATE)
    angle_FN = 2 * np.pi * np.minimum(centres_FN, 0.46 * SAMPLE_RATE) / SAMPLE_RATE
    sections_FNC = np.zeros((*centres_FN.shape, 6))
    sections_FNC[..., 3] = 1.0
    sections_FNC[..., 4] = -2 * radius_N * np.cos(angle_FN)
    sections_FNC[..., 5] = radius_N**2
    sections_FNC[..., 0] = sections_FNC[..., 3:].sum(axis=-1)
    state = np.zeros((centres_FN.shape[1], 2))
    blocks = []
    for frame, sections in enumerate(sections_FNC):
        block = source_T[frame * FRAME_SAMPLES : (frame + 1) * FRAME_SAMPLES]
        block, state = sosfilt(sections, block, zi=state)
        blocks.append(block)
    return np.concatenate(blocks)
