"""`prepare` from a folder of media to an open cache."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.media import (
    make_tone,
    small_clips,
    write_dataset,
    write_labels,
    write_media,
    write_silent_picture,
)
from trainer.audio import decode_mono
from trainer.cache import WaveformCache, find_cache, join, list_caches, list_damaged, prepare
from trainer.dataset import Reject
from trainer.errors import CacheDamagedError, DataError
from trainer.images import StoredImages
from trainer.index import INDEX_FILE, WAVEFORM_FILE, seal
from trainer.notebook_image import notebook_image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", small_clips())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_cache_holds_each_clips_sound_label_and_image(data: Path, root: Path) -> None:
    """What is read back is what the files sound like, clip by clip."""
    seen: list[tuple[int, int]] = []
    report = prepare(
        data, root, num_processes=2, progress=lambda done, total: seen.append((done, total))
    )
    cache = WaveformCache.open(report.cache, data_fingerprint=report.data_fingerprint)
    assert (cache.sample_rate, cache.root, len(cache.clips)) == (16_000, data, 8)
    for split in ("train", "val"):
        clips = cache.split(split)
        assert clips.names == ["000.wav", "001.wav", "002.wav", "003.wav"]
        assert clips.targets.tolist() == [0, 1, 0, 1]
        for index, name in enumerate(clips.names):
            at_16k_T, at_22k_T = decode_mono(data / f"{split}set" / name, [16_000, 22_050])
            assert np.array_equal(clips.waveform(index) / 32768, at_16k_T)
            assert clips.images is not None
            assert np.array_equal(clips.images[np.array([index])][0], notebook_image(at_22k_T))
    files = [data / f"{clip.split}set" / clip.name for clip in cache.clips]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files]
    assert [clip.source_digest for clip in cache.clips] == digests
    assert seen == [(done, 8) for done in range(1, 9)]
    assert not report.reused
    assert (report.rejects, report.warnings) == ((), ())
    assert report.splits["train"].hours == pytest.approx(4 * 0.2 / 3600)
    assert (report.splits["val"].num_real, report.splits["val"].num_fake) == (2, 2)


def test_second_prepare_reuses_the_cache_and_tells_the_same(data: Path, root: Path) -> None:
    """Nothing changed, nothing decoded; rejects and warnings are told again."""
    (data / "trainset" / "000.wav").write_bytes(b"")
    first = prepare(data, root, num_processes=1, notebook_images=False)
    second = prepare(data, root, num_processes=1, notebook_images=False)
    assert second.reused
    assert second.rejects == first.rejects == (Reject("train", "000.wav", "empty file"),)
    assert (second.cache, second.splits) == (first.cache, first.splits)


def test_cache_of_before_digests_opens_without_them(data: Path, root: Path) -> None:
    """It is not decoded again for them."""
    path = prepare(data, root, num_processes=1, notebook_images=False).cache
    fields = json.loads((path / INDEX_FILE).read_bytes().partition(b"\n")[0])
    del fields["source_digests"]
    (path / INDEX_FILE).write_bytes(seal(json.dumps(fields).encode()))
    assert {clip.source_digest for clip in WaveformCache.open(path).clips} == {""}
    assert prepare(data, root, num_processes=1, notebook_images=False).reused


def test_second_prepare_imports_nothing_heavy(data: Path, root: Path) -> None:
    """A reuse is a matter of `stat` calls and one index; numpy and FFmpeg stay out."""
    prepare(data, root, num_processes=1, notebook_images=False)
    code = (
        "import sys; from pathlib import Path; from trainer.prepare import prepare\n"
        f"report = prepare(Path({str(data)!r}), Path({str(root)!r}), notebook_images=False)\n"
        "heavy = {'numpy', 'av', 'librosa', 'cv2', 'pandas', 'torch'} & set(sys.modules)\n"
        "print(report.reused, sorted(heavy))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "True []\n"


def test_bad_files_are_rejects_with_their_reasons(data: Path, root: Path) -> None:
    """Every kind of bad file is listed, and the good ones are cached."""
    folder = data / "trainset"
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_bytes(b"hello " * 99)
    write_silent_picture(folder / "mute.mp4")
    write_media(folder / "short.wav", make_tone(seconds=0.02))
    write_media(folder / "silent.wav", 0 * make_tone())
    write_media(folder / "stereo.wav", make_tone(rate=48_000, channels=2), 48_000)
    write_media(folder / "two\nlines.mp4", video=True)
    names = [path.name for path in folder.iterdir()]
    labels = "".join(f'"{name}",{i % 2}\n' for i, name in enumerate(names))
    (data / "trainset_label.txt").write_text(f"video_name,target\n{labels}")
    report = prepare(data, root, num_processes=2, notebook_images=False)
    assert {reject.name: reject.reason for reject in report.rejects} == {
        "zero.mp4": "empty file",
        "text.mp4": "not a media file",
        "mute.mp4": "no audio track",
        "short.wav": "shorter than 0.1 s",
        "silent.wav": "silent",
    }
    assert report.splits["train"].num_clips == 6


def test_changed_data_get_a_cache_of_their_own(data: Path, root: Path) -> None:
    """Another label or another file is other data; the first cache isn't touched."""
    fingerprints = [prepare(data, root, num_processes=1, notebook_images=False).data_fingerprint]
    write_labels(data, "val", {"000.wav": 1, "001.wav": 1, "002.wav": 0, "003.wav": 0})
    fingerprints.append(
        prepare(data, root, num_processes=1, notebook_images=False).data_fingerprint
    )
    write_media(data / "valset" / "000.wav", make_tone(3000))
    fingerprints.append(
        prepare(data, root, num_processes=1, notebook_images=False).data_fingerprint
    )
    assert len(set(fingerprints)) == 3
    assert {entry.data_fingerprint for entry in list_caches(root)} == set(fingerprints)
    found = find_cache(root, fingerprints[1])
    assert found is not None
    with pytest.raises(DataError, match=r"made from other data.*run melsearch prepare"):
        WaveformCache.open(found, data_fingerprint=fingerprints[0])


