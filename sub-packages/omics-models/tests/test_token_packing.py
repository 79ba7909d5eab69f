from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.models.token_packing import packed
from omics.tokenizers import TokenBatch


def batch_of(lengths, first_row=0):
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    rows = np.arange(first_row, first_row + len(lengths), dtype=np.int64)
    values = np.concatenate([np.full(n, row) for n, row in zip(lengths, rows, strict=True)] or [[]])
    places = np.arange(int(offsets[-1]))
    fields = {"genes": values.astype(np.int32), "expression": places.astype(np.float32)}
    return TokenBatch(fields=fields, offsets=offsets, rows=rows)


@given(
    parts=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), max_size=5),
    max_tokens=st.integers(1, 30),
    max_cells=st.none() | st.integers(1, 6),
    max_area=st.none() | st.integers(1, 60),
)
def test_cells_keep_their_order_and_limits_hold(parts, max_tokens, max_cells, max_area):
    firsts = np.cumsum([0, *(len(part) for part in parts)])
    batches = [batch_of(part, first) for part, first in zip(parts, firsts[:-1], strict=True)]
    found = list(packed(batches, max_tokens=max_tokens, max_cells=max_cells, max_area=max_area))
    lengths = np.array([n for part in parts for n in part], np.int64)
    assert np.concatenate([[], *(b.rows for b in found)]).tolist() == list(range(len(lengths)))
    assert np.concatenate([[], *(b.lengths for b in found)]).tolist() == lengths.tolist()
    for name in ("genes", "expression"):
        wanted = np.concatenate([[], *(b.fields[name] for b in batches)])
        assert np.concatenate([[], *(b.fields[name] for b in found)]).tolist() == wanted.tolist()
    for batch in found:
        counted = np.maximum(batch.lengths, 1)
        assert len(batch) == 1 or counted.sum() <= max_tokens
        assert max_cells is None or len(batch) <= max_cells
        assert max_area is None or len(batch) == 1 or len(batch) * counted.max() <= max_area
    # Greedy: the first cell of a batch did not fit into the one before.
    for before, after in pairwise(found):
        joined = np.maximum([*before.lengths, after.lengths[0]], 1)
        assert (
            joined.sum() > max_tokens
            or (max_cells is not None and len(joined) > max_cells)
            or (max_area is not None and len(joined) * joined.max() > max_area)
        )


@pytest.mark.parametrize("size", [1, 3, 100])
def test_how_cells_were_read_does_not_matter(size):
    lengths = np.random.default_rng(0).integers(0, 40, 100).tolist()
    parts = [batch_of(lengths[i : i + size], i) for i in range(0, 100, size)]
    wanted = list(packed([batch_of(lengths)], max_tokens=90))
    found = list(packed(parts, max_tokens=90))
    assert [b.rows.tolist() for b in found] == [b.rows.tolist() for b in wanted]
