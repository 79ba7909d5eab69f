"""Metrics of cells and genes are scanpy's, whatever the blocks; gene sets are found by symbol."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy.sparse import csr_matrix

from omics.data.genes import GeneTable
from omics.data.quality import dask_anndata, dask_matrix, measure_cells
from omics.data.quality.gene_sets import find_gene_sets, gene_set_remarks
from omics.data.quality.store_blocks import cut_rows


def by_scanpy(store, adata):
    """Return scanpy's tables of the matrix in memory, in float64."""
    symbols = adata.var["gene_symbol"].str.upper()
    memory = store.to_anndata()
    memory.X = memory.X.astype(np.float64)
    memory.var["mt"] = symbols.str.startswith("MT-").to_numpy()
    memory.var["ribo"] = symbols.str.startswith(("RPS", "RPL")).to_numpy()
    memory.var["hb"] = (symbols == "HBA1").to_numpy()
    return scanpy.pp.calculate_qc_metrics(memory, qc_vars=["mt", "ribo", "hb"], log1p=False)


def test_metrics_equal_those_of_scanpy_in_memory_bit_for_bit(
    faulty_store, faulty_adata, in_small_blocks
):
    assert len(cut_rows(faulty_store, limit=10_000)) > 5
    advanced: list[int] = []
    metrics = measure_cells(faulty_store, on_progress=advanced.append)
    assert len(advanced) > 5
    assert sum(advanced) == len(faulty_store)
    cells, genes = by_scanpy(faulty_store, faulty_adata)
    assert list(metrics.cells) == list(cells.columns)
    assert set(metrics.genes) == set(genes.columns)
    for table, found in ((cells, metrics.cells), (genes, metrics.genes)):
        for name in table.columns:
            np.testing.assert_array_equal(table[name].to_numpy(), found[name])
            assert table[name].dtype == found[name].dtype, name
    assert np.isnan(metrics.cells["pct_counts_mt"][0])  # The empty cell.
    assert metrics.gene_sets == {"mt": 13, "ribo": 2, "hb": 1}
    assert metrics.remarks == ()


def test_scanpys_own_functions_work_on_the_store_as_dask(faulty_store, faulty_adata):
    lazy = dask_anndata(faulty_store, obs=("batch",), block_entries=10_000)
    assert lazy.X.npartitions > 5
    cells, _ = scanpy.pp.calculate_qc_metrics(lazy, log1p=False)
    expected, _ = by_scanpy(faulty_store, faulty_adata)
    np.testing.assert_array_equal(
        cells["pct_counts_in_top_50_genes"], expected["pct_counts_in_top_50_genes"]
    )
    assert lazy.obs["batch"].tolist() == faulty_adata.obs["batch"].tolist()
    assert lazy.var["gene_symbol"].tolist() == faulty_adata.var["gene_symbol"].tolist()


def test_a_dask_matrix_holds_the_chosen_rows_in_their_order(faulty_store, faulty_adata):
    rows = np.array([250, 3, 3, 0, 17])
    matrix = dask_matrix(faulty_store, rows, block_entries=400)
    assert matrix.npartitions > 1
    np.testing.assert_array_equal(matrix.compute().toarray(), faulty_adata.X[rows].toarray())
    assert dask_matrix(faulty_store, np.array([], np.int64)).compute().shape == (0, 600)


def test_few_genes_large_counts_and_no_cells(tmp_path, write_store):
    counts = np.zeros((3, 60), np.int64)
    counts[0, :2] = (4_000_000_000, 4_000_000_000)
    counts[1, 5] = 1
    store = write_store(tmp_path / "large", counts)
    metrics = measure_cells(store)
    assert metrics.cells["total_counts"].tolist() == [8e9, 1, 0]
    assert "pct_counts_in_top_50_genes" in metrics.cells
    assert "pct_counts_in_top_100_genes" not in metrics.cells
    none = measure_cells(write_store(tmp_path / "none", csr_matrix((0, 60))))
    assert len(none.cells["total_counts"]) == 0
    assert none.genes["n_cells_by_counts"].tolist() == [0] * 60


def test_gene_sets_are_found_in_both_species_and_their_look_alikes_are_not():
    human = ["MT-ND1", "MTOR", "RPS6", "RPL3", "HBA1", "HBB", "HBE1", "HBEGF", "HBS1L", "HBP1"]
    mouse = ["mt-Nd1", "Mtor", "Rps6", "Rpl3", "Hba-a1", "Hbb-bs", "Hbq1a", "Hbegf", "Hbs1l", "x"]
    for symbols in (human, mouse):
        found = find_gene_sets(GeneTable(symbols))
        assert {name: places.tolist() for name, places in found.items()} == {
            "mt": [0],
            "ribo": [2, 3],
            "hb": [4, 5, 6],
        }


def test_ids_without_symbols_are_named_as_the_reason():
    genes = GeneTable([f"ENSG{position:011d}" for position in range(5)])
    (remark,) = gene_set_remarks(genes, find_gene_sets(genes))
    assert "no mitochondrial, ribosomal, haemoglobin genes were found" in remark
    assert "Ensembl ids such as ENSG00000000000" in remark
    assert "gene_symbol" in remark
    named = GeneTable(["A", "MT-CO1"])
    (remark,) = gene_set_remarks(named, find_gene_sets(named))
    assert remark.startswith("no ribosomal, haemoglobin genes were found: none of the symbols ('A'")


def test_a_missing_library_names_the_pip_command(faulty_store, monkeypatch):
    import sys

    from omics.data.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "scanpy", None)
    with pytest.raises(MissingExtraError, match=r"needs scanpy.*pip install 'omics-data\[qc\]'"):
        measure_cells(faulty_store)
    monkeypatch.setitem(sys.modules, "dask.array", None)
    with pytest.raises(MissingExtraError, match="needs dask"):
        dask_matrix(faulty_store)


def test_columns_that_pandas_calls_objects_become_categories(tmp_path, write_store):
    obs = pd.DataFrame({"n": [1, 2], "who": ["a", None]}, index=["x", "y"])
    store = write_store(tmp_path / "s", [[1, 0], [0, 2]], obs=obs)
    frame = dask_anndata(store, obs=("n", "who")).obs
    assert frame["n"].tolist() == [1, 2]
    assert frame["who"].dtype == "category"
