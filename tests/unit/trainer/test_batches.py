"""What a step reads: shuffled crops in training, evenly spread windows in evaluation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.clips import SAMPLE_RATE, make_clips, tiny_config
from trainer.batches import (
    count_steps,
    evaluation_batches,
    evaluation_windows,
    read_inputs,
    training_batches,
    window_samples,
)

WINDOW = SAMPLE_RATE // 2


@given(num_clips=st.integers(2, 50), batch_size=st.integers(2, 20))
def test_epoch_has_every_clip_once_but_never_a_batch_of_one(
    num_clips: int, batch_size: int
) -> None:
    """BatchNorm can't train on a single clip."""
    steps = count_steps(num_clips, batch_size)
    sizes = [min(batch_size, num_clips - step * batch_size) for step in range(steps)]
    assert min(sizes) >= 2
    assert num_clips - sum(sizes) in (0, 1)


def test_training_batches_cover_the_clips_in_another_order_each_epoch() -> None:
    """And in the same order whenever the epoch is the same."""
    clips, config = make_clips(11), tiny_config()
    orders = [
        np.concatenate([batch.indices for batch in training_batches(clips, config, epoch)]).tolist()
        for epoch in (1, 1, 2)
    ]
    assert sorted(orders[0]) == list(range(11))
    assert orders[0] == orders[1] != orders[2]


def test_balanced_epoch_has_as_many_of_each_class() -> None:
    """Of 3 fakes and 13 others 8 each, every clip of a class about as often, crops anew."""
    clips = make_clips(16)
    clips.targets[:] = np.arange(16) < 3
    config = tiny_config(sampling="balanced", batch_size=16)
    first, again, other = (
        next(iter(training_batches(clips, config, epoch))) for epoch in (1, 1, 2)
    )
    assert np.array_equal(first.indices, again.indices)
    assert np.array_equal(first.inputs, again.inputs)
    assert not np.array_equal(first.indices, other.indices)
    counts_N = np.bincount(first.indices, minlength=16)
    assert sorted(counts_N[:3]) == [2, 3, 3]
    assert counts_N[3:].sum() == 8
    assert counts_N[3:].max() == 1


def test_balanced_epoch_of_one_class_is_a_natural_one() -> None:
    """There is nothing to balance it with."""
    clips = make_clips(7)
    clips.targets[:] = 1
    config = tiny_config(sampling="balanced", batch_size=7)
    (batch,) = training_batches(clips, config, 1)
    assert sorted(batch.indices) == list(range(7))


def test_batches_from_the_middle_are_those_of_the_whole_epoch() -> None:
    """A resumed epoch reads what it would have read."""
    clips, config = make_clips(11), tiny_config()
    whole = list(training_batches(clips, config, 1))
    rest = list(training_batches(clips, config, 1, first_step=1))
    assert len(rest) == len(whole) - 1
    assert np.array_equal(whole[1].inputs, rest[0].inputs)


def test_crops_lie_inside_their_clip() -> None:
    """A crop of a long clip is a stretch of it."""
    clips, config = make_clips(6), tiny_config()
    for batch in training_batches(clips, config, 1):
        for index, crop_T in zip(batch.indices.tolist(), batch.inputs, strict=True):
            samples = clips.waveform(index).tobytes()
            if len(samples) >= 2 * WINDOW:
                assert crop_T.tobytes() in samples


def test_short_clip_is_tiled() -> None:
    """From its first sample on."""
    clips, config = make_clips(8), tiny_config()
    index = int(np.argmin(clips.num_samples))
    length = int(clips.num_samples[index])
    assert length < WINDOW
    inputs_BT = read_inputs(clips, config, np.array([index]), np.array([0]))
    assert inputs_BT[0].tolist() == [clips.waveform(index)[i % length] for i in range(WINDOW)]


def test_windows_spread_from_the_first_sample_to_the_last() -> None:
    """As many as cover the clip, at most eval_windows; a single one is the middle."""
    clips = make_clips(8)
    indices_W, starts_W = evaluation_windows(clips, tiny_config(eval_windows=64))
    for index, length in enumerate(clips.num_samples.tolist()):
        starts = starts_W[indices_W == index].tolist()
        assert starts[0] == 0
        assert len(starts) == max(1, -(-length // WINDOW))
        assert starts[-1] == max(0, length - WINDOW)
    _, starts_W = evaluation_windows(clips, tiny_config(eval_windows=1))
    assert starts_W.tolist() == [max(0, x - WINDOW) // 2 for x in clips.num_samples.tolist()]


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.618, 0.999])
def test_shifted_windows_stay_inside_their_clip(shift: float) -> None:
    """Test-time augmentation moves windows round the end, and turns short clips."""
    clips, config = make_clips(12), tiny_config(eval_windows=3)
    indices_W, starts_W = evaluation_windows(clips, config, shift)
    lengths_W = clips.num_samples[indices_W]
    long_W = lengths_W >= WINDOW
    assert (starts_W[long_W] + WINDOW <= lengths_W[long_W]).all()
    assert (starts_W[~long_W] < lengths_W[~long_W]).all()
    num_windows = sum(len(batch.indices) for batch in evaluation_batches(clips, config, 5, shift))
    assert num_windows == len(indices_W)


def test_notebook_images_are_read_whole() -> None:
    """One image a clip, without windows."""
    clips, config = make_clips(5, images=True), tiny_config(frontend="notebook")
    (batch,) = evaluation_batches(clips, config, 8)
    assert clips.images is not None
    assert np.array_equal(batch.inputs, clips.images)
    assert window_samples(config) == WINDOW
