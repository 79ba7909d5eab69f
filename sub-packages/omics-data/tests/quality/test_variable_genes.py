"""Highly variable genes out of core are the ones scanpy finds in memory, in both flavours."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy

from omics.data.errors import InputDataError, MissingExtraError, UsageError
from omics.data.quality import highly_variable_genes, variable_genes


def in_memory(store, rows, flavor, batch):
    memory = store.to_anndata(rows)
    memory.X = memory.X.astype(np.float64)
    if flavor == "seurat":
        scanpy.pp.normalize_total(memory, target_sum=1e4)
        scanpy.pp.log1p(memory)
    return scanpy.pp.highly_variable_genes(
        memory, n_top_genes=80, flavor=flavor, batch_key=batch, inplace=False
    )


@pytest.mark.parametrize("batch", [None, "batch"])
@pytest.mark.parametrize("flavor", ["seurat", "seurat_v3"])
def test_the_same_genes_as_scanpy(faulty_store, in_small_blocks, flavor, batch):
    if flavor == "seurat_v3":
        pytest.importorskip("skmisc.loess")
    rows = np.arange(1, 300)  # scanpy warns of the empty cell.
    expected = in_memory(faulty_store, rows, flavor, batch)
    found = highly_variable_genes(faulty_store, 80, rows=rows, flavor=flavor, batch=batch)
    assert found["highly_variable"].sum() == 80
    assert found["highly_variable"].tolist() == expected["highly_variable"].tolist()
    for name in found:
        np.testing.assert_allclose(
            found[name].astype(float), expected[name].to_numpy(float), rtol=1e-9, atol=1e-12
        )


def test_a_constant_gene_has_exactly_no_variance():
    sums, squares = np.array([3.0 * 7, 5]), np.array([9.0 * 7, 9])
    mean, variance = variable_genes._mean_variance(sums, squares, 7)
    np.testing.assert_allclose(mean, [3, 5 / 7])
    assert variance[0] == 0
    assert variance[1] == pytest.approx(np.var([2, 1, 2, 0, 0, 0, 0], ddof=1))


def test_ranking_without_the_fitting_library_is_an_extra(faulty_store, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "skmisc.loess", None)
    with pytest.raises(MissingExtraError, match=r"needs skmisc.*omics-data\[qc\]"):
        highly_variable_genes(faulty_store, 10, flavor="seurat_v3")


def test_the_two_passes_of_seurat_v3_against_a_dense_calculation(faulty_store, monkeypatch):
    """With a known spread in place of the fitted curve, the formula can be written out."""
    monkeypatch.setattr(variable_genes, "import_extra", lambda name: None)
    monkeypatch.setattr(
        variable_genes, "_fitted_spread", lambda mean, variance: np.sqrt(mean + 0.5)
    )
    found = highly_variable_genes(faulty_store, 50, flavor="seurat_v3")
    dense = faulty_store.to_anndata().X.toarray().astype(np.float64)
    mean, number = dense.mean(axis=0), len(dense)
    spread = np.sqrt(mean + 0.5)
    clipped = np.minimum(dense, spread * np.sqrt(number) + mean)
    expected = ((clipped - mean) ** 2).sum(axis=0) / ((number - 1) * spread**2)
    np.testing.assert_allclose(found["variances_norm"], expected, rtol=1e-9)
    np.testing.assert_allclose(found["variances"], dense.var(axis=0, ddof=1), rtol=1e-9, atol=1e-12)
    best = np.argsort(-expected, kind="stable")[:50]
    assert set(np.flatnonzero(found["highly_variable"])) == set(best)
    assert found["highly_variable_rank"][best[0]] == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"flavor": "seurat_v4"}, UsageError, "Did you mean 'seurat_v3'"),
        ({"num_genes": 0}, UsageError, "ask for some"),
        ({"rows": np.array([4])}, InputDataError, "1 cells are too few"),
    ],
)
def test_what_cannot_be_asked(faulty_store, change, error, message):
    arguments = {"num_genes": 10, **change}
    with pytest.raises(error, match=message):
        highly_variable_genes(faulty_store, **arguments)


def test_stores_and_batches_that_do_not_do(tmp_path, write_store):
    import pandas as pd

    floats = write_store(tmp_path / "f", [[0.5, 1.0]] * 3, value_kind="float")
    with pytest.raises(InputDataError, match="holds no raw counts"):
        highly_variable_genes(floats, 1)
    obs = pd.DataFrame({"b": ["x", "x", None], "c": ["x", "x", "y"]}, index=list("abc"))
    counts = write_store(tmp_path / "c", [[1, 2], [3, 0], [4, 5]], obs=obs)
    with pytest.raises(InputDataError, match="1 cells have no value in the obs column 'b'"):
        highly_variable_genes(counts, 1, batch="b")
    with pytest.raises(InputDataError, match="has a single cell"):
        highly_variable_genes(counts, 1, batch="c")
