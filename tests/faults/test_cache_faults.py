"""A cache that is cut off or overwritten under its readers, and how `prepare` mends it."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from search.config import parse_study
from search.create import create_from_file
from search.errors import ConfigError
from search.home import Home
from storage.database import Database, parse_url
from tests.command import TINY_STUDY, Result, environment, run, succeed
from tests.media import make_tone, small_clips, write_dataset, write_media
from trainer.blocks import BLOCK_BYTES
from trainer.cache import ClipSet, WaveformCache, find_damage, list_caches
from trainer.errors import CacheDamagedError, DataError
from trainer.index import IMAGE_BYTES, IMAGE_FILE, INDEX_FILE, WAVEFORM_FILE, seal

FIX = "run `melsearch prepare DATA --verify --sample-rate 16000`, which mends it"
LONG = "000.wav"
"""The first clip of both splits, of several blocks; the others are of one."""
LONG_SECONDS = 10.0
READER = """
import sys
from itertools import count
from pathlib import Path

from tests.clips import tiny_config
from trainer.batches import training_batches
from trainer.cache import WaveformCache
from trainer.errors import DataError

clips = WaveformCache.open(Path(sys.argv[1])).all_clips()
config = tiny_config(frontend=sys.argv[2], window_seconds=0.1)
try:
    for epoch in count():
        for batch in training_batches(clips, config, epoch):
            batch.inputs.sum()
        print(epoch, flush=True)
except DataError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with data that are prepared."""
    folder = tmp_path_factory.mktemp("prepared")
    data = write_dataset(folder / "data", small_clips())
    for split, hertz in (("train", 100), ("val", 110)):
        sound = make_tone(hertz, LONG_SECONDS) + make_tone(0.3, LONG_SECONDS)
        write_media(data / f"{split}set" / LONG, sound)
    succeed(folder, "prepare", "data")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of that folder, with the files' times, for a test to damage."""
    return shutil.copytree(prepared, tmp_path / "copy")


@pytest.fixture
def cache(folder: Path) -> Path:
    """The folder's cache."""
    [(path, _, _)] = list_caches(folder / ".melsearch" / "cache")
    return path


@contextmanager
def reading(cache: Path, frontend: str = "logmel") -> Iterator[subprocess.Popen[str]]:
    """Start a process that reads epoch after epoch, and wait until it has read the first."""
    process = subprocess.Popen(
        [sys.executable, "-c", READER, str(cache), frontend],
        env=environment({"PYTHONPATH": str(Path.cwd())}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def flip(path: Path, position: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(position)
        [byte] = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 4]))


def read_all(clips: ClipSet) -> list[bytes]:
    return [clips.waveform(index).tobytes() for index in range(len(clips))]


def verify(folder: Path) -> Result:
    return run(folder, "prepare", "data", "--verify")


@pytest.mark.parametrize(
    ("frontend", "name"), [("logmel", WAVEFORM_FILE), ("notebook", IMAGE_FILE)]
)
def test_file_cut_off_under_a_reader_is_told(
    folder: Path, cache: Path, frontend: str, name: str
) -> None:
    """The reader leaves with a message, not by a signal, and the next `prepare` mends the cache."""
    with reading(cache, frontend) as process:
        os.truncate(cache / name, 1000)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 1, complaint
    assert f"{cache / name} is damaged, clip " in complaint
    assert complaint.endswith(f"the file is cut off; {FIX}\n")
    assert "cache built" in succeed(folder, "prepare", "data")
    assert find_damage(cache) == []


def test_readers_go_on_while_the_cache_is_mended(folder: Path, cache: Path) -> None:
    """Who has the damaged cache open keeps its files, and what is whole in them can be read."""
    clips = WaveformCache.open(cache).all_clips()
    whole = read_all(clips)
    flip(cache / IMAGE_FILE, 0)
    with reading(cache) as process:
        assert "cache built" in verify(folder).out
        assert process.poll() is None
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
    assert read_all(clips) == whole
    assert read_all(WaveformCache.open(cache).all_clips()) == whole
    assert list(cache.parent.glob("*.damaged")) == []


