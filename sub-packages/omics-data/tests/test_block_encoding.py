"""Compiled encoding against plain numpy: codes, statistics, packed rows, ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.storage.block_encoding import (
    HAS_ZEROS,
    LARGE_BINS,
    NOT_A_COUNT,
    NOT_ASCENDING,
    NOT_FINITE,
    OUT_OF_RANGE,
    SMALL_BINS,
    code_counts,
    count_codes,
    inspect_rows,
    pack_rows,
    rank_rows,
)
from omics.data.storage.gather import unpack_rows

COUNTS = [1, 1, 1, 2, 3, 14, 15, 16, 30, 31, 32, 254, 255, 256, 65534, 65535, 65536, 2**32 - 1]


@st.composite
def blocks(draw, num_genes=700):
    """A block of cells: indptr, genes, counts."""
    cells = draw(
        st.lists(
            st.dictionaries(st.integers(0, num_genes - 1), st.sampled_from(COUNTS), max_size=9),
            max_size=5,
        )
    )
    indptr = np.concatenate([[0], np.cumsum([len(cell) for cell in cells])]).astype(np.int64)
    genes = np.array([gene for cell in cells for gene in sorted(cell)], np.int64)
    counts = np.array([cell[gene] for cell in cells for gene in sorted(cell)], np.int64)
    return indptr, genes, counts


def coded_of(indptr, genes, values, num_genes):
    coded = (np.zeros(len(genes), np.uint16), np.zeros(len(genes), np.uint8))
    cell_sums = np.full(len(indptr) - 1, -1)
    found = code_counts(
        indptr, genes, values, num_genes=num_genes, coded=coded, cell_sums=cell_sums
    )
    return found, coded, cell_sums


@pytest.mark.parametrize("gene_type", [np.int32, np.int64])
@pytest.mark.parametrize("value_type", [np.int64, np.float64])
@given(blocks())
def test_counts_are_coded_and_counted(gene_type, value_type, block):
    indptr, genes, counts = block
    found, coded, cell_sums = coded_of(
        indptr, genes.astype(gene_type), counts.astype(value_type), 700
    )
    assert found.tolist() == np.flatnonzero(counts >= 255).tolist()
    assert coded[0].tolist() == genes.tolist()
    assert coded[1].tolist() == np.minimum(counts, 255).tolist()
    expected = [counts[begin:end].sum() for begin, end in pairwise(indptr)]
    assert cell_sums.tolist() == expected
    small = np.ones((SMALL_BINS, 700), np.uint16)
    large = np.ones((700, LARGE_BINS), np.uint32)
    count_codes(*coded, small=small, large=large)
    histogram = np.zeros((700, LARGE_BINS), np.int64)
    np.add.at(histogram, (genes, np.minimum(counts, LARGE_BINS - 1)), 1)
    assert (histogram[:, :SMALL_BINS] == small.T - 1).all()
    assert (large[:, :SMALL_BINS] == 1).all()
    assert (large[:, SMALL_BINS:] - 1 == histogram[:, SMALL_BINS:]).all()


@given(st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=400), st.data())
def test_long_cells_are_coded_like_short_ones(counts, data):
    """SIMD works on many entries at a time; the one bad entry may be anywhere."""
    values = np.array(counts, np.float32)
    values[values >= 2.0**32] = 2.0**31  # What float32 rounds up.
    genes = np.arange(len(values), dtype=np.int32)
    indptr = np.array([0, len(values)])
    found, coded, cell_sums = coded_of(indptr, genes, values, 400)
    assert found.tolist() == np.flatnonzero(values >= 255).tolist()
    assert coded[1].tolist() == np.minimum(values, 255).tolist()
    assert cell_sums[0] == int(values.sum(dtype=np.float64))
    entry = data.draw(st.integers(0, len(values) - 1))
    for wrong in (0, -0.0, -3, 0.5, 254.5, 300.5, np.nan, np.inf, -np.inf, 2.0**32):
        bad = values.copy()
        bad[entry] = wrong
        assert coded_of(indptr, genes, bad, 400)[0].tolist() == [-1 - 2 * entry]
    for wrong in (-1, 400, genes[entry - 1] if entry else -(2**31)):
        bad = genes.copy()
        bad[entry] = wrong
        assert coded_of(indptr, bad, values, 400)[0].tolist() == [-2 - 2 * entry]


@pytest.mark.parametrize("bad", [0.0, -1.0, 1.5, np.nan, np.inf, -np.inf, 2.0**32, 1e300])
def test_the_first_value_that_is_no_count_is_reported(bad):
    indptr = np.array([0, 1, 4])
    values = np.array([5, 1, bad, bad])
    found, _, _ = coded_of(indptr, np.array([2, 0, 1, 2]), values, 3)
    assert found.tolist() == [-1 - 2 * 2]
    assert inspect_rows(indptr, np.array([2, 0, 1, 2]), values, 3) & (NOT_A_COUNT | HAS_ZEROS)


@pytest.mark.parametrize(
    ("genes", "entry", "flag"),
    [
        ([0, 1, 1], 2, NOT_ASCENDING),
        ([0, 2, 1], 2, NOT_ASCENDING),
        ([0, 1, 3], 2, OUT_OF_RANGE),
        ([-1, 1, 2], 0, OUT_OF_RANGE),
    ],
)
def test_the_first_misplaced_gene_is_reported(genes, entry, flag):
    indptr, values = np.array([0, 3]), np.ones(3)
    found, _, _ = coded_of(indptr, np.array(genes), values, 3)
    assert found.tolist() == [-2 - 2 * entry]
    assert inspect_rows(indptr, np.array(genes), values, 3) & flag


def test_a_block_in_order_has_nothing_unusual():
    indptr, genes = np.array([0, 2, 2, 3]), np.array([0, 2, 0], np.int32)
    assert inspect_rows(indptr, genes, np.array([1, 2**32 - 1, 7.0]), 3) == 0
    assert inspect_rows(indptr, genes, np.array([1, 2, 7], np.int64), 3) == 0
    assert inspect_rows(indptr, genes, np.array([1.5, 2, 7]), 3) == NOT_A_COUNT
    assert inspect_rows(indptr, genes, np.array([1e39, 2, 7]), 3) == NOT_A_COUNT | NOT_FINITE


@given(blocks())
def test_packed_rows_come_back(block):
    indptr, genes, counts = block
    ends = np.zeros(len(indptr) - 1, np.int64)
    packed = pack_rows(indptr, genes.astype(np.uint16), counts.astype(np.uint32), ends)
    assert len(packed) == (ends[-1] if len(ends) else 0)
    bounds = np.concatenate([[0], ends])
    out = (np.zeros(len(genes), np.uint16), np.zeros(len(genes), np.uint32))
    assert unpack_rows(packed, (bounds[:-1], bounds, indptr), 700, out) == -1
    assert out[0].tolist() == genes.tolist()
    assert out[1].tolist() == np.minimum(counts, 65535).tolist()


@given(blocks(), st.data())
def test_damaged_packed_rows_are_reported_or_decode_within_bounds(block, data):
    indptr, genes, counts = block
    ends = np.zeros(len(indptr) - 1, np.int64)
    packed = pack_rows(indptr, genes.astype(np.uint16), counts.astype(np.uint32), ends)
    if len(packed) == 0:
        return
    packed = packed.copy()
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    bounds = np.concatenate([[0], ends])
    out = (np.zeros(len(genes), np.uint16), np.zeros(len(genes), np.uint32))
    bad = unpack_rows(packed, (bounds[:-1], bounds, indptr), 700, out)
    assert -1 <= bad < len(ends)
    if bad == -1 and len(genes):
        assert out[0].max() < 700


@given(blocks(), st.integers(0, 3))
def test_ranks_equal_a_stable_sort_of_count_by_median(block, seed):
    indptr, genes, counts = block
    medians = np.round(np.random.default_rng(seed).random(700) * 3, 1)
    ranked = rank_rows(indptr, genes.astype(np.uint16), counts.astype(np.uint32), medians)
    for begin, end in pairwise(indptr):
        own, median = genes[begin:end], medians[genes[begin:end]]
        known = median > 0
        order = np.argsort(-counts[begin:end][known] / median[known], kind="stable")
        assert ranked[begin:end].tolist() == [*own[known][order], *own[~known]]
