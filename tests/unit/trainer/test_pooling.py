"""From windows to clips: the mean, attention, and training on several windows at once."""

import numpy as np
import pytest
import torch

from tests.clips import make_clips, seeded, tiny_config
from trainer.batches import training_batches
from trainer.pooling import count_answers, pool_clips, pool_windows
from trainer.training import Training

CPU = torch.device("cpu")
ATTENTION = {"pooling": "attention", "train_windows": 3, "window_seconds": 0.2}


def test_mean_counts_windows_evenly() -> None:
    """Each clip by its own windows, however many."""
    answers = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    assert pool_clips(answers, np.array([0, 0, 1]), 2).tolist() == [[2, 3], [5, 9]]
    found = pool_windows(torch.tensor(answers[:2]), 2)
    assert found.tolist() == [[2, 3]]


@pytest.mark.parametrize("scale", [0.0, 1.0, 500.0])
def test_attention_weighs_by_the_softmax_of_the_scores(scale: float) -> None:
    """Both ways agree, equal scores are the mean, one that is far above decides alone."""
    answers = torch.randn(6, 3, generator=seeded(1), dtype=torch.float64)
    answers[:, 2] *= scale
    by_batch = pool_windows(answers, 3).numpy()
    by_clip = pool_clips(answers.numpy(), np.repeat([0, 1], 3), 2)
    np.testing.assert_allclose(by_batch, by_clip, rtol=1e-9)
    logits = answers[:3, :2]
    if scale == 0:
        np.testing.assert_allclose(by_clip[0], logits.mean(dim=0).numpy())
    if scale == 500:
        strongest = int(answers[:3, 2].argmax())
        np.testing.assert_allclose(by_clip[0], logits[strongest].numpy(), rtol=1e-6)


def test_scores_come_only_with_attention() -> None:
    """A model answers with one number more."""
    assert count_answers(tiny_config()) == 2
    assert count_answers(tiny_config(**ATTENTION)) == 3


def test_step_hears_several_crops_of_each_clip() -> None:
    """One clip's crops lie behind each other, at other places; one crop is as it was."""
    clips = make_clips(6)
    config = tiny_config(train_windows=3, window_seconds=0.2)
    batch = next(training_batches(clips, config, 1))
    assert batch.indices.tolist() == np.repeat(batch.indices[::3], 3).tolist()
    assert batch.inputs.shape == (12, 800)
    assert len({row.tobytes() for row in batch.inputs}) > 4
    one = next(training_batches(clips, tiny_config(window_seconds=0.2), 1))
    assert one.indices.tolist() == batch.indices[::3].tolist()


def test_attention_learns_where_to_look() -> None:
    """The scores get a gradient, and the evaluation uses them."""
    training = Training(tiny_config(**ATTENTION, epochs=1), make_clips(8), make_clips(4), CPU)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    metrics = training.run_epoch(lambda: False)
    assert metrics is not None
    (head,) = [name for name, value in before.items() if value.ndim == 2 and len(value) == 3]
    assert not torch.equal(training.model.state_dict()[head][2], before[head][2])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pooling": "attention"}, "set train_windows above 1"),
        ({"frontend": "notebook", "train_windows": 2}, "has no windows"),
        ({"frontend": "notebook", "repetition": True}, "has no windows"),
        ({"modality": "video", "train_windows": 2}, "hears no windows"),
    ],
)
def test_windows_that_there_are_not_are_refused(values: dict[str, object], words: str) -> None:
    """The rule says what to set."""
    with pytest.raises(ValueError, match=words):
        tiny_config(**values)
