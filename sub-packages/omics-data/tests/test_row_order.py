"""The order of an epoch is a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import ConfigError
from omics.data.row_order import RowOrder


def test_every_epoch_is_another_permutation_of_the_same_rows():
    rows = np.arange(100, 200)
    order = RowOrder(rows, True, 3)
    first, second = order.epoch(0), order.epoch(1)
    assert sorted(first) == sorted(second) == rows.tolist()
    assert first.tolist() != second.tolist()
    assert first.tolist() != rows.tolist()
    assert len(order) == 100


def test_an_epoch_can_be_asked_for_in_any_order():
    rows = np.arange(50)
    forward = [RowOrder(rows, True, 3).epoch(epoch).tolist() for epoch in (0, 1, 2)]
    order = RowOrder(rows, True, 3)
    backward = [order.epoch(epoch).tolist() for epoch in (2, 1, 0)]
    assert forward == backward[::-1]
    assert RowOrder(rows, True, 4).epoch(0).tolist() != forward[0]


def test_seed_and_epoch_do_not_mix():
    rows = np.arange(50)
    assert RowOrder(rows, True, 1).epoch(2).tolist() != RowOrder(rows, True, 2).epoch(1).tolist()


def test_without_shuffling_rows_stay_as_given():
    order = RowOrder(np.array([5, 1, 5]), False, 0)
    assert order.epoch(7).tolist() == [5, 1, 5]


def test_order_is_the_documented_generator():
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence([9, 4])))
    assert RowOrder(np.arange(9), True, 9).epoch(4).tolist() == expected.permutation(9).tolist()


def test_negative_seed_or_epoch_is_refused():
    with pytest.raises(ConfigError, match="seed is -1"):
        RowOrder(np.arange(3), True, -1)
    with pytest.raises(ConfigError, match="epoch is -1"):
        RowOrder(np.arange(3), True, 0).epoch(-1)
