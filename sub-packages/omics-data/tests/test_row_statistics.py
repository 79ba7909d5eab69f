"""Sums over entries: exact for counts of any size, 0 where there is nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from omics.data.storage.row_statistics import sums_by_cell, sums_by_gene

LARGEST = 2**32 - 1


@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(1, LARGEST)), max_size=6)))
def test_sums_equal_python_integers(cells):
    entries = [entry for cell in cells for entry in cell]
    indptr = np.cumsum([0, *[len(cell) for cell in cells]])
    genes = np.array([gene for gene, _ in entries], np.int64)
    counts = np.array([count for _, count in entries], np.uint32)
    by_cell = sums_by_cell(indptr, counts)
    assert by_cell.dtype == np.int64
    assert by_cell.tolist() == [sum(count for _, count in cell) for cell in cells]
    by_gene = sums_by_gene(genes, counts, 5)
    assert by_gene.dtype == np.int64
    assert by_gene.tolist() == [sum(c for g, c in entries if g == gene) for gene in range(5)]


def test_float_sum_of_a_cell_does_not_depend_on_its_neighbours():
    values = np.random.default_rng(0).random(1000).astype(np.float32)
    indptr = np.array([0, 300, 300, 1000])
    together = sums_by_cell(indptr, values)
    alone = [sums_by_cell(np.array([0, b - a]), values[a:b])[0] for a, b in pairwise(indptr)]
    assert together.dtype == np.float64
    assert together.tolist() == alone
    np.testing.assert_allclose(together[2], values[300:].astype(np.float64).sum())
