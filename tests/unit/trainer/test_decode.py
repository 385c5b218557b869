"""Decoding on many processes: order, rejects, and a file that kills its decoder."""

from contextlib import closing
from pathlib import Path

import numpy as np

from tests.media import decode_or_die, make_tone, write_media
from trainer.decode import CRASHED, DecodedClip, DecodeSettings, decode_all, decode_clip, read_all

SETTINGS = DecodeSettings(sample_rate=16_000, notebook_images=False)


def write_tones(folder: Path, count: int) -> list[Path]:
    return [write_media(folder / f"{i:02}.wav", make_tone(200 + 10 * i, 0.2)) for i in range(count)]


def test_16_bit_samples_pass_through_unchanged(tmp_path: Path) -> None:
    """A file at the cache's own rate is cached to the last bit."""
    path = write_media(tmp_path / "a.wav", make_tone())
    clip = decode_clip(path, SETTINGS)
    assert isinstance(clip, DecodedClip)
    assert path.read_bytes().endswith(clip.samples)
    assert len(clip.samples) == 16_000
    assert clip.image == b""


def test_full_scale_does_not_wrap_around(tmp_path: Path) -> None:
    """The loudest sample stays positive in 16 bits."""
    path = write_media(tmp_path / "a.wav", 8 * make_tone(), codec="pcm_f32le")
    clip = decode_clip(path, SETTINGS)
    assert isinstance(clip, DecodedClip)
    samples_T = np.frombuffer(clip.samples, "<i2")
    assert (samples_T.max(), samples_T.min()) == (32_767, -32_768)


def test_outcomes_come_in_the_order_of_the_paths(tmp_path: Path) -> None:
    """Whichever process is done first, the outcomes stand in order, rejects among them."""
    paths = write_tones(tmp_path, 10)
    paths[3].write_bytes(b"")
    with closing(decode_all(paths, SETTINGS, 2)) as outcomes:
        got = list(outcomes)
    assert got == [decode_clip(path, SETTINGS) for path in paths]
    assert got[3] == "empty file"


def test_file_that_kills_its_decoder_is_the_only_one_lost(tmp_path: Path) -> None:
    """A dead process takes no other clip with it, and the work goes on behind it."""
    paths = write_tones(tmp_path, 14)
    paths[2] = paths[2].rename(tmp_path / "killer.wav")
    with closing(read_all(paths, SETTINGS, 2, decode_or_die)) as outcomes:
        got = list(outcomes)
    assert got == [*(decode_clip(p, SETTINGS) for p in paths[:2]), CRASHED] + [
        decode_clip(path, SETTINGS) for path in paths[3:]
    ]


def test_nothing_to_decode_starts_nothing() -> None:
    """No paths, no processes, no outcomes."""
    assert list(decode_all([], SETTINGS, 1)) == []