def test_same_data_elsewhere_have_the_same_fingerprint(data: Path, tmp_path: Path) -> None:
    """A copy with other times, under another path, with other settings of images, is equal."""
    first = prepare(data, tmp_path / "a", num_processes=1, notebook_images=False)
    copy = data.rename(tmp_path / "copy")
    for path in copy.glob("*/*.wav"):
        os.utime(path, (1, 1))
    second = prepare(copy, tmp_path / "b", num_processes=1, notebook_images=True)
    assert first.cache.name != second.cache.name
    assert first.data_fingerprint == second.data_fingerprint


@pytest.mark.parametrize("spoil", ["truncate", "unlink", "index", "label", "format"])
def test_damaged_cache_is_refused_and_made_anew_by_prepare(
    data: Path, root: Path, spoil: str
) -> None:
    """A cache that isn't whole is never read, and `prepare` mends it."""
    report = prepare(data, root, num_processes=1, notebook_images=False)
    waveforms, index = report.cache / WAVEFORM_FILE, report.cache / INDEX_FILE
    match spoil:
        case "truncate":
            os.truncate(waveforms, waveforms.stat().st_size - 1)
        case "unlink":
            waveforms.unlink()
        case "index":
            os.truncate(index, index.stat().st_size // 2)
        case "label":
            index.write_text(index.read_text().replace('"targets":[0,', '"targets":[1,'))
        case "format":
            index.write_text(index.read_text().replace('"format":2', '"format":1'))
    with pytest.raises(DataError, match=r"run .?melsearch prepare"):
        WaveformCache.open(report.cache)
    assert list_caches(root) == []
    [(path, _, fault)] = list_damaged(root)
    assert path == report.cache
    with pytest.raises(CacheDamagedError, match=r"no cache of the data .* is whole") as refusal:
        find_cache(root, report.data_fingerprint)
    assert fault in str(refusal.value)
    again = prepare(data, root, num_processes=1, notebook_images=False)
    assert not again.reused
    assert WaveformCache.open(again.cache).data_fingerprint == report.data_fingerprint


def test_damage_to_other_data_is_not_told(data: Path, root: Path) -> None:
    """A damaged cache is no reason to refuse a whole one, or to hide that there is none."""
    first = prepare(data, root, num_processes=1, notebook_images=False)
    write_labels(data, "val", {"000.wav": 1, "001.wav": 1, "002.wav": 0, "003.wav": 0})
    second = prepare(data, root, num_processes=1, notebook_images=False)
    (first.cache / WAVEFORM_FILE).unlink()
    assert [entry.path for entry in list_caches(root)] == [second.cache]
    assert find_cache(root, second.data_fingerprint) == second.cache
    assert find_cache(root, "0") is None


def test_other_folders_are_no_caches(data: Path, root: Path) -> None:
    """A cache root may be a disk of its own, with what its file system and people put there."""
    for name in ("lost+found", "notes", "0" * 31):
        (root / name).mkdir(parents=True)
    assert list_damaged(root) == []
    assert find_cache(root, "0") is None
    report = prepare(data, root, num_processes=1, notebook_images=False)
    assert [entry.path for entry in list_caches(root)] == [report.cache]


def test_missing_cache_names_the_command_that_makes_it(tmp_path: Path) -> None:
    """A path without a cache is told with the way out."""
    with pytest.raises(DataError, match=r"no waveform cache in .*melsearch prepare"):
        WaveformCache.open(tmp_path / "nowhere")
    assert find_cache(tmp_path / "nowhere", "0") is None


def test_joined_splits_read_the_same_files(data: Path, root: Path) -> None:
    """Training on both splits copies neither samples nor images."""
    cache = WaveformCache.open(prepare(data, root, num_processes=1).cache)
    train, val = cache.split("train"), cache.split("val")
    both = join(train, val)
    assert both.names == train.names + val.names
    assert np.array_equal(both.waveform(5), val.waveform(1))
    backward = join(val, train)
    images = [clips.images for clips in (both, backward, val, train)]
    assert all(isinstance(stored, StoredImages) for stored in images)
    both_N, backward_N = (stored[np.arange(8)] for stored in images[:2])
    val_N, train_N = (stored[np.arange(4)] for stored in images[2:])
    assert np.array_equal(both_N, np.concatenate([train_N, val_N]))
    assert np.array_equal(backward_N, np.concatenate([val_N, train_N]))
    other = WaveformCache.open(cache.path)
    with pytest.raises(ValueError, match="of one cache"):
        join(train, other.split("val"))


def test_same_sound_under_both_labels_is_a_warning(data: Path, root: Path) -> None:
    """A sound that was copied is found by its content, not by its name."""
    sound = (data / "trainset" / "000.wav").read_bytes()
    (data / "trainset" / "001.wav").write_bytes(sound)
    (warning,) = prepare(data, root, num_processes=1, notebook_images=False).warnings
    assert "under both labels" in warning
    assert "train '000.wav' and train '001.wav'" in warning


def test_same_sound_in_both_splits_is_refused_unless_allowed(data: Path, root: Path) -> None:
    """No cache is made, what is decoded is kept, and what was allowed stays so."""
    sound = (data / "trainset" / "000.wav").read_bytes()
    (data / "valset" / "002.wav").write_bytes(sound)
    with pytest.raises(DataError, match=r"train '000\.wav' and val '002\.wav'.*--allow-duplicates"):
        prepare(data, root, num_processes=1)
    assert list_caches(root) == []
    seen: list[tuple[int, int]] = []
    report = prepare(
        data, root, allow_duplicates=True, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == []
    assert report.warnings == ("the same sound is in both splits, 1 times",)
    assert prepare(data, root).reused


def test_missing_class_and_imbalance_are_warnings(data: Path, root: Path) -> None:
    """A split with one class, or almost one, is told, and cached all the same."""
    names = [f"{i:03}.wav" for i in range(2, 10)]
    for hertz, name in enumerate(names):
        write_media(data / "trainset" / name, make_tone(1000 + 10 * hertz, 0.2))
    write_labels(data, "train", dict.fromkeys(names, 1) | {"000.wav": 0, "001.wav": 1})
    write_labels(data, "val", dict.fromkeys(["000.wav", "001.wav", "002.wav", "003.wav"], 1))
    report = prepare(data, root, num_processes=1, notebook_images=False)
    assert report.warnings == (
        "trainset/ has 1 real clips of 10: imbalanced",
        "valset/ has no real clip: nothing can be learned or measured there",
    )


def test_split_of_which_nothing_can_be_decoded_is_refused(data: Path, root: Path) -> None:
    """No cache is made of data from which nothing can be learned; the reasons are told."""
    for path in (data / "valset").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no clip in valset/ can be decoded: empty file"):
        prepare(data, root, num_processes=1, notebook_images=False)
    assert list_caches(root) == []


def test_cache_folder_that_cannot_be_made_is_told(data: Path, tmp_path: Path) -> None:
    """A file in the cache folder's place is a clear refusal."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="can't write the cache"):
        prepare(data, tmp_path / "file" / "cache", num_processes=1)
