"""Decoding: every container gives its sound, every bad file its reason."""

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.media import AUDIO_CODECS, VIDEO_SUFFIXES, make_tone, write_media, write_silent_picture
from trainer.audio import UndecodableError, decode_mono

RATE = 16_000


def reason(path: Path) -> str:
    with pytest.raises(UndecodableError) as caught:
        decode_mono(path, [RATE])
    return str(caught.value)


@pytest.mark.parametrize("suffix", AUDIO_CODECS)
def test_every_container_gives_its_sound(tmp_path: Path, suffix: str) -> None:
    """A tone comes out of each container at its own pitch and loudness."""
    path = write_media(tmp_path / f"tone{suffix}", video=suffix in VIDEO_SUFFIXES)
    (samples_T,) = decode_mono(path, [RATE])
    assert samples_T.dtype == np.float32
    assert 0.5 * RATE <= len(samples_T) < 0.6 * RATE
    middle_T = samples_T[2000:6000]
    assert np.abs(middle_T).max() == pytest.approx(0.25, abs=0.02)
    assert np.abs(np.fft.rfft(middle_T)).argmax() * RATE / 4000 == pytest.approx(440, abs=5)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_every_sample_format_has_the_same_scale(tmp_path: Path, codec: str) -> None:
    """Full scale is 1 whatever the file's own numbers are."""
    path = write_media(tmp_path / "tone.wav", codec=codec)
    (samples_T,) = decode_mono(path, [RATE])
    assert samples_T == pytest.approx(make_tone()[0], abs=0.01)


def test_stereo_at_48_khz_becomes_the_mean_at_the_asked_rates(tmp_path: Path) -> None:
    """Channels are averaged, and each rate gets its own resampling."""
    left, right = make_tone(440, 1, 48_000), make_tone(880, 1, 48_000)
    path = write_media(tmp_path / "a.wav", np.concatenate([left, right]), 48_000)
    at_16k_T, at_22k_T = decode_mono(path, [16_000, 22_050])
    assert (len(at_16k_T), len(at_22k_T)) == (16_000, 22_050)
    mean_T = (make_tone(440, 1)[0] + make_tone(880, 1)[0]) / 2
    assert at_16k_T[1000:-1000] == pytest.approx(mean_T[1000:-1000], abs=1e-3)


def test_hour_long_clip_is_cut_and_not_refused(tmp_path: Path) -> None:
    """Of an hour the first ten minutes are kept, so that memory stays bounded."""
    path = write_media(tmp_path / "hour.wav", make_tone(rate=8000), 8000)
    data = bytearray(path.read_bytes())
    num_bytes = 3600 * 8000 * 2
    start = data.index(b"data") + 4
    data[4:8] = (num_bytes + start - 4).to_bytes(4, "little")
    data[start : start + 4] = num_bytes.to_bytes(4, "little")
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(start + 4 + num_bytes)  # the rest reads as silence and takes no space
    (samples_T,) = decode_mono(path, [8000])
    assert len(samples_T) == 600 * 8000


