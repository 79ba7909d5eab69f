"""Batches of a number of cells or within a budget; every row once, every rank the same number."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from omics.data.loading.batch_plan import TokenBudget, plan_cells


def _shares(plan):
    """Return `{batch: {rank: (begin, end)}}` as a list of lists."""
    return [
        [plan.share(index, rank) for rank in range(plan.world_size)] for index in range(len(plan))
    ]


def _check_cover(plan, begin, end):
    """Shares follow each other from `begin` to `end`."""
    position = begin
    for index, shares in enumerate(_shares(plan)):
        for first, last in shares:
            assert first == position
            assert last >= first
            position = last
        assert plan.position_after(index) == (position if index + 1 < len(plan) else plan.num_rows)
    assert position == end


@given(
    num_rows=st.integers(0, 200),
    batch_size=st.integers(1, 12),
    world_size=st.integers(1, 5),
    drop_last=st.booleans(),
    data=st.data(),
)
def test_cells_are_cut_into_equal_batches(*, num_rows, batch_size, world_size, drop_last, data):
    begin = data.draw(st.integers(0, num_rows))
    plan = plan_cells(num_rows, batch_size, begin=begin, world_size=world_size, drop_last=drop_last)
    whole = batch_size * world_size
    left = (num_rows - begin) % whole
    _check_cover(plan, begin, num_rows - left if drop_last else num_rows)
    for shares in _shares(plan)[: (num_rows - begin) // whole]:
        assert [last - first for first, last in shares] == [batch_size] * world_size
    if left and not drop_last:
        sizes = [last - first for first, last in _shares(plan)[-1]]
        assert max(sizes) - min(sizes) <= 1


@given(
    lengths=st.lists(st.integers(0, 30), max_size=120),
    budget=st.integers(1, 60),
    largest=st.integers(1, 40),
    world_size=st.integers(1, 5),
    drop_last=st.booleans(),
    data=st.data(),
)
def test_budgets_are_filled_and_kept(*, lengths, budget, largest, world_size, drop_last, data):
    num_rows = len(lengths)
    begin = data.draw(st.integers(0, num_rows))
    order = np.random.default_rng(0).permutation(num_rows)
    tokens = TokenBudget(np.array(lengths, np.int32), budget, largest)
    plan = tokens.plan(order, begin=begin, world_size=world_size, drop_last=drop_last)
    sizes = np.clip(np.array(lengths, np.int64)[order], 1, largest)
    shares = _shares(plan)
    end = shares[-1][-1][1] if shares else begin
    _check_cover(plan, begin, end)
    assert drop_last or end == num_rows
    for index, batch in enumerate(shares):
        held = [int(sizes[first:last].sum()) for first, last in batch]
        cells = [last - first for first, last in batch]
        assert all(total <= budget or one == 1 for total, one in zip(held, cells, strict=True))
        if drop_last or index + 1 < len(shares):
            # Filled: the next cell would not have fitted, or nothing was missing.
            for (_, last), total in zip(batch, held, strict=True):
                assert total >= budget or total + sizes[last] > budget
        elif sum(cells) >= world_size:
            assert min(cells) >= 1
        else:
            assert max(cells) == 1
    if drop_last:
        # What is dropped is less than a full batch for every rank.
        rest = TokenBudget(np.array(lengths, np.int32), budget, largest)
        again = rest.plan(order, begin=end, world_size=world_size, drop_last=True)
        assert len(again) == 0


def test_the_last_batch_is_shared_out_by_entries():
    lengths = np.array([50, 10, 10, 10, 10, 10], np.int32)
    plan = TokenBudget(lengths, 60, 100).plan(np.arange(6), begin=0, world_size=3, drop_last=False)
    assert _shares(plan) == [[(0, 1), (1, 4), (4, 6)]]


def test_a_cell_over_the_budget_is_a_batch_of_its_own():
    lengths = np.array([3, 99, 3, 3, 0, 0], np.int32)
    plan = TokenBudget(lengths, 6, 1000).plan(np.arange(6), begin=0, world_size=1, drop_last=False)
    assert _shares(plan) == [[(0, 1)], [(1, 2)], [(2, 4)], [(4, 6)]]
    clipped = TokenBudget(lengths, 6, 3).plan(np.arange(6), begin=0, world_size=1, drop_last=False)
    assert _shares(clipped) == [[(0, 2)], [(2, 4)], [(4, 6)]]


def test_many_batches_need_no_more_than_their_edges(monkeypatch):
    lengths = np.random.default_rng(0).integers(1, 9, 5000).astype(np.int32)
    budget = TokenBudget(lengths, 20, 9)
    whole = budget.plan(np.arange(5000), begin=0, world_size=1, drop_last=False)
    monkeypatch.setattr("omics.data.loading.batch_plan._EDGES", 7)
    assert _shares(budget.plan(np.arange(5000), begin=0, world_size=1, drop_last=False)) == _shares(
        whole
    )
    assert len(whole) > 1000
