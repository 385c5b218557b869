"""Cross-validation: which clips are in which fold, and who scores them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import DataError
from trainer.folds import cut_folds


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
