"""Renumbered cells are those of a matrix product with the map, whatever the map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from omics.data.errors import InputDataError
from omics.data.matching.gene_remap import GeneMap


def expected(dense, positions, num_genes):
    out = np.zeros((len(dense), num_genes), dense.dtype)
    for old, new in enumerate(positions):
        if new >= 0:
            out[:, new] += dense[:, old]
    return out


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["any", "in order", "one to one", "identity"]),
    dtype=st.sampled_from(["u1", "u2", "u4", "f4"]),
    num_genes=st.sampled_from([1, 5, 63, 64, 65, 200]),
)
def test_any_map_gives_what_a_product_gives(seed, kind, dtype, num_genes):
    rng = np.random.default_rng(seed)
    old = num_genes if kind == "identity" else int(rng.integers(1, 90))
    if kind == "identity":
        positions = np.arange(num_genes)
    elif kind == "any":
        positions = rng.integers(-1, num_genes, old)
    else:
        chosen = rng.choice(num_genes, min(old, num_genes), replace=False)
        positions = np.full(old, -1)
        places = rng.choice(old, len(chosen), replace=False)
        positions[np.sort(places)] = np.sort(chosen) if kind == "in order" else chosen
    dense = rng.integers(0, 200, (int(rng.integers(0, 12)), old)) * (rng.random(old) < 0.6)
    block = sparse.csr_matrix(dense)
    gene_map = GeneMap(positions, num_genes)
    values = block.data.astype(dtype)
    indptr, genes, found = gene_map.apply(block.indptr.astype(np.int64), block.indices, values)
    rebuilt = sparse.csr_matrix((found.astype(np.int64), genes, indptr), (len(dense), num_genes))
    np.testing.assert_array_equal(rebuilt.toarray(), expected(dense, positions, num_genes))
    assert genes.dtype == np.uint32
    assert found.dtype == (np.uint32 if gene_map.merges and dtype != "f4" else np.dtype(dtype))
    assert (found != 0).all()
    cells = np.repeat(np.arange(len(dense)), np.diff(indptr))
    falls = np.diff(genes.astype(np.int64)) <= 0
    assert (cells[1:][falls] != cells[:-1][falls]).all()
    assert gene_map.is_identity == (kind == "identity" or gene_map.is_identity)
    assert kind == "any" or not gene_map.merges


def test_sums_above_32_bits_are_refused_and_opposite_floats_vanish():
    both = GeneMap(np.array([0, 0]), 1)
    indptr, genes = np.array([0, 2]), np.array([0, 1], np.uint32)
    with pytest.raises(InputDataError, match="add up to 4,294,967,296, more than the largest"):
        both.apply(indptr, genes, np.array([2**32 - 1, 1], np.uint32))
    assert both.apply(indptr, genes, np.array([2**32 - 2, 1], np.uint32))[2].tolist() == [2**32 - 1]
    assert both.apply(indptr, genes, np.array([1.5, -1.5], np.float32))[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("indptr", "genes"),
    [([0, 3], [0, 1]), ([0, 2, 1, 2], [0, 1]), ([1, 2], [0, 1]), ([0, 2], [0, 7]), ([0, 1], [-1])],
)
def test_a_block_that_contradicts_itself_never_reaches_the_loops(indptr, genes):
    gene_map = GeneMap(np.array([1, 0, -1]), 2)
    with pytest.raises(InputDataError, match="contradicts itself"):
        gene_map.apply(np.array(indptr), np.array(genes), np.ones(len(genes), np.uint8))
    with pytest.raises(ValueError, match="outside -1 to 1"):
        GeneMap(np.array([2]), 2)
