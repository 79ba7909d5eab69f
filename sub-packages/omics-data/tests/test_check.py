"""`check_file` tells on one screen what a file holds and what to type next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse

from omics.data import check_file, convert, synthesize
from omics.data.check import FileReport, StoreReport
from omics.data.errors import InputDataError


def written(adata: anndata.AnnData, folder: Path, name: str = "cells.h5ad") -> Path:
    path = folder / name
    adata.write_h5ad(path)
    return path


def checked(path: Path) -> FileReport:
    report = check_file(path)
    assert isinstance(report, FileReport)
    json.dumps(report.to_dict(), allow_nan=False)
    return report


def test_a_file_with_counts(tmp_path: Path) -> None:
    adata = synthesize(80, 60, seed=1, mean_genes=20)
    adata.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(80) != 3)[:, None])
    path = written(adata, tmp_path, "my cells.h5ad")
    report = checked(path)
    assert report.counts_location == "X"
    assert report.empty_cells == 1
    assert report.problems == ()
    assert report.genes is not None
    assert report.genes.kind == "Ensembl ids"
    labels = {each.name: each.num_distinct for each in report.obs_columns if each.may_be_label}
    assert labels == {"cell_type": 5, "batch": 2, "donor": 4}
    text = report.text()
    assert "80 cells x 60 genes" in text
    assert f"{adata.X.nnz:,} non-zeros" in text
    assert "raw counts (whole numbers, max" in text
    assert text.endswith(
        f"next\n  omics-data convert '{path}' '{tmp_path}/my cells.store'\n"
        f"  omics-data split '{tmp_path}/my cells.store' '{tmp_path}/my cells.split.parquet' "
        f"--stratify cell_type"
    )
    assert len(text.splitlines()) < 40
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_a_real_file_without_counts_says_where_they_may_be() -> None:
    path = Path(scanpy.__file__).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    report = checked(path)
    assert report.counts_location is None
    assert {each.location: each.summary.kind for each in report.matrices} == {
        "X": "scaled",
        "raw.X": "log1p",
    }
    assert report.next_commands == ()
    text = report.text()
    assert "! No raw counts. Give the file with raw counts" in text
    assert "obs column 'n_counts' tells that there were counts before normalisation" in text
    assert "\nnext" not in text


def test_the_place_of_the_counts_is_marked(tmp_path: Path) -> None:
    adata = synthesize(50, 40, seed=1, mean_genes=20)
    adata.layers["counts"] = adata.X.copy()
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    text = checked(written(adata, tmp_path)).text()
    (marked,) = [line for line in text.splitlines() if "<- counts" in line]
    assert marked.split()[0] == "layers/counts"
    assert "log(1 + x) of counts scaled to about 10,000" in text


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (["ENSG00000000003", "ENSMUSG00000000001", "ENSG00000000005"], "Ensembl ids"),
        (["ENSG00000000003.15", "ENSG00000000005.6", "ENSG1.x"], "mixed"),
        (["ENSG00000000003.15", "ENSG00000000005.6"], "Ensembl ids with versions"),
        (["7157", "672", "675"], "Entrez ids"),
        (["TP53", "BRCA1", "7SK"], "gene symbols"),
        (["0", "1", "2"], "row numbers"),
    ],
)
def test_the_kind_of_gene_ids_is_named(ids: list[str], kind: str, tmp_path: Path) -> None:
    counts = sparse.csr_matrix(np.eye(len(ids), dtype=np.float32) * 3)
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=ids))
    report = checked(written(adata, tmp_path))
    assert report.genes is not None
    assert report.genes.kind == kind
    assert any("genes have no names" in each for each in report.problems) == (kind == "row numbers")


def test_duplicates_are_counted_and_stand_in_the_way(tmp_path: Path) -> None:
    adata = synthesize(30, 20, seed=1)
    path = written(adata, tmp_path)
    with h5py.File(path, "r+") as handle:
        for table in ("obs", "var"):
            node = handle[f"{table}/_index"]
            # anndata 0.13 writes nullable text, a group that holds the values.
            node = node["values"] if isinstance(node, h5py.Group) else node
            node[5] = node[4]
    report = checked(path)
    assert report.genes is not None
    assert (report.genes.num_duplicates, report.duplicate_cell_names) == (1, 1)
    assert "1 gene ids of var of" in report.problems[0]
    assert report.next_commands == ()


@pytest.mark.parametrize("layout", ["csc", "dense"])
def test_other_layouts_are_estimated(layout: str, tmp_path: Path) -> None:
    adata = synthesize(40, 30, seed=1)
    nnz = adata.X.nnz
    adata.X = adata.X.tocsc() if layout == "csc" else adata.X.toarray()
    report = checked(written(adata, tmp_path))
    assert report.matrices[0].entries == nnz
    assert report.matrices[0].entries_are_exact
    assert report.empty_cells is None
    assert "empty cells not known" in report.text()


def test_the_estimated_size_is_near_the_real_one(tmp_path: Path) -> None:
    path = written(synthesize(2000, 500, seed=1), tmp_path)
    store = convert(path, tmp_path / "s")
    assert checked(path).store_bytes == pytest.approx(store.num_bytes, rel=0.2)


def test_a_damaged_table_is_a_problem_not_an_end(tmp_path: Path) -> None:
    path = written(synthesize(30, 20, seed=1), tmp_path)
    with h5py.File(path, "r+") as handle:
        handle["obs"].attrs["column-order"] = ["gone"]
    report = checked(path)
    assert report.counts_location == "X"
    assert "table obs of" in report.problems[0]
    assert report.next_commands == ()


def test_a_damaged_matrix_is_a_problem_not_an_end(tmp_path: Path) -> None:
    path = written(synthesize(30, 20, seed=1), tmp_path)
    with h5py.File(path, "r+") as handle:
        del handle["X/indptr"]
    report = checked(path)
    assert report.problems[0] == "X: it has no list 'indptr'."
    assert "matrices\n  none" in report.text()


def test_many_columns_are_cut_to_a_screen(tmp_path: Path) -> None:
    adata = synthesize(30, 20, seed=1)
    for number in range(40):
        adata.obs[f"score {number}"] = np.random.default_rng(number).random(30)
    text = checked(written(adata, tmp_path)).text()
    assert "and 23 more columns" in text
    assert "cell_type" in text


def test_at_most_the_sample_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omics.data.check.SAMPLE_BYTES", 200_000)
    monkeypatch.setattr("omics.data.check._OFFSETS_BYTES", 10_000)
    adata = synthesize(3000, 200, seed=1, mean_genes=100)
    path = tmp_path / "a.h5ad"
    adata.write_h5ad(path, compression="gzip")
    read: list[Any] = []
    from omics.data.sources.matrix_blocks import MatrixSource

    original = MatrixSource.read

    def counted(self: MatrixSource, dataset: Any, where: Any) -> Any:
        found = original(self, dataset, where)
        read.append(found.nbytes)
        return found

    monkeypatch.setattr(MatrixSource, "read", counted)
    report = checked(path)
    assert report.counts_location == "X"
    assert 0 < sum(read) <= 200_000 < 4 * adata.X.nnz
    assert report.empty_cells is None


def test_a_store_is_described(tmp_path: Path) -> None:
    adata = synthesize(50, 30, seed=1)
    convert(written(adata, tmp_path), tmp_path / "s")
    report = check_file(tmp_path / "s")
    assert isinstance(report, StoreReport)
    assert report.num_entries == adata.X.nnz
    assert report.median_sum == np.median(np.asarray(adata.X.sum(axis=1)))
    json.dumps(report.to_dict(), allow_nan=False)
    assert "from    X of cells.h5ad" in report.text()


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="is not a store"):
        check_file(tmp_path)