@pytest.mark.parametrize("name", ["two  words.mp4", "голос-🎤.mp4", "two\nlines.mp4", "http:x.mp4"])
def test_odd_file_names_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """No name is taken for a pattern, an option or an address, not even as a relative path."""
    write_media(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(decode_mono(Path(name), [RATE])[0]) >= RATE // 2


def test_empty_file_is_told(tmp_path: Path) -> None:
    """A file of zero bytes has its own reason."""
    (tmp_path / "a.mp4").touch()
    assert reason(tmp_path / "a.mp4") == "empty file"


@pytest.mark.parametrize("content", [b"hello, world\n" * 100, b"\x89PNG\r\n\x1a\n" + b"\0" * 500])
def test_file_of_another_kind_is_told(tmp_path: Path, content: bytes) -> None:
    """Text or a picture under a video's name is not a media file."""
    (tmp_path / "a.mp4").write_bytes(content)
    assert reason(tmp_path / "a.mp4") == "not a media file"


def test_playlist_is_not_followed(tmp_path: Path) -> None:
    """A playlist under a video's name can't make FFmpeg read other files."""
    other = write_media(tmp_path / "other.mp4", make_tone(seconds=1))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.mp4").write_text(playlist)
    assert reason(tmp_path / "a.mp4") == "not a media file"


@pytest.mark.parametrize("faststart", [False, True])
@pytest.mark.parametrize("suffix", [".mp4", ".m4a", ".wav", ".flac"])
def test_truncated_file_is_told(tmp_path: Path, suffix: str, faststart: bool) -> None:
    """A download that broke off is rejected even where its start would play."""
    options = {"movflags": "faststart"} if faststart and suffix in (".mp4", ".m4a") else {}
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 3 * RATE)).astype(np.float32)
    path = write_media(tmp_path / f"a{suffix}", noise, options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert reason(path) == "damaged or truncated"


def test_few_damaged_packets_are_passed_over(tmp_path: Path) -> None:
    """One bad spot costs a moment of sound, a file full of them is rejected."""
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 5 * RATE)).astype(np.float32)
    whole = write_media(tmp_path / "a.flac", noise).read_bytes()
    middle = len(whole) // 2
    (tmp_path / "spot.flac").write_bytes(whole[:middle] + b"\0" * 50 + whole[middle + 50 :])
    assert len(decode_mono(tmp_path / "spot.flac", [RATE])[0]) > 4.7 * RATE
    (tmp_path / "bad.flac").write_bytes(whole[: middle // 2] + b"\0" * (len(whole) - middle // 2))
    assert reason(tmp_path / "bad.flac") == "damaged or truncated"


def test_video_without_audio_track_is_told(tmp_path: Path) -> None:
    """A silent film has its own reason."""
    assert reason(write_silent_picture(tmp_path / "a.mp4")) == "no audio track"


@pytest.mark.parametrize("name", ["a.wav", "a.mp4"])
def test_sound_of_20_ms_is_too_short(tmp_path: Path, name: str) -> None:
    """A clip without room for one Fourier transform is rejected."""
    path = write_media(tmp_path / name, make_tone(seconds=0.02), video=name == "a.mp4")
    assert reason(path) == "shorter than 0.1 s"


@pytest.mark.parametrize("name", ["a.wav", "a.mp4", "a.ogg"])
def test_silence_is_told(tmp_path: Path, name: str) -> None:
    """Nothing can be learned from silence, coded or not."""
    path = write_media(tmp_path / name, np.zeros((1, RATE), np.float32))
    assert reason(path) == "silent"


def test_samples_that_are_not_numbers_are_told(tmp_path: Path) -> None:
    """A float file with NaN in it would poison a training."""
    samples = make_tone()
    samples[0, 100] = np.nan
    path = write_media(tmp_path / "a.wav", samples, codec="pcm_f32le")
    assert reason(path) == "samples that are not numbers"


def test_sound_beyond_full_scale_is_clipped(tmp_path: Path) -> None:
    """What comes back lies in [-1, 1]."""
    path = write_media(tmp_path / "a.wav", 8 * make_tone(), codec="pcm_f32le")
    for samples_T in decode_mono(path, [RATE, 22_050]):
        assert np.abs(samples_T).max() == 1


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path)])
def test_file_that_cannot_be_opened_is_unreadable(tmp_path: Path, make: object) -> None:
    """What the system refuses to open is a reason, not a crash."""
    assert callable(make)
    make(tmp_path / "a.mp4")
    assert reason(tmp_path / "a.mp4") == "unreadable"


def test_unsupported_sample_format_is_not_called_damage(tmp_path: Path) -> None:
    """Integers of 64 bits."""
    data = make_tone()[0].astype("<i8").tobytes()
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, RATE * 8, 8, 64)
    chunks = b"WAVE" + header + struct.pack("<4sI", b"data", len(data)) + data
    path = tmp_path / "tone.wav"
    path.write_bytes(struct.pack("<4sI", b"RIFF", len(chunks)) + chunks)
    assert reason(path) == "its sample format is not supported"
