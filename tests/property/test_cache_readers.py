"""A cache, whatever happened to its files: read right, or refused with a DataError."""

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.property.test_study_config import VALUES
from trainer.blocks import BLOCK_BYTES, checksum_blocks
from trainer.cache import ClipSet, WaveformCache, find_damage, list_caches, list_damaged
from trainer.decode import DecodedClip, DecodeSettings
from trainer.errors import CacheDamagedError, DataError
from trainer.index import (
    FRAME_FILE,
    IMAGE_BYTES,
    IMAGE_FILE,
    INDEX_FILE,
    WAVEFORM_FILE,
    Index,
    seal,
)
from trainer.partial import JOURNAL_FILE, PartialCache

SPLITS = ["train", "train", "val", "val"]
LENGTHS = [10, 40_000, 100, BLOCK_BYTES // 2]
"""Samples of each clip: one block, two, one, and one that is full."""
FILES = [WAVEFORM_FILE, IMAGE_FILE, INDEX_FILE]
KEYS = st.sampled_from([*Index.model_fields, WAVEFORM_FILE, IMAGE_FILE])
ODD = (
    VALUES
    | st.sampled_from([-1, 0, 1, 9, 2**31, 2**63, 10**400, 1e400, "train", "val", [], {}])
    | st.lists(st.integers(-1, 2**64), min_size=4, max_size=7)
)
CLIP_BYTES = DecodeSettings(8000, notebook_images=True).clip_bytes
CHECKSUMS = st.dictionaries(
    st.sampled_from([WAVEFORM_FILE, IMAGE_FILE, FRAME_FILE, "x"]),
    st.lists(st.integers(-1, 2**32), max_size=2),
)
REJECTED = b'{"reason":"silent"}'
KEPT = (
    b'{"num_samples":5,"source_digest":"s","sound_digest":"d",'
    b'"checksums":{"waveforms.i16":[1],"images.u8":[1]}}'
)


@dataclass(frozen=True)
class Original:
    """A whole cache, and what is in it."""

    path: Path
    files: dict[str, bytes]
    waveforms: list[bytes]
    images: list[bytes]

    def restore(self) -> None:
        for name, content in self.files.items():
            (self.path / name).write_bytes(content)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("root") / ("0" * 32)
    clips = [DecodedClip(rng.bytes(2 * n), rng.bytes(IMAGE_BYTES), "s", "d") for n in LENGTHS]
    with PartialCache(path.with_suffix(".partial"), len(clips), CLIP_BYTES) as partial:
        for clip in clips:
            partial.add(clip)
        index = Index(
            root="/data",
            data_fingerprint="f",
            sample_rate=16_000,
            notebook_images=True,
            splits=SPLITS,
            names=["a", "b", "a", "ä"],
            targets=[0, 1, 0, 1],
            num_samples=LENGTHS,
            source_digests=["s"] * len(LENGTHS),
            checksums={
                WAVEFORM_FILE: [x for clip in clips for x in checksum_blocks(clip.samples)],
                IMAGE_FILE: [x for clip in clips for x in checksum_blocks(clip.image)],
            },
            rejects=[("val", "c", "silent")],
            warnings=[],
        )
        partial.finish(index, path)
    return Original(
        path,
        {name: (path / name).read_bytes() for name in FILES},
        [clip.samples for clip in clips],
        [clip.image for clip in clips],
    )


def open_cache(path: Path) -> ClipSet | None:
    """Return the clips of a cache, None if it is refused; the other readers must agree."""
    try:
        clips = WaveformCache.open(path).all_clips()
    except DataError as error:
        assert str(path) in str(error)
        assert list_caches(path.parent) == []
        assert len(list_damaged(path.parent)) == 1
        return None
    assert [entry.path for entry in list_caches(path.parent)] == [path]
    return clips


def read_clips(clips: ClipSet) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Yield each clip's samples and image, None for what is refused."""
    for index in range(len(clips)):
        samples = image = None
        try:
            samples = clips.waveform(index).tobytes()
            if clips.images is not None:
                image = clips.images[np.array([index])].tobytes()
        except CacheDamagedError as error:
            assert error.clip
        yield samples, image


def require_right(original: Original) -> None:
    """Whatever is read must be what was written."""
    clips = open_cache(original.path)
    for samples, image in read_clips(clips) if clips is not None else ():
        assert samples is None or samples in original.waveforms
        assert image is None or image in original.images


@given(content=st.binary(max_size=300))
@example(content=b"[" * 100_000)
@example(content=b'{"format":2,"root":' + b"[" * 100_000)
@example(content=b'{"format":' + b"9" * 5000 + b"}")
@example(content=b'{"format":2,"sample_rate":' + b"9" * 5000 + b"}")
@settings(deadline=None)
def test_index_of_any_bytes_is_refused(original: Original, content: bytes) -> None:
    """With a right checksum or without."""
    for text in (content, seal(content)):
        (original.path / INDEX_FILE).write_bytes(text)
        assert open_cache(original.path) is None


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_index_with_something_changed_is_refused_or_right(
    original: Original, data: st.DataObject
) -> None:
    """Values of all kinds in any place, as from another program that knows the checksum."""
    original.restore()
    fields: dict[str, Any] = json.loads(original.files[INDEX_FILE].partition(b"\n")[0])
    for _ in range(data.draw(st.integers(1, 2))):
        _change(fields, data)
    try:
        text = json.dumps(fields, default=str).encode()
    except ValueError:  # a number of too many digits
        return
    (original.path / INDEX_FILE).write_bytes(seal(text))
    require_right(original)


def _change(table: Any, data: st.DataObject) -> None:
    """Replace, remove or add something in a table or an array, or in what is inside it."""
    places = sorted(table) if isinstance(table, dict) else range(len(table))
    how = data.draw(st.sampled_from(["inside", "inside", "replace", "remove", "add"]))
    place = data.draw(st.sampled_from(places)) if places else None
    if how == "add" or place is None:
        value = copy.deepcopy(data.draw(ODD | st.just(table[place])) if places else data.draw(ODD))
        table.append(value) if isinstance(table, list) else table.update({data.draw(KEYS): value})
    elif how == "inside" and isinstance(table[place], dict | list):
        _change(table[place], data)
    elif how == "remove":
        del table[place]
    else:
        table[place] = copy.deepcopy(data.draw(ODD))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_file_with_bytes_changed_is_read_right_or_refused(
    original: Original, data: st.DataObject
) -> None:
    """Cut off, overwritten or lengthened, before it is opened or under the reader."""
    original.restore()
    clips = WaveformCache.open(original.path).all_clips()
    name = data.draw(st.sampled_from(FILES))
    content = original.files[name]
    begin = data.draw(st.integers(0, len(content)))
    fresh = data.draw(st.binary(max_size=20))
    end = begin + len(fresh) if data.draw(st.booleans()) else data.draw(st.integers(begin))
    changed = content[:begin] + fresh + content[end:]
    with (original.path / name).open("r+b") as file:  # in place, as clips have it open
        file.write(changed)
        file.truncate()
    require_right(original)
    written = zip(original.waveforms, original.images, strict=True)
    for found, right in zip(read_clips(clips), written, strict=True):
        assert all(got in (None, expected) for got, expected in zip(found, right, strict=True))
    if changed == content:
        assert find_damage(original.path) == []
    elif name == INDEX_FILE or len(changed) != len(content):
        assert open_cache(original.path) is None
    else:
        assert find_damage(original.path)


@given(share=st.floats(0, 1, exclude_max=True), name=st.sampled_from([WAVEFORM_FILE, IMAGE_FILE]))
@settings(max_examples=50, deadline=None)
def test_file_cut_off_behind_a_reader_is_read_right_or_refused(
    original: Original, share: float, name: str
) -> None:
    """What was checked before is missed all the same when it is gone."""
    original.restore()
    clips = WaveformCache.open(original.path).all_clips()
    written = list(zip(original.waveforms, original.images, strict=True))
    assert list(read_clips(clips)) == written
    os.truncate(original.path / name, int(share * len(original.files[name])))
    found = list(read_clips(clips))
    for got, right in zip(found, written, strict=True):
        assert all(part in (None, whole) for part, whole in zip(got, right, strict=True))
    assert None in found[-1]


@given(
    lines=st.lists(
        st.binary(max_size=60)
        | st.sampled_from([b"[" * 10_000, b'{"num_samples":' + b"9" * 5000 + b"}"])
        | st.fixed_dictionaries(
            {},
            optional={
                "num_samples": ODD,
                "source_digest": st.text(max_size=3) | ODD,
                "sound_digest": st.text(max_size=3) | ODD,
                "checksums": CHECKSUMS | ODD,
                "reason": st.text(max_size=3) | ODD,
                "more": ODD,
            },
        ).map(lambda fields: json.dumps(fields, default=str).encode())
        | st.fixed_dictionaries(
            {
                "num_samples": st.sampled_from([0, 5]),
                "source_digest": st.sampled_from(["", "s"]),
                "sound_digest": st.sampled_from(["", "s"]),
                "checksums": st.fixed_dictionaries(
                    {}, optional=dict.fromkeys((WAVEFORM_FILE, IMAGE_FILE), st.just([1]))
                ),
                "reason": st.sampled_from(["", "silent"]),
            }
        ).map(lambda fields: json.dumps(fields).encode())
        | st.sampled_from([REJECTED, KEPT]),
        max_size=6,
    ),
    size_bytes=st.integers(0, 60),
    num_images=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_any_journal_is_believed_as_far_as_it_fits(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], size_bytes: int, num_images: int
) -> None:
    """The entries that are taken up have their data, and are the same when opened again."""
    folder = tmp_path_factory.mktemp("partial")
    (folder / JOURNAL_FILE).write_bytes(b"\n".join(lines) + b"\n")
    (folder / WAVEFORM_FILE).write_bytes(bytes(size_bytes))
    (folder / IMAGE_FILE).write_bytes(bytes(num_images * IMAGE_BYTES))
    with PartialCache(folder, 4, CLIP_BYTES) as partial:
        entries = list(partial.entries)
    assert len(entries) <= 4
    kept = [entry for entry in entries if not entry.reason]
    assert (folder / WAVEFORM_FILE).stat().st_size == 2 * sum(x.num_samples for x in kept)
    assert (folder / IMAGE_FILE).stat().st_size == len(kept) * IMAGE_BYTES
    assert all(entry.num_samples and entry.source_digest for entry in kept)
    with PartialCache(folder, 4, CLIP_BYTES) as partial:
        assert partial.entries == entries
