"""Entries in any order become the rows of a matrix, on disk, and nothing stays behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from omics.data.errors import InputDataError
from omics.data.sources import entry_spool
from omics.data.sources.entry_spool import EntrySpool

SHAPE = (9, 6)
entry = st.tuples(st.integers(0, 8), st.integers(0, 5), st.integers(0, 9))


def spooled(batches: list[list[tuple[int, int, int]]], scratch: Path) -> np.ndarray[Any, Any]:
    with EntrySpool(*SHAPE, dtype=np.dtype(np.float64), scratch=scratch) as spool:
        for batch in batches:
            columns = np.array(batch, np.int64).reshape(-1, 3).T
            spool.append(*columns)
        matrix = spool.matrix(Path("some.mtx"), "X")
        blocks = list(matrix.blocks())
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(b[0]) for b in blocks]))])
    genes, values = (np.concatenate([block[i] for block in blocks]) for i in (1, 2))
    found: np.ndarray[Any, Any] = sparse.csr_array((values, genes, indptr), SHAPE).toarray()
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(entry, max_size=12), max_size=5), st.integers(1, 20), st.booleans())
def test_every_entry_arrives_once(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[tuple[int, int, int]]],
    block: int,
    in_order: bool,
) -> None:
    if in_order:
        batches = [sorted(entry for batch in batches for entry in batch)]
    expected = np.zeros(SHAPE, np.int64)
    for row, column, value in (entry for batch in batches for entry in batch):
        expected[row, column] += value
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entry_spool, "BLOCK_ENTRIES", block)
        found = spooled(batches, scratch)
    np.testing.assert_array_equal(found, expected)
    assert list(scratch.iterdir()) == []


def test_entries_in_the_order_of_cells_are_not_sorted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorted_spools: list[int] = []
    sort = EntrySpool._sort
    monkeypatch.setattr(
        EntrySpool, "_sort", lambda self, indptr: (sorted_spools.append(1), sort(self, indptr))
    )
    spooled([[(0, 5, 1), (0, 2, 1), (3, 0, 1)], [(3, 4, 1), (8, 0, 2)]], tmp_path)
    assert sorted_spools == []
    spooled([[(3, 0, 1)], [(0, 4, 1)]], tmp_path)
    assert sorted_spools == [1]


def test_values_are_checked_with_the_place_they_came_from(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"X of some.mtx: .* row 3, column 4 .* is negative"):
        spooled([[(3, 4, -2)], [(0, 0, 1)]], tmp_path)
