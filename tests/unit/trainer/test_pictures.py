"""What a detector that sees reads of a batch, and how it is varied."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.clips import make_clips, seeded, tiny_config
from tests.media import make_tone, write_labels, write_media, write_silent_picture
from trainer.batches import training_batches
from trainer.blocks import BLOCK_BYTES
from trainer.cache import ClipSet, WaveformCache, find_damage
from trainer.errors import CacheDamagedError, DataError
from trainer.index import FRAME_FILE, MOMENTS, frame_shape
from trainer.loop import fit
from trainer.pictures import LAG_SECONDS, check_frames, drop_streams, loudness, read_pictures, vary
from trainer.prepare import prepare
from trainer.training import Training

SIZE = 32
SEEING = {"modality": "both", "frame_size": SIZE, "video_backbone": "test_resnet"}


def silence(clips: ClipSet, index: int) -> None:
    begin = clips.offsets[index]
    samples = clips.samples_S
    assert isinstance(samples, np.ndarray)
    samples[begin : begin + clips.num_samples[index]] = 0


def test_missing_streams_are_told() -> None:
    """A clip that is all zeros has no sound, frames that are all black are no picture."""
    clips = make_clips(3, frame_size=SIZE)
    silence(clips, 0)
    assert isinstance(clips.frames, np.ndarray)
    clips.frames[2] = 0
    pictures = read_pictures(clips, tiny_config(**SEEING), np.array([2, 0, 1]))
    assert pictures is not None
    assert pictures.is_there.tolist() == [[True, False], [False, True], [True, True]]
    assert pictures.frames.shape == (3, *frame_shape(SIZE))
    assert pictures.loudness.shape == (3, MOMENTS, len(LAG_SECONDS))


def test_who_only_hears_reads_no_picture() -> None:
    """Frames in the cache cost a detector of sound nothing."""
    assert read_pictures(make_clips(2, frame_size=SIZE), tiny_config(), np.array([0])) is None


def test_loudness_is_that_of_the_moment() -> None:
    """A burst shows in the moment it is in, at the lag it is at; silence beside it is -60 dB."""
    rate, seconds = 8000, 24.0
    wave = np.zeros(round(seconds * rate), np.int16)
    moment = (5 + 0.5) / MOMENTS * seconds
    lag = 7
    centre = round((moment + LAG_SECONDS[lag]) * rate)
    wave[centre - 100 : centre + 100] = 20_000
    found = loudness(wave, rate)
    assert np.argwhere(found > -5).tolist() == [[5, lag]]
    assert found.min() == pytest.approx(-6)


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        (make_clips(4), "the cache holds none; prepare the data with --video --frame-size 32"),
        (make_clips(4, frame_size=40), "the cache holds frames of 40 pixels"),
    ],
)
def test_cache_without_the_frames_is_refused(clips: ClipSet, words: str, tmp_path: Path) -> None:
    """The message says what is read, what is there and how to get it."""
    with pytest.raises(DataError, match=words):
        fit(tiny_config(**SEEING), clips, None, folder=tmp_path, device=torch.device("cpu"))
    check_frames(clips, tiny_config())


def test_variation_keeps_what_moves() -> None:
    """Equal frames of a clip stay equal, clips differ, values stay in [0, 1]."""
    still = torch.rand(3, 1, 1, SIZE, SIZE, 3, generator=seeded(1)).expand(
        -1, MOMENTS, 2, -1, -1, -1
    )
    varied = vary(still, 1.0, seeded(2))
    assert varied.shape == still.shape
    assert torch.equal(varied, varied[:, :1, :1].expand_as(varied))
    assert 0 <= float(varied.min()) <= float(varied.max()) <= 1
    assert not torch.allclose(varied, still, atol=0.05)
    assert torch.equal(varied, vary(still, 1.0, seeded(2)))


def test_variation_at_strength_0_only_mirrors() -> None:
    """Each clip is as it was, or its mirror image."""
    frames = torch.rand(8, MOMENTS, 2, SIZE, SIZE, 3, generator=seeded(1))
    varied = vary(frames, 0.0, seeded(2))
    mirrored = frames.flip(4)
    kinds = {
        (torch.allclose(got, same, atol=1e-4), torch.allclose(got, other, atol=1e-4))
        for got, same, other in zip(varied, frames, mirrored, strict=True)
    }
    assert kinds == {(True, False), (False, True)}


def test_dropout_takes_one_stream_of_those_that_have_both() -> None:
    """About the share loses one, either one, and nobody loses all."""
    is_there = torch.ones(2000, 2, dtype=torch.bool)
    is_there[:500, 0] = False
    left = drop_streams(is_there, 0.4, seeded())
    assert torch.equal(left[:500], is_there[:500])
    assert bool(left.any(dim=1).all())
    lost = (~left[500:]).float().mean(dim=0)
    assert ((lost - 0.2).abs() < 0.05).all()
    assert torch.equal(drop_streams(is_there, 0.0, seeded()), is_there)


def test_windows_of_a_clip_see_the_same_and_lose_the_same() -> None:
    """The share of dropout is of clips: about half of them lose a stream in all their windows."""
    values = {"train_windows": 3, "window_seconds": 0.2, "augmentation": "spec", "batch_size": 24}
    config = tiny_config(**SEEING, **values, modality_dropout=0.5)
    clips = make_clips(24, frame_size=SIZE)
    training = Training(config, clips, None, torch.device("cpu"))
    (_, frames, _, is_there), _ = training._read_batch(next(training_batches(clips, config, 1)))
    for seen in (frames, is_there):
        assert torch.equal(seen, seen[:, :1].expand_as(seen))
    num_lost = int((~is_there[:, 0]).any(dim=1).sum())
    assert 6 <= num_lost <= 18
    assert len({x.numpy().tobytes() for x in frames[:, 0]}) == len(clips)


def video_set(root: Path) -> Path:
    """Write a set of videos, one without sound and one without picture."""
    for split in ("train", "val"):
        (root / f"{split}set").mkdir(parents=True)
        names = [f"{number}.mp4" for number in range(4)]
        for number, name in enumerate(names):
            hertz = 200 + 10 * number + 100 * (split == "val")
            path, tone = root / f"{split}set" / name, make_tone(hertz, 0.3)
            if split == "train" and number == 0:
                write_silent_picture(path)
            else:
                write_media(path, tone, video=number > 1)
        write_labels(root, split, {name: number % 2 for number, name in enumerate(names)})
    return root


def test_prepare_keeps_frames_and_tells_what_is_missing(tmp_path: Path) -> None:
    """Clips that lack a stream are kept and counted; without video the silent one is rejected."""
    data = video_set(tmp_path / "data")
    report = prepare(data, tmp_path / "cache", frame_size=SIZE)
    assert report.rejects == ()
    told = " ".join(report.warnings)
    assert "1 clips have no sound; for one, '0.mp4'" in told
    assert "3 clips have no picture" in told
    cache = WaveformCache.open(report.cache)
    train, val = cache.split("train"), cache.split("val")
    assert train.frames is not None
    seen = [bool(train.frames[np.array([row])].any()) for row in range(4)]
    assert seen == [True, False, True, True]
    both = cache.all_clips().select(np.array([7, 0]))
    assert both.frames is not None
    assert val.frames is not None
    expected = np.concatenate([val.frames[np.array([3])], train.frames[np.array([0])]])
    assert np.array_equal(both.frames[np.array([0, 1])], expected)
    assert prepare(data, tmp_path / "cache", frame_size=SIZE).reused
    plain = prepare(data, tmp_path / "cache")
    assert (plain.reused, len(plain.rejects)) == (False, 1)
    assert plain.data_fingerprint != report.data_fingerprint


def test_damaged_frames_are_told_by_clip(tmp_path: Path) -> None:
    """A flipped bit in the frames is found when that clip's are read, and by a whole reading."""
    report = prepare(video_set(tmp_path / "data"), tmp_path / "cache", frame_size=SIZE)
    path = report.cache / FRAME_FILE
    data = bytearray(path.read_bytes())
    clip_bytes = len(data) // 8
    data[2 * clip_bytes + min(BLOCK_BYTES, clip_bytes) // 2] ^= 1
    path.write_bytes(data)
    train = WaveformCache.open(report.cache).split("train")
    assert train.frames is not None
    train.frames[np.array([0, 1, 3])]
    with pytest.raises(CacheDamagedError, match=r"--video --frame-size 32"):
        train.frames[np.array([2])]
    assert len(find_damage(report.cache)) == 1
