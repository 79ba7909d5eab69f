from __future__ import annotations

import numpy as np
import pytest

from omics.data.cell_source import open_cells
from omics.data.converting.conversion import convert
from omics.data.errors import InputDataError, MissingPathError
from omics.data.synthetic import synthesize


def test_a_file_and_its_store_open_alike_and_nothing_stays_behind(tmp_path):
    adata = synthesize(20, 30, seed=0)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    convert(tmp_path / "cells.h5ad", tmp_path / "cells.store")
    with open_cells(tmp_path / "cells.h5ad") as a, open_cells(tmp_path / "cells.store") as b:
        temporary = a.path
        assert temporary.exists()
        rows = np.arange(20)
        assert (a.take(rows).to_csr() != b.take(rows).to_csr()).nnz == 0
        assert a.genes.digest == b.genes.digest
    assert not temporary.exists()
    assert (tmp_path / "cells.store").exists()


def test_a_missing_path_and_a_file_without_counts_are_refused(tmp_path):
    with (
        pytest.raises(MissingPathError, match=r"no file or folder .*no\.h5ad"),
        open_cells(tmp_path / "no.h5ad"),
    ):
        pass
    adata = synthesize(20, 30, seed=0)
    adata.X = np.log1p(adata.X.toarray())
    adata.write_h5ad(tmp_path / "logged.h5ad")
    with pytest.raises(InputDataError, match="log1p"), open_cells(tmp_path / "logged.h5ad"):
        pass
