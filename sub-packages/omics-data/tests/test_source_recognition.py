"""Every kind of source is recognised by its own reader and by no other one."""

from __future__ import annotations

import warnings
import zipfile
from importlib import import_module
from typing import TYPE_CHECKING

import anndata
import h5py
import numpy as np
import pytest
from scipy import sparse

from omics.data.sources.registry import SOURCE_KINDS, open_source

if TYPE_CHECKING:
    from pathlib import Path

OURS = {"source_zarr", "source_10x_hdf5", "source_10x_folder", "source_loom", "source_h5ad"}


def make(folder: Path) -> dict[str, tuple[Path, str]]:
    adata = anndata.AnnData(sparse.csr_matrix(np.eye(3, 2, dtype=np.float32)))
    found: dict[str, tuple[Path, str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(folder / "cells.h5ad")
        for version in (2, 3):
            with anndata.settings.override(zarr_write_format=version):
                adata.write_zarr(folder / f"v{version}.zarr")
            found[f"zarr {version}"] = (folder / f"v{version}.zarr", "source_zarr")
    found["h5ad"] = (folder / "cells.h5ad", "source_h5ad")
    with zipfile.ZipFile(folder / "cells.zarr.zip", "w") as archive:
        for file in sorted((folder / "v3.zarr").rglob("*")):
            if file.is_file():
                archive.write(file, str(file.relative_to(folder / "v3.zarr")))
    found["zarr zip"] = (folder / "cells.zarr.zip", "source_zarr")
    with h5py.File(folder / "v3.h5", "w") as handle:
        for name in ("barcodes", "data", "indices", "indptr", "shape", "features/id"):
            handle[f"matrix/{name}"] = 1
    with h5py.File(folder / "v2.h5", "w") as handle:
        for name in ("barcodes", "data", "indices", "indptr", "shape", "genes"):
            handle[f"mm10/{name}"] = 1
    found["10x 3"] = (folder / "v3.h5", "source_10x_hdf5")
    found["10x 2"] = (folder / "v2.h5", "source_10x_hdf5")
    with h5py.File(folder / "cells.loom", "w") as handle:
        handle["matrix"] = np.eye(2)
        handle.create_group("row_attrs")
        handle.create_group("col_attrs")
    found["loom"] = (folder / "cells.loom", "source_loom")
    mtx = folder / "mtx"
    mtx.mkdir()
    (mtx / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n1 1 0\n")
    (mtx / "genes.tsv").write_text("a\tb\n")
    (mtx / "barcodes.tsv").write_text("a\n")
    found["mtx folder"] = (mtx, "source_10x_folder")
    found["mtx file"] = (mtx / "matrix.mtx", "source_10x_folder")
    return found


def test_each_kind_is_opened_by_its_own_reader(tmp_path: Path) -> None:
    found = make(tmp_path)
    kinds = {kind.module for kind in SOURCE_KINDS}
    assert kinds >= OURS
    for label, (path, expected) in found.items():
        takers = [
            kind.module
            for kind in SOURCE_KINDS
            if import_module(f"omics.data.sources.{kind.module}").recognises(path)
        ]
        # The reader of h5ad takes any file, and is asked last.
        assert takers[0] == expected, (label, takers)
        ours = set(takers) & (OURS - {"source_h5ad"})
        assert ours == ({expected} - {"source_h5ad"}), (label, takers)
    assert len(found) == 9


@pytest.mark.parametrize("module", sorted(OURS))
def test_what_is_nothing_of_the_kind_is_recognised_by_none(tmp_path: Path, module: str) -> None:
    recognises = import_module(f"omics.data.sources.{module}").recognises
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "gone", tmp_path / "folder"):
        assert recognises(path) is False
    for name, data in (("empty", b""), ("cut.h5", b"\x89HDF\r\n\x1a\n"), ("zip", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(data)
        assert recognises(tmp_path / name) is (module == "source_h5ad")


def test_the_old_h5ad_of_scanpy_is_an_h5ad() -> None:
    import scanpy

    path = next((p for p in (scanpy.datasets.__path__)), "")
    with open_source(f"{path}/10x_pbmc68k_reduced.h5ad") as source:
        assert source.format_name == "h5ad"
