"""An h5ad file as a source: layouts old and new, tables of every column type, clear refusals."""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse

from omics.data.errors import InputDataError, UnknownNameError
from omics.data.sources.source_h5ad import open_h5ad

if TYPE_CHECKING:
    from collections.abc import Callable


def small(cells: int = 6, genes: int = 4) -> anndata.AnnData:
    counts = np.random.default_rng(0).poisson(1.0, (cells, genes)).astype(np.float32)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(cells)])
    var = pd.DataFrame(index=[f"g{i}" for i in range(genes)])
    return anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


def written(adata: anndata.AnnData, folder: Path, **options: Any) -> Path:
    path = folder / "cells.h5ad"
    adata.write_h5ad(path, **options)
    return path


def test_matrices_and_their_own_gene_tables(tmp_path: Path) -> None:
    wide = small(genes=9)
    adata = wide[:, :4].copy()
    adata.raw = wide
    adata.layers["counts"] = adata.X.tocsc()
    adata.layers["dense"] = adata.X.toarray()
    with open_h5ad(written(adata, tmp_path)) as source:
        found = {name: (each.encoding, each.shape) for name, each in source.matrices.items()}
        assert found == {
            "X": ("csr", (6, 4)),
            "layers/counts": ("csc", (6, 4)),
            "layers/dense": ("dense", (6, 4)),
            "raw.X": ("csr", (6, 9)),
        }
        assert list(source.var("raw.X").index) == [f"g{i}" for i in range(9)]
        assert list(source.var("X").index) == [f"g{i}" for i in range(4)]
        assert source.matrix("raw/X") is source.matrices["raw.X"]


def test_the_layout_of_old_anndata_versions_is_read() -> None:
    path = Path(scanpy.__file__).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    with open_h5ad(path) as source:
        assert {name: each.encoding for name, each in source.matrices.items()} == {
            "X": "dense",
            "raw.X": "csr",
        }
        obs, var = source.obs(), source.var("raw.X")
        blocks = list(source.matrix("raw.X").blocks("float"))
    adata = scanpy.datasets.pbmc68k_reduced()
    pd.testing.assert_frame_equal(
        obs, adata.obs, check_names=False, check_categorical=False, check_index_type=False
    )
    assert list(var.index) == list(adata.raw.var_names)
    assert sum(len(block[1]) for block in blocks) == adata.raw.X.nnz


def test_every_column_type_of_anndata_arrives(tmp_path: Path) -> None:
    adata = small()
    columns: dict[str, Any] = {
        "text": ["a", "b", "", "d", "é", "f"],
        "category": pd.Categorical(["x", None, "y", "x", "x", "y"], categories=["y", "x", "z"]),
        "ordered": pd.Categorical([3, 1, 1, 3, 2, 2], categories=[3, 1, 2], ordered=True),
        "flag": [True, False, True, True, False, False],
        "maybe flag": pd.array([True, None, False, True, None, False], dtype="boolean"),
        "maybe number": pd.array([1, None, 3, 4, 5, 2**60], dtype="Int64"),
        "number": np.arange(6, dtype=np.uint8),
        "share": np.array([0.5, np.nan, 1, 2, 3, np.inf], dtype=np.float32),
    }
    if importlib.metadata.version("anndata").startswith("0.12."):
        columns["a/b"] = np.arange(6)  # Later ones do not write such names.
    for name, values in columns.items():
        adata.obs[name] = values
    with warnings.catch_warnings():
        # Later versions of AnnData will not write a slash in a name; files that have one exist.
        warnings.simplefilter("ignore", FutureWarning)
        path = written(adata, tmp_path)
    with open_h5ad(path) as source:
        found = source.obs()
    expected = anndata.read_h5ad(path).obs
    pd.testing.assert_frame_equal(found, expected, check_index_type=False)
    assert list(found.columns) == list(columns)


