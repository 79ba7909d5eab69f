"""Classes and members of a collection come in their shares; their cells in permutations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.errors import ConfigError
from omics.data.loading.group_orders import ClassBalanced, Mixed


class _Cells:
    def __init__(self, codes=None, sizes=None):
        self.size = len(codes) if codes is not None else int(np.sum(sizes))
        self._codes = codes
        if sizes is not None:
            self.member_ends = np.cumsum(sizes)

    def __len__(self):
        return self.size

    @property
    def obs(self):
        return self

    def codes(self, name):
        assert name == "kind"
        return np.asarray(self._codes, np.int32), np.array(["unused"])


def _epoch(order, cells, rows=None, seed=0, epoch=0):
    bound = order.bind(cells, rows)
    found = bound.epoch(seed, epoch)
    assert len(bound) == len(found)
    assert found.dtype == np.int64
    assert np.array_equal(found, order.bind(cells, rows).epoch(seed, epoch))
    return found


def _visits_differ_by_one(visits):
    return visits.max() - visits.min() <= 1


def test_classes_are_equally_likely_and_unlabelled_cells_left_out():
    codes = np.repeat([0, 3, -1, 4], [10, 1, 50, 1939])
    found = _epoch(ClassBalanced("kind", num_cells=30_000), _Cells(codes))
    shares = np.bincount(codes[found], minlength=5) / 30_000
    assert np.allclose(shares, [1 / 3, 0, 0, 1 / 3, 1 / 3], atol=0.01)
    for code in (0, 3, 4):
        visits = np.bincount(found, minlength=2000)[codes == code]
        assert _visits_differ_by_one(visits)
        assert visits.sum() == np.sum(codes[found] == code)


def test_an_epoch_has_as_many_draws_as_labelled_rows():
    codes = np.array([0, -1, 1, 1, -1, 0])
    assert len(_epoch(ClassBalanced("kind"), _Cells(codes))) == 4
    assert len(_epoch(ClassBalanced("kind"), _Cells(codes), np.array([0, 1, 3]))) == 2


@given(
    codes=st.lists(st.integers(-1, 6), min_size=1, max_size=60),
    num_cells=st.integers(1, 300),
    seed=st.integers(0, 2**63),
    data=st.data(),
)
def test_no_cell_comes_again_before_all_of_its_class_came(*, codes, num_cells, seed, data):
    rows = data.draw(st.lists(st.integers(0, len(codes) - 1), min_size=1, unique=True))
    codes, rows = np.array(codes), np.array(rows)
    if (codes[rows] < 0).all():
        with pytest.raises(ConfigError, match="No cell to visit has a value in the obs column"):
            ClassBalanced("kind").bind(_Cells(codes), rows)
        return
    found = _epoch(ClassBalanced("kind", num_cells), _Cells(codes), rows, seed)
    assert len(found) == num_cells
    for code in np.unique(codes[found]):
        members = rows[codes[rows] == code]
        of_class = found[codes[found] == code]
        assert code >= 0
        for begin in range(0, len(of_class), len(members)):
            part = of_class[begin : begin + len(members)]
            assert len(set(part.tolist())) == len(part)
            assert set(part.tolist()) <= set(members.tolist())


def test_permutations_of_a_class_are_uniform():
    cells, order = _Cells(np.zeros(3, int)), ClassBalanced("kind", 6)
    seen = {}
    for seed in range(3000):
        found = order.bind(cells, None).epoch(seed, 0).tolist()
        for half in (found[:3], found[3:]):
            seen[tuple(half)] = seen.get(tuple(half), 0) + 1
    assert len(seen) == 6
    assert all(abs(count - 1000) < 120 for count in seen.values())


def test_epochs_differ():
    cells = _Cells(np.arange(50) % 5)
    found = {
        tuple(_epoch(ClassBalanced("kind"), cells, None, s, e)) for s in (0, 1) for e in (0, 1)
    }
    assert len(found) == 4


def test_a_hundred_thousand_classes_are_no_burden():
    codes = np.arange(300_000) % 100_000
    found = _epoch(ClassBalanced("kind"), _Cells(codes))
    assert 60_000 < len(np.unique(codes[found])) < 100_000


def test_every_run_of_cells_mixes_the_members_in_their_shares(monkeypatch):
    monkeypatch.setattr("omics.data.loading.group_orders._SPAN", 700)
    sizes = np.array([5000, 300, 40])
    shares = np.array([0.5, 0.3, 0.2])
    found = _epoch(Mixed((5, 3, 2), num_cells=6400), _Cells(sizes=sizes))
    member = np.searchsorted(np.cumsum(sizes), found, side="right")
    for begin in range(0, 6400, 64):
        counts = np.bincount(member[begin : begin + 64], minlength=3)
        assert (np.abs(counts - shares * 64) <= 1 + shares * 3).all()
    assert np.allclose(np.bincount(member) / 6400, shares, atol=0.001)


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    weights=st.data(),
    num_cells=st.integers(1, 200),
    seed=st.integers(0, 2**63),
)
def test_no_cell_comes_again_before_all_of_its_member_came(*, sizes, weights, num_cells, seed):
    chosen = [weights.draw(st.floats(0, 9)) if size else 0.0 for size in sizes]
    if sum(chosen) < 1e-3:
        return
    ends = np.cumsum(sizes)
    order = Mixed(chosen, num_cells)
    epochs = [_epoch(order, _Cells(sizes=sizes), None, seed, epoch) for epoch in range(3)]
    assert all(len(rows) == num_cells for rows in epochs)
    # Permutations run on from one epoch to the next.
    found = np.concatenate(epochs)
    member = np.searchsorted(ends, found, side="right")
    for number in np.unique(member):
        of_member = found[member == number]
        for begin in range(0, len(of_member), sizes[number]):
            part = of_member[begin : begin + sizes[number]].tolist()
            assert len(set(part)) == len(part)


def test_members_in_proportion_to_their_size_visit_every_cell_once():
    cells = _Cells(sizes=[900, 7, 0, 93])
    for epoch in (0, 5):
        found = _epoch(Mixed(), cells, None, 1, epoch)
        assert sorted(found) == list(range(1000))
        assert np.abs(np.cumsum(found >= 907) - np.arange(1, 1001) * 0.093).max() < 3
    rows = np.arange(0, 1000, 2)
    assert sorted(_epoch(Mixed(), cells, rows)) == rows.tolist()
    assert _epoch(Mixed(), cells, np.zeros(0, np.int64)).tolist() == []


def test_small_members_repeat_and_large_ones_go_on_in_the_next_epoch():
    cells = _Cells(sizes=[1000, 10])
    order = Mixed((1, 1), num_cells=400)
    epochs = [_epoch(order, cells, None, 0, epoch) for epoch in range(5)]
    small = [np.bincount(rows, minlength=1010)[1000:] for rows in epochs]
    assert all((counts == 20).all() for counts in small)
    assert sorted(row for rows in epochs for row in rows if row < 1000) == list(range(1000))


def test_one_store_is_its_own_only_member():
    cells = _Cells(codes=np.zeros(30))
    assert sorted(_epoch(Mixed(), cells)) == list(range(30))


def test_rows_beyond_two_to_the_31_are_kept():
    rows = 2**33 + np.arange(100)
    cells = _Cells(sizes=[2**33, 2**20])
    assert sorted(_epoch(Mixed((0, 1)), cells, rows)) == rows.tolist()


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ((1,), "1 weights for 2 members"),
        ((1, 1, 1), "3 weights for 2 members"),
        ((1, 1), "Member 1 of the collection has the weight 1 and no cell"),
    ],
)
def test_weights_that_do_not_fit_the_members_are_refused(weights, found):
    with pytest.raises(ConfigError, match=found):
        Mixed(weights).bind(_Cells(sizes=[5, 5]), np.arange(4))


@pytest.mark.parametrize("weights", [(-1, 2), (0, 0), (np.nan, 1), (np.inf, 1), ()])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ConfigError, match="must be numbers from 0, not all 0"):
        Mixed(weights)


def test_impossible_numbers_of_cells_are_refused():
    for make in (lambda: ClassBalanced("kind", 0), lambda: Mixed(num_cells=-1)):
        with pytest.raises(ConfigError, match="an epoch has at least 1 cell"):
            make()


def test_orders_describe_themselves():
    assert Mixed([1, 2]).to_dict() == {"name": "mixed", "weights": [1.0, 2.0], "num_cells": None}
    assert ClassBalanced("kind").to_dict() == {
        "name": "class_balanced",
        "column": "kind",
        "num_cells": None,
    }
