"""Cells come in proportion to their weights."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import ConfigError
from omics.data.loading.weighted_order import Weighted


class _Cells:
    def __init__(self, num_cells, **columns):
        self.num_cells = num_cells
        self.obs = columns

    def __len__(self):
        return self.num_cells


def _epoch(order, cells, rows=None, seed=0, epoch=0):
    bound = order.bind(cells, rows)
    found = bound.epoch(seed, epoch)
    assert len(bound) == len(found)
    assert found.dtype == np.int64
    assert np.array_equal(found, order.bind(cells, rows).epoch(seed, epoch))
    return found


def test_draws_follow_the_weights(monkeypatch):
    monkeypatch.setattr("omics.data.loading.weighted_order._STEP", 1000)
    weights = np.array([0.0, 1, 2, 0, 5, 0])
    found = _epoch(Weighted(weights, num_cells=40_500), _Cells(6))
    counts = np.bincount(found, minlength=6) / 40_500
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    assert np.allclose(counts, weights / 8, atol=0.01)
    # Draws are independent: the halves of the epoch, and neighbours, tell nothing of each other.
    assert np.allclose(np.bincount(found[:20_000], minlength=6) / 20_000, weights / 8, atol=0.02)
    pairs = np.mean((found[1:] == 4) & (found[:-1] == 4))
    assert abs(pairs - (5 / 8) ** 2) < 0.02


def test_weights_of_a_selection_are_those_of_its_rows():
    weights = np.arange(100.0)
    rows = np.array([50, 0, 99, 50])
    found = _epoch(Weighted(weights, num_cells=10_000), _Cells(100), rows)
    counts = np.bincount(found, minlength=100)
    assert set(np.flatnonzero(counts)) == {50, 99}
    assert abs(counts[50] / 10_000 - 100 / 199) < 0.02


def test_an_epoch_has_as_many_draws_as_rows():
    assert len(_epoch(Weighted(np.ones(30)), _Cells(30))) == 30
    assert len(_epoch(Weighted(np.ones(30)), _Cells(30), np.arange(7))) == 7


def test_epochs_and_seeds_differ():
    order = Weighted(np.ones(60))
    found = {tuple(_epoch(order, _Cells(60), None, s, e)) for s in (0, 1) for e in (0, 1)}
    assert len(found) == 4


def test_without_replacement_heavy_cells_come_first_and_none_twice():
    weights = np.where(np.arange(1000) < 100, 50.0, 1.0)
    weights[500] = 0
    found = _epoch(Weighted(weights, replacement=False), _Cells(1000))
    assert sorted(found) == [row for row in range(1000) if row != 500]
    assert (found[:100] < 100).sum() > 60
    few = _epoch(Weighted(weights, num_cells=20, replacement=False), _Cells(1000))
    assert len(set(few.tolist())) == 20
    rows = np.array([7, 500, 3])
    assert sorted(_epoch(Weighted(weights, replacement=False), _Cells(1000), rows)) == [3, 7]


def test_without_replacement_is_drawing_from_what_is_left():
    weights = np.array([1.0, 2, 3])
    cells, order = _Cells(3), Weighted(np.array([1.0, 2, 3]), replacement=False)
    pairs = np.zeros((3, 3))
    for seed in range(3000):
        first, second, _ = order.bind(cells, None).epoch(seed, 0)
        pairs[first, second] += 1
    for i in range(3):
        for j in range(3):
            if i != j:
                expected = weights[i] / 6 * weights[j] / (6 - weights[i])
                assert abs(pairs[i, j] / 3000 - expected) < 0.03


def test_weights_can_be_a_column_of_obs():
    cells = _Cells(4, w=np.array([0, 0, 3, 1], np.uint8))
    found = _epoch(Weighted("w", num_cells=4000), cells)
    assert abs((found == 2).mean() - 0.75) < 0.03


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        (np.ones(3), r"float64 of shape \(3,\); they must be one number for each of the 4 cells"),
        (np.array(["a"] * 4), "<U1 of shape"),
        (np.array([1, None, 1, 1], dtype=object), "none missing"),
        (np.array([1, np.nan, 1, 1]), "nan at row 1"),
        (np.array([1, 1, -1, 1]), "-1.0 at row 2"),
        (np.array([1, 1, 1, np.inf]), "inf at row 3"),
        (np.zeros(4), "all 0 for the rows to visit"),
    ],
)
def test_weights_that_are_none_are_refused(weights, found):
    with pytest.raises(ConfigError, match=found):
        Weighted(weights).bind(_Cells(4), None)
    with pytest.raises(ConfigError, match=f"in the obs column 'w' .*{found}"):
        Weighted("w").bind(_Cells(4, w=weights), None)


def test_impossible_numbers_of_cells_are_refused():
    with pytest.raises(ConfigError, match="num_cells is 0"):
        Weighted("w", num_cells=0)
    order = Weighted(np.array([1.0, 0, 1]), num_cells=3, replacement=False)
    with pytest.raises(ConfigError, match="num_cells is 3, but only 2 rows have a positive weight"):
        order.bind(_Cells(3), None)


def test_equal_weights_have_equal_descriptions():
    first = Weighted(np.array([1, 2, 3])).to_dict()
    assert first == Weighted([1.0, 2.0, 3.0]).to_dict()
    assert first != Weighted(np.array([1, 2, 4])).to_dict()
    assert Weighted("w").to_dict()["weights"] == "w"
