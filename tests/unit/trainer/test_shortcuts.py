"""Shortcuts of a clip: numbers that a ruler would read off."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from tests.media import make_tone, write_media
from trainer.shortcuts import (
    CHUNK,
    FRAME,
    GROUPS,
    HOP,
    SAMPLE_RATE,
    measure_shortcuts,
    measure_sound,
)


def noise(seconds: float = 1.0, level: float = 0.1) -> np.ndarray:
    """Return white noise at the rate of the audit."""
    rng = np.random.default_rng(0)
    return (level * rng.standard_normal(round(seconds * SAMPLE_RATE))).clip(-1, 1).astype("f4")


def test_level_and_length_are_those_of_a_sine() -> None:
    """A quarter of full scale is -12 dB, its root mean square 3 dB less."""
    found = measure_sound(make_tone(440, 2.0, SAMPLE_RATE)[0], SAMPLE_RATE)
    assert found["seconds"] == pytest.approx(2.0, abs=1e-4)
    assert found["peak_db"] == pytest.approx(-12.04, abs=0.02)
    assert found["crest_db"] == pytest.approx(3.01, abs=0.02)
    assert found["offset"] == pytest.approx(0, abs=1e-3)
    assert found["clipped_share"] == 0


def test_silence_at_the_ends_is_measured() -> None:
    """Half a second before, a quarter after, of two seconds in all."""
    sound = np.concatenate([np.zeros(22_050), noise(1.25), np.zeros(11_025)]).astype("f4")
    found = measure_sound(sound, SAMPLE_RATE)
    assert found["leading_quiet_seconds"] == pytest.approx(0.5, abs=0.03)
    assert found["trailing_quiet_seconds"] == pytest.approx(0.25, abs=0.03)
    assert found["quiet_share"] == pytest.approx(0.375, abs=0.03)


def test_band_ends_where_the_sound_does() -> None:
    """Noise through a low-pass of 4 kHz: 99 % of it lies below about that."""
    low = butter(8, 4000, output="sos", fs=SAMPLE_RATE)
    found = measure_sound(sosfilt(low, noise(2.0)).astype("f4"), SAMPLE_RATE)
    assert found["rolloff_99_hz"] == pytest.approx(4000, rel=0.15)
    assert found["rolloff_85_hz"] == pytest.approx(3450, rel=0.05)
    assert 4500 < float(found["cutoff_hz"]) < 12_000


def test_clipping_and_offset_are_seen() -> None:
    """A square wave is clipped all over; what is lifted has an offset."""
    square = np.sign(make_tone(100, 1.0, SAMPLE_RATE)[0])
    assert float(measure_sound(square, SAMPLE_RATE)["clipped_share"]) > 0.99
    assert measure_sound(noise() + np.float32(0.2), SAMPLE_RATE)["offset"] == pytest.approx(
        0.2, abs=0.01
    )


@pytest.mark.parametrize(
    "num_samples", [700, CHUNK * HOP - 513, CHUNK * HOP, CHUNK * HOP + 1, 2 * CHUNK * HOP + 777]
)
def test_chunks_are_measured_as_the_whole(num_samples: int) -> None:
    """Levels, silence and band are those of the plain formulas, wherever the last chunk ends."""
    sound = noise(num_samples / SAMPLE_RATE, level=0.3) + np.float32(0.02)
    sound[: num_samples // 3] *= 1e-4
    found = measure_sound(sound, SAMPLE_RATE)
    padded = np.pad(sound.astype(np.float64), FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP]
    is_quiet = (rms := np.sqrt((frames**2).mean(axis=1))) < rms.max() / 100
    power = (np.abs(np.fft.rfft(frames * np.hanning(FRAME))) ** 2).mean(axis=0)
    below = np.searchsorted(np.cumsum(power) / power.sum(), [0.85, 0.95, 0.99])
    expected = {
        "rms_db": 10 * np.log10(np.mean(sound.astype(np.float64) ** 2)),
        "peak_db": 20 * np.log10(np.abs(sound).max()),
        "offset": abs(sound.astype(np.float64).mean()),
        "clipped_share": np.mean(np.abs(sound) >= 0.999),
        "leading_quiet_seconds": np.argmin(is_quiet) * HOP / SAMPLE_RATE,
        "quiet_share": is_quiet.mean(),
        "rolloff_85_hz": below[0] * SAMPLE_RATE / FRAME,
        "rolloff_95_hz": below[1] * SAMPLE_RATE / FRAME,
        "rolloff_99_hz": below[2] * SAMPLE_RATE / FRAME,
        "cutoff_hz": np.flatnonzero(power > power.max() / 1e6)[-1] * SAMPLE_RATE / FRAME,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_memory_does_not_grow_with_the_length() -> None:
    """Beside the sound itself ten times the length needs the same, in well under 100 MiB."""
    short, long = (peak_bytes(noise(seconds)) for seconds in (15.0, 150.0))
    assert long < 1.1 * short
    assert long < 100 * 2**20


def peak_bytes(sound: np.ndarray) -> int:
    """Return the most memory that is held while a sound is measured."""
    tracemalloc.start()
    try:
        measure_sound(sound, SAMPLE_RATE)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_file_says_how_it_was_made(tmp_path: Path) -> None:
    """Every shortcut but the place has a value; words and numbers are of the container."""
    path = write_media(tmp_path / "a.mp4", make_tone(seconds=1.0), video=True)
    found = measure_shortcuts(path)
    assert not isinstance(found, str)
    assert set(found) == {name for names in GROUPS.values() for name in names} - {"place"}
    assert (found["audio_codec"], found["channels"]) == ("aac", 1)
    assert found["num_streams"] == 2
    assert found["size_bytes"] == path.stat().st_size
    assert found["bytes_per_second"] == pytest.approx(path.stat().st_size, rel=0.15)


def test_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """A reason, never an exception: it crosses processes."""
    (tmp_path / "a.mp4").write_bytes(b"")
    assert measure_shortcuts(tmp_path / "a.mp4") == "empty file"
