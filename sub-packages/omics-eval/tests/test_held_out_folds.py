from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import InputDataError
from omics.eval.held_out_folds import held_out_folds


def test_every_class_is_dealt_out_evenly_also_small_ones():
    labels = np.array(["a"] * 52 + ["b"] * 11 + ["c"] * 3 + ["d"], dtype=object)
    order = np.random.default_rng(1).permutation(len(labels))
    folds = held_out_folds(labels[order], num_folds=5, seed=0)
    for name in "abcd":
        number = np.bincount(folds[labels[order] == name], minlength=5)
        assert number.max() - number.min() <= 1
    number = np.bincount(folds, minlength=5)
    assert number.max() - number.min() <= 1
    assert np.array_equal(folds, held_out_folds(labels[order], num_folds=5, seed=0))
    assert not np.array_equal(folds, held_out_folds(labels[order], num_folds=5, seed=1))


def test_groups_stay_whole_and_classes_spread_over_folds():
    random = np.random.default_rng(0)
    groups = random.integers(0, 12, 600).astype(str)
    # Half of the donors have class b besides.
    labels = np.where((groups.astype(int) % 2 == 0) & (random.random(600) < 0.5), "b", "a")
    folds = held_out_folds(labels, num_folds=3, groups=groups, seed=0)
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    for name in "ab":
        share = np.bincount(folds[labels == name], minlength=3) / (labels == name).sum()
        assert share.min() > 0.2
    assert np.bincount(folds, minlength=3).min() > 150


def test_no_fold_is_empty_where_each_group_has_its_own_class():
    groups = np.repeat(["d0", "d1", "d2", "d3"], [50, 3, 2, 1])
    folds = held_out_folds(groups, num_folds=4, groups=groups)
    assert sorted(np.bincount(folds).tolist()) == [1, 2, 3, 50]


def test_more_folds_than_cells_or_groups_are_refused():
    with pytest.raises(InputDataError, match="3 labelled cells cannot be held out in 5 folds"):
        held_out_folds(np.array(list("aab")), num_folds=5)
    with pytest.raises(InputDataError, match=r"are of 2 groups, which cannot .* whole in 5 folds"):
        held_out_folds(np.array(["a"] * 40), num_folds=5, groups=np.array(["d", "e"] * 20))
