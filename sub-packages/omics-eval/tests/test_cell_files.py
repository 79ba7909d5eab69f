from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import pytest

from omics.data.errors import InputDataError
from omics.eval.cell_files import read_cells, write_cells


def test_a_file_that_anndata_cannot_read_is_named(tmp_path):
    path = tmp_path / "cells.h5ad"
    write_cells(ad.AnnData(np.eye(3, dtype=np.float32)), path)
    with h5py.File(path, "r+") as handle:
        del handle["obs"].attrs["_index"]
    with pytest.raises(InputDataError, match=r"cells\.h5ad cannot be read as an AnnData file"):
        read_cells(path)


def test_an_object_that_no_file_holds_is_refused_and_leaves_nothing(tmp_path):
    adata = ad.AnnData(np.eye(3, dtype=np.float32))
    adata.uns["mine"] = {"a": object()}
    with pytest.raises(InputDataError, match="Remove what AnnData cannot store"):
        write_cells(adata, tmp_path / "cells.h5ad")
    assert not list(tmp_path.iterdir())
