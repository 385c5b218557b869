"""Copies that codecs make of a sound: alike, aligned, reproducible, and drawn as configured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.clips import make_clips, tiny_config
from tests.media import small_clips, write_dataset
from trainer.batches import evaluation_batches, training_batches
from trainer.cache import WaveformCache, find_cache, find_damage
from trainer.codecs import encode_and_decode
from trainer.errors import CacheDamagedError, DataError
from trainer.index import CODECS, COPY_FILE
from trainer.loop import fit
from trainer.prepare import prepare


def speech_like(sample_rate: int, seconds: float = 1.5) -> NDArray[np.int16]:
    """Return harmonics under a syllable's envelope, with silence between."""
    times_T = np.arange(round(seconds * sample_rate)) / sample_rate
    pitch_T = 120 + 20 * np.sin(2 * np.pi * 1.3 * times_T)
    phase_T = 2 * np.pi * np.cumsum(pitch_T) / sample_rate
    tone_T = sum(np.sin(number * phase_T) / number for number in range(1, 12))
    envelope_T = np.clip(np.sin(2 * np.pi * 3 * times_T), 0, 1) ** 2
    return np.asarray(6000 * envelope_T * tone_T).astype(np.int16)


@pytest.mark.parametrize("sample_rate", [8000, 16_000, 22_050])
@pytest.mark.parametrize("codec", CODECS)
def test_copy_sounds_alike_and_is_in_time(codec: str, sample_rate: int) -> None:
    """As long, correlated, no sample early or late, and not the same."""
    original_T = speech_like(sample_rate)
    copy_T = encode_and_decode(original_T, sample_rate, codec, "seed")
    assert copy_T.shape == original_T.shape
    assert not np.array_equal(copy_T, original_T)
    fits = [
        np.corrcoef(original_T[100:-100], np.roll(copy_T, shift)[100:-100])[0, 1]
        for shift in (-3, -2, -1, 0, 1, 2, 3)
    ]
    assert int(np.argmax(fits)) == 3
    assert fits[3] > 0.8
    assert 0.5 < np.std(copy_T.astype(float)) / np.std(original_T.astype(float)) < 1.5


def test_copies_are_reproducible_and_bit_rates_are_drawn() -> None:
    """Equal seeds, equal copies; over many seeds several bit rates."""
    original_T = speech_like(16_000)
    copies = [encode_and_decode(original_T, 16_000, "opus", str(seed)) for seed in range(12)]
    again = encode_and_decode(original_T, 16_000, "opus", "3")
    assert np.array_equal(copies[3], again)
    assert 1 < len({copy.tobytes() for copy in copies}) <= 4


def test_silence_stays_silence() -> None:
    """Nothing to encode, nothing to align."""
    assert not encode_and_decode(np.zeros(8000, np.int16), 16_000, "aac", "x").any()


@pytest.fixture
def cache(tmp_path: Path) -> WaveformCache:
    data = write_dataset(tmp_path / "data", small_clips())
    report = prepare(data, tmp_path / "cache", codecs=True, notebook_images=False)
    return WaveformCache.open(report.cache)


def test_cache_holds_each_clips_copies(cache: WaveformCache) -> None:
    """In the codecs' order, for all splits, and through select and join."""
    both = cache.all_clips().select(np.array([6, 1]))
    assert both.num_copies == len(CODECS)
    for index in range(2):
        copies = [both.waveform(index, copy) for copy in range(1, 1 + len(CODECS))]
        assert len({copy.tobytes() for copy in copies}) == len(CODECS)
        for copy_T in copies:
            assert np.corrcoef(copy_T, both.waveform(index))[0, 1] > 0.8


def test_cache_with_copies_is_preferred_and_checked(cache: WaveformCache) -> None:
    """Of two caches of the same data; a flipped bit in a copy is found, and how to mend it told."""
    root = cache.path.parent
    plain = prepare(cache.root, root)
    assert plain.data_fingerprint == cache.data_fingerprint
    assert find_cache(root, cache.data_fingerprint) == cache.path
    path = cache.path / COPY_FILE
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    assert len(find_damage(cache.path)) == 1
    with pytest.raises(CacheDamagedError, match="--codecs"):
        WaveformCache.open(cache.path).split("train").waveform(0, 1)


def test_share_of_clips_is_read_as_copies(cache: WaveformCache) -> None:
    """None at 0, all at 1, some between; the same ones again; never in evaluation."""
    train = cache.split("train")
    config = tiny_config(sample_rate=16_000, window_seconds=0.05)

    def read(share: float, epoch: int) -> list[bytes]:
        changed = config.model_copy(update={"codec_share": share})
        batches = training_batches(train, changed, epoch)
        return [row.tobytes() for batch in batches for row in batch.inputs]

    originals, copies = read(0.0, 1), read(1.0, 1)
    assert not set(originals) & set(copies)
    mixed = [read(0.5, epoch) for epoch in range(8)]
    whole = [(read(0.0, epoch), read(1.0, epoch)) for epoch in range(8)]
    taken = [row in clean for rows, (clean, _) in zip(mixed, whole, strict=True) for row in rows]
    assert 0.2 < np.mean(taken) < 0.8
    assert read(0.5, 3) == mixed[3]
    evaluated = [
        next(evaluation_batches(train, config.model_copy(update={"codec_share": share}), 64)).inputs
        for share in (0.0, 1.0)
    ]
    assert np.array_equal(*evaluated)


def test_share_without_copies_is_refused(tmp_path: Path) -> None:
    """The message says how to make them."""
    config = tiny_config(codec_share=0.3)
    with pytest.raises(DataError, match="prepare the data with --codecs"):
        fit(config, make_clips(4), None, folder=tmp_path, device=torch.device("cpu"))
