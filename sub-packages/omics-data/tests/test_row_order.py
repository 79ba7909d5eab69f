"""The order of an epoch is a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.errors import ConfigError
from omics.data.loading.row_order import BlockShuffled, Sequential, Shuffled

ORDERS = [Sequential(), Shuffled(), BlockShuffled(4, 16)]


class _Cells:
    def __init__(self, num_cells):
        self.num_cells = num_cells

    def __len__(self):
        return self.num_cells


def _epoch(order, rows, seed=0, epoch=0):
    cells = rows if isinstance(rows, int) else int(np.max(rows, initial=0)) + 1
    bound = order.bind(_Cells(cells), None if isinstance(rows, int) else np.asarray(rows, np.int64))
    found = bound.epoch(seed, epoch)
    assert len(bound) == len(found)
    assert found.dtype == np.int64
    return found.tolist()


@given(
    rows=st.one_of(st.integers(0, 200), st.lists(st.integers(0, 300), max_size=200)),
    block=st.integers(1, 20),
    buffer=st.integers(0, 60),
    seed=st.integers(0, 2**64),
    epoch=st.integers(0, 5),
)
def test_every_row_comes_as_often_as_it_was_given(*, rows, block, buffer, seed, epoch):
    expected = sorted(range(rows) if isinstance(rows, int) else rows)
    for order in (Sequential(), Shuffled(), BlockShuffled(block, block + buffer)):
        assert sorted(_epoch(order, rows, seed, epoch)) == expected


@pytest.mark.parametrize("order", [Shuffled(), BlockShuffled(4, 16)])
def test_seeds_and_epochs_differ_and_repeat(order):
    found = {(s, e): tuple(_epoch(order, 90, s, e)) for e in (2, 0, 1) for s in (0, 1)}
    assert len(set(found.values())) == 6
    for (seed, epoch), rows in found.items():
        assert tuple(_epoch(order, 90, seed, epoch)) == rows
        assert rows != tuple(range(90))


def test_sequential_rows_stay_as_given():
    assert _epoch(Sequential(), [5, 1, 5], epoch=7) == [5, 1, 5]
    assert _epoch(Sequential(), 4) == [0, 1, 2, 3]


def test_random_order_is_the_documented_generator():
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence([9, 4]))).permutation(9)
    assert _epoch(Shuffled(), 9, 9, 4) == expected.tolist()
    rows = np.array([4, 2, 9])
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence([9, 4])))
    assert _epoch(Shuffled(), rows, 9, 4) == expected.permutation(rows).tolist()


def test_a_window_of_blocks_holds_few_runs_of_neighbours():
    found = np.array(_epoch(BlockShuffled(8, 64), 6400))
    for window in found.reshape(-1, 64):
        assert len(np.unique(window // 8)) == 8
        assert (np.diff(window) != 1).sum() > 50
    assert len({tuple(np.unique(window // 8)) for window in found.reshape(-1, 64)}) == 100
    assert not (np.diff(found.reshape(-1, 64).min(axis=1)) > 0).all()


def test_blocks_of_a_selection_are_neighbours_whatever_order_it_came_in():
    rows = np.random.default_rng(0).permutation(np.arange(0, 3000, 3))
    found = np.array(_epoch(BlockShuffled(10, 50), rows))
    for window in found.reshape(-1, 50):
        assert len(np.unique(window // 30)) == 5


def test_rows_beyond_two_to_the_31_are_kept():
    rows = 2**33 + np.arange(100)
    for order in ORDERS:
        found = order.bind(_Cells(2**34), rows).epoch(0, 0)
        assert sorted(found.tolist()) == rows.tolist()


@pytest.mark.parametrize("order", ORDERS)
def test_negative_seed_or_epoch_is_refused(order):
    bound = order.bind(_Cells(3), None)
    with pytest.raises(ConfigError, match="seed is -1"):
        bound.epoch(-1, 0)
    with pytest.raises(ConfigError, match="epoch is -1"):
        bound.epoch(0, -1)


@pytest.mark.parametrize(("block", "buffer"), [(0, 8), (9, 8), (-1, 8)])
def test_blocks_that_do_not_fit_their_buffer_are_refused(block, buffer):
    with pytest.raises(ConfigError, match=f"block_size is {block} and buffer_size {buffer}"):
        BlockShuffled(block, buffer)


def test_orders_describe_themselves():
    assert BlockShuffled(4, 16).to_dict() == {"name": "block", "block_size": 4, "buffer_size": 16}
    assert [order.to_dict()["name"] for order in ORDERS] == ["sequential", "random", "block"]
