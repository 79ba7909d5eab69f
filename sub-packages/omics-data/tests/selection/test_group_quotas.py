"""Random, equal-per-group and label-balanced cells: exact numbers, groups and repeatability."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.errors import InputDataError, UsageError
from omics.data.selection import equal_per_group_rows, label_balanced_rows, random_rows
from omics.data.selection.group_quotas import group_quotas


def round_robin(sizes, number):
    """Quota for all, small groups whole, then one cell at a time round the groups that have more."""
    taken = [min(size, number // len(sizes)) for size in sizes]
    while sum(taken) < number:
        for group, size in enumerate(sizes):
            if sum(taken) < number and taken[group] < size:
                taken[group] += 1
    return taken


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.floats(0, 1))
def test_quotas_are_those_of_dealing_cells_out_in_rounds(sizes, share):
    number = int(share * sum(sizes))
    quotas = group_quotas(np.array(sizes, np.int64), number)
    assert quotas.sum() == number
    assert quotas.tolist() == round_robin(sizes, number)


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=80), st.data())
def test_chosen_cells_have_the_quotas_of_their_groups(codes, data):
    groups = np.array(codes)
    available = int((groups >= 0).sum())
    if not available:
        with pytest.raises(InputDataError, match="No cell has a label"):
            label_balanced_rows(groups, 1)
        return
    number = data.draw(st.integers(1, available))
    rows = equal_per_group_rows(groups, number, seed=3)
    assert len(np.unique(rows)) == number
    assert (np.diff(rows) > 0).all()
    assert (groups[rows] >= 0).all()
    sizes = np.bincount(groups[groups >= 0])
    assert np.bincount(groups[rows], minlength=len(sizes)).tolist() == round_robin(sizes, number)
    per_label = data.draw(st.integers(1, 20))
    rows = label_balanced_rows(groups, per_label, seed=3)
    expected = np.minimum(sizes, per_label).tolist()
    assert np.bincount(groups[rows], minlength=len(sizes)).tolist() == expected


def test_the_seed_decides_and_a_larger_number_contains_a_smaller_one():
    codes = np.arange(1000) % 7
    for choose in (
        lambda number, seed: random_rows(1000, number, seed=seed),
        lambda number, seed: equal_per_group_rows(codes, number, seed=seed),
        lambda number, seed: label_balanced_rows(codes, number // 7, seed=seed),
    ):
        np.testing.assert_array_equal(choose(210, 4), choose(210, 4))
        assert choose(210, 4).tolist() != choose(210, 5).tolist()
        assert set(choose(70, 4)) <= set(choose(210, 4))


def test_every_cell_is_as_likely():
    chosen = np.bincount(np.concatenate([random_rows(20, 5, seed=seed) for seed in range(2000)]))
    assert np.abs(chosen - 500).max() < 5 * np.sqrt(500 * 0.75)


def test_numbers_that_cannot_be_chosen():
    with pytest.raises(UsageError, match="11 cells are wanted, but there are 10 cells to choose"):
        random_rows(10, 11)
    with pytest.raises(UsageError, match="0 cells are wanted; ask for at least 1"):
        random_rows(10, 0)
    with pytest.raises(UsageError, match="3 cells are wanted, but there are 2 cells with a group"):
        equal_per_group_rows(np.array([0, 1, -1]), 3)
    with pytest.raises(UsageError, match="0 cells of each label"):
        label_balanced_rows(np.array([0]), 0)
    with pytest.raises(UsageError, match="seed is -1"):
        random_rows(10, 1, seed=-1)
