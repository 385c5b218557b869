"""A cache under construction: it goes on from whatever a crash has left."""

from pathlib import Path

import pytest

from trainer import partial as partial_module
from trainer.decode import DecodedClip, DecodeSettings
from trainer.index import IMAGE_BYTES, IMAGE_FILE, WAVEFORM_FILE
from trainer.partial import JOURNAL_FILE, PartialCache

CLIP_BYTES = DecodeSettings(8000, notebook_images=True).clip_bytes


def clip(num_samples: int) -> DecodedClip:
    return DecodedClip(b"ab" * num_samples, b"i" * IMAGE_BYTES, "source", "sound")


def build(folder: Path) -> None:
    """Leave a construction behind that was stopped after three clips."""
    with (
        pytest.raises(KeyboardInterrupt),
        PartialCache(folder, 99, CLIP_BYTES) as partial,
    ):
        partial.add(clip(10))
        partial.add("silent")
        partial.add(clip(5))
        raise KeyboardInterrupt


def lengths(folder: Path) -> list[int]:
    """Reopen, and return the samples of each entry."""
    with PartialCache(folder, 99, CLIP_BYTES) as partial:
        return [entry.num_samples for entry in partial.entries]


def test_stopped_construction_keeps_its_clips(tmp_path: Path) -> None:
    """An interrupt loses nothing of what was decoded."""
    build(tmp_path)
    assert lengths(tmp_path) == [10, 0, 5]
    assert (tmp_path / WAVEFORM_FILE).stat().st_size == 30
    assert (tmp_path / IMAGE_FILE).stat().st_size == 2 * IMAGE_BYTES


@pytest.mark.parametrize("tail", [b'{"num_samples": 9', b"\xff\n", b"[1]\n", b'{"x": 1}\n'])
def test_torn_end_of_the_journal_is_dropped(tmp_path: Path, tail: bytes) -> None:
    """A line that was being written counts as not written."""
    build(tmp_path)
    with (tmp_path / JOURNAL_FILE).open("ab") as file:
        file.write(tail)
    assert lengths(tmp_path) == [10, 0, 5]
    assert b'"reason":"silent"' in (tmp_path / JOURNAL_FILE).read_bytes()
    assert lengths(tmp_path) == [10, 0, 5]


def test_journal_of_more_clips_than_there_are_is_cut_off(tmp_path: Path) -> None:
    """Lines that can't be of these data are not believed."""
    build(tmp_path)
    with PartialCache(tmp_path, 2, CLIP_BYTES) as partial:
        assert [entry.num_samples for entry in partial.entries] == [10, 0]
    assert lengths(tmp_path) == [10, 0]


def test_data_behind_the_journal_is_cut_off(tmp_path: Path) -> None:
    """Samples of a clip that was being written don't shift the next one's."""
    build(tmp_path)
    with (tmp_path / WAVEFORM_FILE).open("ab") as file:
        file.write(b"half a clip")
    assert lengths(tmp_path) == [10, 0, 5]
    assert (tmp_path / WAVEFORM_FILE).stat().st_size == 30


@pytest.mark.parametrize(("name", "size"), [(WAVEFORM_FILE, 29), (IMAGE_FILE, IMAGE_BYTES)])
def test_journal_ahead_of_the_data_is_not_believed(tmp_path: Path, name: str, size: int) -> None:
    """A clip whose samples or image are gone is decoded again."""
    build(tmp_path)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(size)
    assert lengths(tmp_path) == [10, 0]
    assert (tmp_path / WAVEFORM_FILE).stat().st_size == 20


def test_commits_in_between_are_on_the_disk(tmp_path: Path) -> None:
    """A kill, which runs no clean-up, loses the clips since the last commit alone."""
    partial = PartialCache(tmp_path / "a", 99, CLIP_BYTES)
    for _ in range(partial_module.CLIPS_PER_COMMIT + 3):
        partial.add(clip(1))
    for name in (WAVEFORM_FILE, IMAGE_FILE, JOURNAL_FILE):  # as the kill would find them
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / name).write_bytes((tmp_path / "a" / name).read_bytes())
    with partial:
        pass
    assert len(lengths(tmp_path / "b")) == partial_module.CLIPS_PER_COMMIT
