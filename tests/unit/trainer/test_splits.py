"""Halves of the validation split: which clips choose, and which are only reported on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.clips import make_clips
from trainer.cache import ClipSet
from trainer.errors import DataError
from trainer.splits import divide


def with_targets(targets: list[int], *, images: bool = False) -> ClipSet:
    """Return clips with these targets."""
    clips = make_clips(len(targets), images=images)
    clips.targets[:] = targets
    return clips


@given(num_real=st.integers(2, 30), num_fake=st.integers(2, 30))
def test_halves_share_no_clip_and_lose_none(num_real: int, num_fake: int) -> None:
    """Each has both classes, and of each nearly half."""
    clips = with_targets([0] * num_real + [1] * num_fake)
    choose, report = divide(clips, "half")
    assert sorted(choose.names + report.names) == sorted(clips.names)
    for target, count in ((0, num_real), (1, num_fake)):
        sizes = [int((half.targets == target).sum()) for half in (choose, report)]
        assert sum(sizes) == count
        assert 0 <= sizes[0] - sizes[1] <= 1


def test_order_of_the_clips_decides_nothing() -> None:
    """The names do, so another listing of the same folder makes the same halves."""
    clips = with_targets([0, 1] * 10)
    turned = clips.select(np.arange(20)[::-1].copy())
    assert set(divide(clips, "half")[0].names) == set(divide(turned, "half")[0].names)


def test_half_reads_its_own_clips() -> None:
    """Waveforms and images come along with names and targets."""
    clips = with_targets([0, 1] * 6, images=True)
    for half in divide(clips, "half"):
        for number, name in enumerate(half.names):
            original = clips.names.index(name)
            assert np.array_equal(half.waveform(number), clips.waveform(original))
            assert half.targets[number] == clips.targets[original]
            assert half.images is not None
            assert clips.images is not None
            both = half.images[np.array([number])], clips.images[np.array([original])]
            assert np.array_equal(*both)


def test_without_a_holdout_all_clips_do_both() -> None:
    """Also where one class is missing."""
    clips = with_targets([1, 1, 1])
    assert divide(clips, "none") == (clips, clips)


def test_too_few_clips_are_refused_with_their_numbers() -> None:
    """And with both ways out."""
    with pytest.raises(
        DataError, match=r'1 real and 4 fake; add clips, or set holdout \(.*\) = "none"'
    ):
        divide(with_targets([1, 1, 0, 1, 1]), "half")
