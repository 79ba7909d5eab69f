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
    encode_counts,
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


def encoded(indptr, genes, values, num_genes):
    coded = (np.zeros(len(genes), np.uint16), np.zeros(len(genes), np.uint8))
    sums = (
        np.zeros((num_genes, SMALL_BINS), np.uint32),
        np.zeros((num_genes, LARGE_BINS), np.uint32),
        np.zeros(num_genes, np.int64),
        np.zeros(len(indptr) - 1, np.int64),
    )
    return encode_counts(indptr, genes, values, coded=coded, sums=sums), coded, sums


@pytest.mark.parametrize("gene_type", [np.int32, np.int64])
@pytest.mark.parametrize("value_type", [np.int64, np.float64])
@given(blocks())
def test_counts_are_coded_and_counted(gene_type, value_type, block):
    indptr, genes, counts = block
    found, coded, sums = encoded(indptr, genes.astype(gene_type), counts.astype(value_type), 700)
    assert found.tolist() == np.flatnonzero(counts >= 255).tolist()
    assert coded[0].tolist() == genes.tolist()
    assert coded[1].tolist() == np.minimum(counts, 255).tolist()
    histogram = np.zeros((700, LARGE_BINS), np.int64)
    np.add.at(histogram, (genes, np.minimum(counts, LARGE_BINS - 1)), 1)
    assert (sums[0] == histogram[:, :SMALL_BINS]).all()
    assert not sums[1][:, :SMALL_BINS].any()
    assert (sums[1][:, SMALL_BINS:] == histogram[:, SMALL_BINS:]).all()
    escaped = np.zeros(700, np.int64)
    np.add.at(escaped, genes, np.where(counts >= LARGE_BINS - 1, counts, 0))
    assert (sums[2] == escaped).all()
    cells = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    expected = np.zeros(len(indptr) - 1, np.int64)
    np.add.at(expected, cells, counts)
    assert sums[3].tolist() == expected.tolist()


@pytest.mark.parametrize("bad", [0.0, -1.0, 1.5, np.nan, np.inf, -np.inf, 2.0**32, 1e300])
def test_the_first_value_that_is_no_count_is_reported(bad):
    indptr = np.array([0, 1, 4])
    values = np.array([5, 1, bad, bad])
    found, _, _ = encoded(indptr, np.array([2, 0, 1, 2]), values, 3)
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
    found, _, _ = encoded(indptr, np.array(genes), values, 3)
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
