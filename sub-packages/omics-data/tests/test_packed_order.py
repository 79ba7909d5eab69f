"""Batches of a token budget that are full: the same cells, about the same order, few gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.errors import ConfigError
from omics.data.loading.batch_plan import TokenBudget
from omics.data.loading.loader import Loader
from omics.data.loading.packed_order import PackedOrder
from omics.data.loading.row_order import Sequential, Shuffled


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_store, random_counts):
    return write_store(tmp_path_factory.mktemp("packed") / "s", random_counts(90, 40))


class Cells:
    """So many cells; an order asks for nothing else."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number


def _log_normal(number, *, median=949, low=300, high=3000, cap):
    """Return lengths of cells of which 95 % are between two numbers, cut at a cap."""
    spread = np.log(high / low) / (2 * 1.96)
    drawn = np.random.default_rng(0).lognormal(np.log(median), spread, number)
    return np.clip(drawn, 1, cap).astype(np.int32)


@given(
    lengths=st.lists(st.integers(0, 30), max_size=120),
    budget=st.integers(1, 60),
    special=st.integers(0, 3),
    window=st.integers(2, 40),
    data=st.data(),
)
def test_every_cell_once_and_the_same_batches_from_anywhere(
    *, lengths, budget, special, window, data
):
    tokens = TokenBudget(np.array(lengths, np.int32), budget, 40, special)
    order = PackedOrder(Shuffled(), tokens, window)
    rows = order.bind(Cells(len(lengths)), None).epoch(3, 1)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    edges = tokens.plan(rows, begin=0, world_size=1, drop_last=False).edges
    place = np.argsort(rows)
    inner = Shuffled().bind(Cells(len(lengths)), None).epoch(3, 1)
    # No cell is left behind for longer than the window lets it wait.
    moved = place[inner] - np.arange(len(inner))
    assert (moved > -window).all()
    # A batch begins with the cell that has waited longest.
    where = np.argsort(inner)
    for begin in edges[:-1]:
        assert where[rows[begin]] == where[rows[begin:]].min()
    start = data.draw(st.sampled_from(edges.tolist()))
    again = tokens.plan(rows, begin=start, world_size=1, drop_last=False).edges
    np.testing.assert_array_equal(again, edges[np.searchsorted(edges, start) :])


@pytest.mark.parametrize(
    ("budget", "cap"), [(6144, 1024), (6144, 2048), (16_384, 4096), (65_536, 1024), (65_536, 4096)]
)
def test_batches_are_at_least_98_percent_full(budget, cap):
    lengths = _log_normal(20_000, cap=cap)
    tokens = TokenBudget(lengths, budget, cap)
    rows = PackedOrder(Shuffled(), tokens, 512).bind(Cells(20_000), None).epoch(0, 0)
    plan = tokens.plan(rows, begin=0, world_size=1, drop_last=True)
    held = np.add.reduceat(tokens.sizes[rows][: plan.edges[-1]], plan.edges[:-1])
    assert held.mean() / budget >= 0.98
    assert held.max() <= budget


def test_cells_count_for_what_transforms_leave():
    tokens = TokenBudget(np.array([0, 5, 10, 99], np.int32), 50, 20, 2, 0.5)
    assert tokens.sizes.tolist() == [2, 5, 7, 20]


def test_a_gap_is_closed_by_one_cell_or_by_a_pair_in_place_of_the_last():
    #                    in order: 5 + 3, gap 2; the 2 closes it; then 4 + 4, gap 2 -> the pair 3 + 3.
    lengths = np.array([5, 3, 4, 4, 2, 3, 3, 9], np.int32)
    order = PackedOrder(Sequential(), TokenBudget(lengths, 10, 10), 8)
    assert order.bind(Cells(8), None).epoch(0, 0).tolist() == [0, 1, 4, 2, 5, 6, 3, 7]


def test_a_loader_packs_and_goes_on_with_another_number_of_ranks(store):
    def loader(**options):
        return Loader(
            store, order="random", batch_tokens=60, special_tokens=2, pack_window=16, **options
        )

    whole = [batch.rows.tolist() for batch in loader()]
    assert len(loader()) == len(whole) == loader().num_batches(0)
    assert sorted(np.concatenate(whole).tolist()) == list(range(90))
    begun = loader()
    first = []
    for batch in begun:
        first += batch.rows.tolist()
        if len(first) > 30:
            break
    rest = []
    for rank in range(2):
        goes_on = loader(rank=rank, world_size=2)
        goes_on.load_state_dict(begun.state_dict())
        rest += [row for batch in goes_on for row in batch.rows.tolist()]
    assert sorted(first + rest) == list(range(90))
    with pytest.raises(ConfigError, match="the order"):
        Loader(store, order="random", batch_tokens=50, pack_window=16).load_state_dict(
            begun.state_dict()
        )


def test_auto_goes_on_packed_with_the_order_of_the_state(store):
    options = {"batch_tokens": 60, "pack_window": 8}
    begun = Loader(store, order="block", **options)
    rows = next(iter(begun)).rows
    goes_on = Loader(store, order="auto", **options)
    goes_on.load_state_dict(begun.state_dict())
    rest = np.concatenate([batch.rows for batch in goes_on])
    assert sorted([*rows.tolist(), *rest.tolist()]) == list(range(90))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pack_window": 8}, "pack_window has no effect without batch_tokens"),
        ({"pack_window": 1, "batch_tokens": 9}, "pack_window is 1; it must be at least 2"),
    ],
)
def test_what_makes_no_sense_is_refused(store, options, message):
    with pytest.raises(ConfigError, match=message):
        Loader(store, **options)