def test_flipped_bit_is_told_with_its_clip_and_mended(folder: Path, cache: Path) -> None:
    """The clip alone is lost, a plain `prepare` sees nothing, and `--verify` mends the cache."""
    clips = WaveformCache.open(cache).split("train")
    whole = read_all(clips)
    flip(cache / WAVEFORM_FILE, 2 * int(clips.offsets[1]))
    damaged = WaveformCache.open(cache).split("train")
    with pytest.raises(
        CacheDamagedError, match=r"clip train '001\.wav': the bytes from"
    ) as refusal:
        damaged.waveform(1)
    assert str(refusal.value).endswith(FIX)
    assert read_all(WaveformCache.open(cache).split("val"))
    assert damaged.waveform(2).tobytes() == whole[2]
    assert "cache unchanged" in succeed(folder, "prepare", "data")
    result = verify(folder)
    assert result.code == 0, result.err
    assert "damaged 1: not as written (train '001.wav'); the cache is built anew" in result.out
    assert "cache built" in result.out
    assert read_all(WaveformCache.open(cache).split("train")) == whole


def test_whole_cache_is_verified(folder: Path, cache: Path) -> None:
    """`--verify` says that all is well, and builds nothing; a study's cache too."""
    (folder / "study.toml").write_text(TINY_STUDY)
    for options in ([], ["--study", "study.toml"]):
        told = succeed(folder, "prepare", "data", "--verify", *options)
        assert "cache verified: every clip is as it was written" in told
        assert "cache unchanged" in told


def test_damaged_image_is_told_with_its_clip(cache: Path) -> None:
    """An image is checked when it is read, alone."""
    flip(cache / IMAGE_FILE, 3 * IMAGE_BYTES + 5)
    images = WaveformCache.open(cache).all_clips().images
    assert images is not None
    assert images[np.array([2, 4])].shape == (2, 256, 256)
    with pytest.raises(CacheDamagedError) as refusal:
        images[np.array([2, 3])]
    assert refusal.value.clip == "train '003.wav'"
    assert [fault.clip for fault in find_damage(cache)] == ["train '003.wav'"]


def test_window_reads_no_block_that_it_does_not_touch(cache: Path) -> None:
    """Damage at the far end of a long clip is none of a window's business."""
    clips = WaveformCache.open(cache).split("train")
    size_bytes = 2 * int(clips.num_samples[0])
    assert clips.names[0] == LONG
    assert size_bytes > 4 * BLOCK_BYTES
    whole = clips.waveform(0)
    flip(cache / WAVEFORM_FILE, size_bytes - 1)
    damaged = WaveformCache.open(cache).split("train")
    window_T = np.empty(20, np.int16)
    damaged.read_window(0, BLOCK_BYTES // 2 - 10, window_T)  # across a border
    assert np.array_equal(window_T, whole[BLOCK_BYTES // 2 - 10 :][:20])
    with pytest.raises(CacheDamagedError):
        damaged.read_window(0, len(whole) - 20, window_T)


def test_old_format_is_told_and_built_anew(folder: Path, cache: Path) -> None:
    """Who looks for the cache reads what is wrong with it; `prepare` builds it in its place."""
    data_fingerprint = WaveformCache.open(cache).data_fingerprint
    index = cache / INDEX_FILE
    index.write_text(index.read_text().replace('"format":2', '"format":1'))
    (folder / "best.toml").write_text(f'origin.data_fingerprint = "{data_fingerprint}"')
    result = run(folder, "train", "best.toml")
    assert result.code == 1
    assert f"no cache of the data {data_fingerprint} is whole:" in result.err
    assert "has format 1, this version reads 2; run melsearch prepare again" in result.err
    with closing(Database(parse_url("postgresql://nobody@localhost/none", {}))) as database:
        config = parse_study(tomllib.loads(TINY_STUDY), "study.toml")
        with pytest.raises(ConfigError, match="has format 1"):
            create_from_file(config, None, Home(folder / ".melsearch"), database)
    assert "cache built" in succeed(folder, "prepare", "data")
    assert [entry.path for entry in list_caches(cache.parent)] == [cache]


def test_index_of_a_newer_version_is_not_called_damaged(folder: Path, cache: Path) -> None:
    """What this version doesn't know is named; `prepare` builds the cache in its place."""
    index = cache / INDEX_FILE
    line = index.read_bytes().partition(b"\n")[0]
    index.write_bytes(seal(line.replace(b'"format":2', b'"format":2,"smell":3')))
    with pytest.raises(DataError, match="holds smell, which this version of melsearch"):
        WaveformCache.open(cache)
    assert "cache built" in succeed(folder, "prepare", "data")
    WaveformCache.open(cache)
