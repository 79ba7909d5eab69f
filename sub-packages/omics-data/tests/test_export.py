"""A store written as h5ad is what was converted, and any AnnData program reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse

from omics.data import convert, open_store, synthesize
from omics.data.errors import CorruptStoreError, ExistingPathError, MissingPathError
from omics.data.export import export_h5ad

if TYPE_CHECKING:
    from pathlib import Path


def test_convert_and_export_give_the_file_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omics.data.export.BLOCK_ENTRIES", 100)
    adata = synthesize(60, 40, seed=3, mean_genes=20)
    adata.obs["maybe"] = pd.array([None, *range(59)], dtype="Int64")
    adata.obs["text"] = [f"t{number % 7}" for number in range(60)]
    adata.obs["share"] = np.linspace(0, 1, 60)
    adata.write_h5ad(tmp_path / "a.h5ad")
    store = convert(tmp_path / "a.h5ad", tmp_path / "s")
    done: list[int] = []
    export_h5ad(store, tmp_path / "b.h5ad", on_progress=done.append)
    assert sum(done) == 60
    assert len(done) > 3
    first, second = (anndata.read_h5ad(tmp_path / name) for name in ("a.h5ad", "b.h5ad"))
    assert second.X.dtype == np.int32
    assert (first.X != second.X).nnz == 0
    pd.testing.assert_frame_equal(second.obs, first.obs)
    pd.testing.assert_frame_equal(second.var, first.var)
    assert second.uns["omics"]["store_digest"] == store.digest
    scanpy.pp.normalize_total(second)
    scanpy.pp.log1p(second)
    again = convert(tmp_path / "b.h5ad", tmp_path / "t")
    assert (again.to_anndata().X != store.to_anndata().X).nnz == 0


def test_large_counts_floats_and_empty_stores_are_written(write_store: Any, tmp_path: Path) -> None:
    large = write_store(tmp_path / "large", [[2**32 - 1, 0], [1, 2]])
    export_h5ad(large, tmp_path / "large.h5ad")
    assert anndata.read_h5ad(tmp_path / "large.h5ad").X.toarray()[0, 0] == 2**32 - 1
    floats = write_store(tmp_path / "floats", np.array([[0.5, -1.25]]), value_kind="float")
    export_h5ad(floats, tmp_path / "floats.h5ad")
    assert anndata.read_h5ad(tmp_path / "floats.h5ad").X.toarray().tolist() == [[0.5, -1.25]]
    empty = write_store(tmp_path / "empty", sparse.csr_matrix((0, 3), dtype=np.int64))
    export_h5ad(empty, tmp_path / "empty.h5ad")
    assert anndata.read_h5ad(tmp_path / "empty.h5ad").shape == (0, 3)


def test_nothing_is_replaced_unasked(write_store: Any, tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [[1, 2]])
    (tmp_path / "a.h5ad").write_text("precious")
    with pytest.raises(ExistingPathError, match="add --overwrite"):
        export_h5ad(store, tmp_path / "a.h5ad")
    assert (tmp_path / "a.h5ad").read_text() == "precious"
    export_h5ad(store, tmp_path / "a.h5ad", overwrite=True)
    assert anndata.read_h5ad(tmp_path / "a.h5ad").shape == (1, 2)
    with pytest.raises(ExistingPathError, match="is a folder"):
        export_h5ad(store, tmp_path, overwrite=True)
    with pytest.raises(MissingPathError, match="no folder"):
        export_h5ad(store, tmp_path / "none" / "a.h5ad")


def test_a_damaged_store_leaves_no_file(tmp_path: Path) -> None:
    synthesize(30, 20, seed=1).write_h5ad(tmp_path / "a.h5ad")
    store = convert(tmp_path / "a.h5ad", tmp_path / "s")
    file = store.path / f"gen-{store.generation}" / "counts.bin"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CorruptStoreError, match=r"counts\.bin"):
        export_h5ad(open_store(tmp_path / "s"), tmp_path / "b.h5ad")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.h5ad", "s"]