def test_big_endian_and_byte_string_columns_are_made_plain(tmp_path: Path) -> None:
    path = written(small(), tmp_path)
    with h5py.File(path, "r+") as handle:
        obs = handle["obs"]
        for name, data in {"be": np.arange(6, dtype=">i4"), "raw": np.array([b"a"] * 6)}.items():
            obs[name] = data
            obs[name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        obs.attrs["column-order"] = ["be", "raw"]
    with open_h5ad(path) as source:
        found = source.obs()
    assert found["be"].dtype == np.dtype("int32")
    assert found["raw"].tolist() == ["a"] * 6


def test_an_index_of_numbers_keeps_its_columns(tmp_path: Path) -> None:
    path = written(small(), tmp_path)
    with h5py.File(path, "r+") as handle:
        del handle["obs/_index"]
        for name, data in {"_index": [7, 7, 8, 9, 9, 9], "n": np.arange(6)}.items():
            handle[f"obs/{name}"] = data
            handle[f"obs/{name}"].attrs.update(
                {"encoding-type": "array", "encoding-version": "0.2.0"}
            )
        handle["obs"].attrs["column-order"] = ["n"]
    with open_h5ad(path) as source:
        found = source.obs()
    assert found["n"].tolist() == list(range(6))
    assert list(found.index) == ["7", "7", "8", "9", "9", "9"]


def drop_obs(handle: h5py.File) -> None:
    del handle["obs"]


def drop_matrix(handle: h5py.File) -> None:
    del handle["X"]


def shorten_index(handle: h5py.File) -> None:
    del handle["obs/_index"]
    handle["obs/_index"] = ["a", "b"]


def ragged_table(handle: h5py.File) -> None:
    handle["obs/bad"] = np.arange(3)
    handle["obs/bad"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    handle["obs"].attrs["column-order"] = ["bad"]


def missing_column(handle: h5py.File) -> None:
    handle["obs"].attrs["column-order"] = ["gone"]


def complex_column(handle: h5py.File) -> None:
    handle["obs/bad"] = np.arange(6) * 1j
    handle["obs/bad"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    handle["obs"].attrs["column-order"] = ["bad"]


def latin_column(handle: h5py.File) -> None:
    handle["obs/bad"] = np.array([b"\xe9"] * 6)
    handle["obs/bad"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    handle["obs"].attrs["column-order"] = ["bad"]


def no_index(handle: h5py.File) -> None:
    handle["var"].attrs["_index"] = "gone"


def array_for_table(handle: h5py.File) -> None:
    del handle["var"]
    handle["var"] = np.arange(4)


BROKEN: list[tuple[Callable[[h5py.File], None], str]] = [
    (drop_obs, r"not an \.h5ad file: it has no table 'obs'"),
    (drop_matrix, "has obs and var tables but no matrix"),
    (ragged_table, "table obs of .* cannot be read"),
    (missing_column, "table obs of .* cannot be read .*gone"),
    (complex_column, "Column 'bad' of the table obs of .* cannot be written to Parquet"),
    (latin_column, "Column 'bad' of the table obs of .* cannot be written to Parquet"),
    (no_index, "table /var has no index column 'gone'"),
    (array_for_table, "/var is an array, not a table"),
]


@pytest.mark.parametrize(("damage", "words"), BROKEN, ids=[each[0].__name__ for each in BROKEN])
def test_a_broken_file_is_refused(
    damage: Callable[[h5py.File], None], words: str, tmp_path: Path
) -> None:
    path = written(small(), tmp_path)
    with h5py.File(path, "r+") as handle:
        damage(handle)
    with pytest.raises(InputDataError, match=words) as raised, open_h5ad(path) as source:
        source.obs()
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shorten_index, "shape is 6 x 4, but the tables have 2 cells and 4 genes"),
        (lambda handle: handle["X"].attrs.update({"shape": [2**40, 4]}), "1,099,511,627,776 x 4"),
        (lambda handle: handle["X"].attrs.update({"encoding-type": "coo"}), "encoding 'coo'"),
        (lambda handle: handle["X"].attrs.__delitem__("shape"), "it has no shape"),
        (lambda handle: handle["X"].__delitem__("indices"), "it has no list 'indices'"),
    ],
)
def test_a_broken_matrix_is_named_when_asked_for(
    damage: Callable[[h5py.File], None], words: str, tmp_path: Path
) -> None:
    path = written(small(), tmp_path)
    with h5py.File(path, "r+") as handle:
        damage(handle)
    with open_h5ad(path) as source:
        assert "X" in source.unreadable
        with pytest.raises(InputDataError, match=f"X of .*{re.escape(words)}"):
            source.matrix("X")


def test_an_unknown_matrix_is_answered_with_the_nearest(tmp_path: Path) -> None:
    adata = small()
    adata.layers["counts"] = adata.X
    with (
        open_h5ad(written(adata, tmp_path)) as source,
        pytest.raises(UnknownNameError, match="Did you mean 'layers/counts'"),
    ):
        source.matrix("layers/count")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["matrix/data"], "10x Genomics"),
        (["row_attrs/a", "col_attrs/a"], "loom"),
        (["assays/RNA"], "h5Seurat"),
        (["mod/rna"], "MuData"),
    ],
)
def test_hdf5_files_of_other_programs_are_named(
    names: list[str], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as handle:
        for name in names:
            handle[name] = 1
    with pytest.raises(InputDataError, match=words), open_h5ad(path):
        pass


def test_a_table_too_large_for_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omics.data.sources.anndata_layout.MAX_TABLE_BYTES", 40)
    with (
        open_h5ad(written(small(), tmp_path)) as source,
        pytest.raises(InputDataError, match=r"table obs of .* declares \d+ bytes"),
    ):
        source.obs()
