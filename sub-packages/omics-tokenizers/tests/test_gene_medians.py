"""Medians of a corpus against numpy, with tables of any width."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from omics.data import open_store
from omics.data.errors import InputDataError
from omics.data.storage.store_collection import open_collection
from omics.data.storage.store_writer import StoreWriter
from omics.tokenizers import corpus_medians, read_gene_tokens, write_gene_tokens
from omics.tokenizers.gene_medians import median_tokens, num_passes


def write_store(path, counts, *, names=None, value_kind="counts", symbols=None):
    matrix = csr_matrix(counts)
    names = [f"g{i}" for i in range(matrix.shape[1])] if names is None else names
    columns = {} if symbols is None else {"symbol": symbols}
    var = pd.DataFrame(columns, index=names)
    with StoreWriter(path, genes_frame=var, value_kind=value_kind) as writer:
        writer.append(matrix.indptr, matrix.indices, matrix.data)
        writer.finish(pd.DataFrame(index=[f"{path.name}{i}" for i in range(matrix.shape[0])]))
    return open_store(path)


def numpy_medians(counts):
    """Return the definition: the median over the cells that have the gene."""
    totals = counts.sum(axis=1, keepdims=True).astype(np.float64)
    values = counts * 10_000.0 / np.maximum(totals, 1)
    return [
        float(np.median(column[column > 0])) if (column > 0).any() else math.nan
        for column in values.T
    ]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_cells=st.integers(1, 30),
    largest=st.sampled_from([1, 3, 300, 2**32 - 1]),
    table_bytes=st.sampled_from([1, 4096, 192 * 2**20]),
)
def test_medians_equal_those_of_numpy_to_the_last_bit(
    tmp_path_factory, seed, num_cells, largest, table_bytes
):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, largest, (num_cells, 7), endpoint=True)
    counts[rng.random(counts.shape) < 0.5] = 0
    store = write_store(tmp_path_factory.mktemp("s") / "x.store", counts)
    seen = []
    found = corpus_medians(store, max_table_bytes=table_bytes, on_progress=seen.append)
    assert np.array_equal(found, numpy_medians(counts), equal_nan=True)
    passes = num_passes(store, max_table_bytes=table_bytes)
    assert sum(seen) / num_cells in {passes, passes - 1}


def test_medians_of_many_stores_join_genes_by_id(tmp_path):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 5, (40, 6))
    whole[:20, 4] = 0  # The first store does not have this gene.
    first = write_store(tmp_path / "a.store", whole[:20, [0, 1, 2, 3, 5]], names=list("abcdf"))
    second = write_store(tmp_path / "b.store", whole[20:, [5, 4, 3, 2, 1, 0]], names=list("fedcba"))
    together = open_collection([first.path, second.path])
    seen = []
    found = corpus_medians(together, on_progress=seen.append)
    by_name = dict(zip(together.genes.ids.tolist(), found.tolist(), strict=True))
    assert [by_name[name] for name in "abcdef"] == numpy_medians(whole)
    assert sum(seen) in {40 * num_passes(together), 40 * (num_passes(together) - 1)}


def test_the_table_has_the_layout_of_version_2_and_is_a_table_of_gene_tokens(tmp_path):
    counts = np.array([[1, 0, 3, 0], [1, 0, 1, 0]])
    store = write_store(
        tmp_path / "x.store", counts, names=list("zyxw"), symbols=["Z", "Y", "X", "W"]
    )
    tokens = median_tokens(store.genes, corpus_medians(store))
    path = tmp_path / "t.tsv"
    write_gene_tokens(path, tokens)
    assert path.read_text() == (
        "ensembl_id\tsymbol\ttoken_id\tmedian\n<pad>\t\t0\t\n<mask>\t\t1\t\n<cls>\t\t2\t\n"
        "<eos>\t\t3\t\nx\tX\t4\t6250.0\nz\tZ\t5\t3750.0\n"
    )
    assert read_gene_tokens(path).vocabulary == tokens.vocabulary


def test_values_that_are_no_counts_are_refused(tmp_path):
    store = write_store(tmp_path / "x.store", np.array([[0.5, 1.0]]), value_kind="float")
    with pytest.raises(InputDataError, match="holds float values; medians are taken of raw counts"):
        corpus_medians(store)


def test_a_corpus_without_counts_has_no_medians(tmp_path):
    store = write_store(tmp_path / "x.store", np.zeros((2, 3), np.int64))
    found = corpus_medians(store)
    assert np.isnan(found).all()
    with pytest.raises(InputDataError, match="No gene has a count"):
        median_tokens(store.genes, found)
