"""Cross-validation: which clips are in which fold, and who scores them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search.folds import _measure
from tests.clips import SAMPLE_RATE, make_clips, tiny_config
from trainer.cache import CachedClip, WaveformCache
from trainer.errors import DataError
from trainer.folds import cross_validate, cut_folds
from trainer.measures import to_log_odds
from trainer.metrics import cllr


@given(
    groups=st.lists(st.integers(0, 12), min_size=24, max_size=80),
    num_folds=st.integers(2, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_no_group_is_in_two_folds_and_each_has_both_classes(
    groups: list[int], num_folds: int, seed: int
) -> None:
    """Or it is said that there are no such folds."""
    targets_N = np.random.default_rng(seed).integers(0, 2, len(groups))
    names = [f"speaker {group}" for group in groups]
    try:
        folds_N = cut_folds(targets_N, names, num_folds, seed)
    except DataError:
        return
    assert set(folds_N.tolist()) == set(range(num_folds))
    for group in set(groups):
        assert len(set(folds_N[np.array(groups) == group].tolist())) == 1
    for fold in range(num_folds):
        assert set(targets_N[folds_N == fold].tolist()) == {0, 1}
    assert np.array_equal(folds_N, cut_folds(targets_N, names, num_folds, seed))


def test_without_groups_folds_are_even() -> None:
    """Each has a K-th of each class, and another seed cuts others."""
    targets_N = np.arange(40) % 2
    folds_N = cut_folds(targets_N, None, 4, 0)
    assert np.bincount(folds_N * 2 + targets_N).tolist() == [5] * 8
    assert not np.array_equal(folds_N, cut_folds(targets_N, None, 4, 1))


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (None, "9 folds need as many clips of each class, there are 8"),
        (["a", "b"] * 8, "4 folds need as many groups, there are 2"),
    ],
)
def test_too_few_are_told(groups: list[str] | None, words: str) -> None:
    """Clips of a class, or groups."""
    num_folds = 9 if groups is None else 4
    with pytest.raises(DataError, match=words):
        cut_folds(np.arange(16) // 8, groups, num_folds, 0)


def test_groups_of_one_class_can_t_be_cut() -> None:
    """A fold with one class has no AUC."""
    targets_N = np.arange(16) // 8
    groups = ["real"] * 8 + ["fake"] * 8
    with pytest.raises(DataError, match="choose fewer folds or another column"):
        cut_folds(targets_N, groups, 2, 0)


def test_cache_of_another_sample_rate_is_refused(tmp_path: Path) -> None:
    """Everything would sound higher or lower, and the figures would not tell."""
    samples_S = make_clips(4).samples_S
    cache = WaveformCache(tmp_path, tmp_path, SAMPLE_RATE, "f", (), samples_S, None)
    config = tiny_config(sample_rate=2 * SAMPLE_RATE)
    words = f"must be the waveform cache's, {SAMPLE_RATE} Hz, got {2 * SAMPLE_RATE}"
    with pytest.raises(DataError, match=words):
        cross_validate(
            config, cache, 2, None, data=tmp_path, work=tmp_path, device=torch.device("cpu")
        )


def test_cllr_is_by_the_prior_of_each_folds_training(tmp_path: Path) -> None:
    """Of 4 fakes and 9 real clips one detector saw 2 and 4, the other 2 and 5."""
    clips = make_clips(13)
    rows = zip(clips.names, clips.offsets.tolist(), clips.num_samples.tolist(), strict=True)
    cached = tuple(
        CachedClip("train", name, int(number in (1, 3, 5, 7)), *place)
        for number, (name, *place) in enumerate(rows)
    )
    cache = WaveformCache(tmp_path, tmp_path, SAMPLE_RATE, "f", cached, clips.samples_S, None)
    found = cross_validate(
        tiny_config(epochs=1), cache, 2, None,
        data=tmp_path, work=tmp_path / "work", device=torch.device("cpu"),
    )  # fmt: skip
    targets_N = found.clips.targets
    num_real = [int(np.sum((targets_N == 0) & (found.folds_N == fold))) for fold in (0, 1)]
    assert sorted(num_real) == [4, 5]
    prior_N = np.log(2 / np.array(num_real[::-1])[found.folds_N])  # what is in the other fold
    expected = cllr(to_log_odds(found.logits_NK) - prior_N, targets_N)
    figures = _measure(found, 2, None)
    assert figures["metrics"]["cllr"]["value"] == pytest.approx(expected)
