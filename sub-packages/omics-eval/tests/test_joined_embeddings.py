from __future__ import annotations

import numpy as np
import pytest
from integration_cells import counted_cells

from omics.data.errors import InputDataError, UnknownNameError, UsageError
from omics.eval.joined_embeddings import join_embeddings


@pytest.fixture
def files(tmp_path):
    """The same cells with one embedding, by two bundles."""
    paths = []
    for name, key in (("first", "X_good"), ("second", "X_random")):
        cells = counted_cells(30)
        cells.obsm["X_omics"] = cells.obsm[key]
        cells.uns["omics"] = {"X_omics": {"bundle_digest": name}}
        paths.append(tmp_path / f"{name}.h5ad")
        cells.write_h5ad(paths[-1])
    return paths


def test_embeddings_go_by_the_names_of_their_files(files):
    cells, keys = join_embeddings(files, "X_omics")
    expected = counted_cells(30)
    assert keys == ("first", "second")
    assert np.array_equal(cells.obsm["first"], expected.obsm["X_good"])
    assert np.array_equal(cells.obsm["second"], expected.obsm["X_random"])
    digests = {key: cells.uns["omics"][key]["bundle_digest"] for key in keys}
    assert digests == {"first": "first", "second": "second"}


def test_a_single_file_keeps_its_key(files):
    cells, keys = join_embeddings(files[:1], "X_omics")
    assert keys == ("X_omics",)
    assert "first" not in cells.obsm


def test_files_of_other_cells_names_or_keys_are_refused(files, tmp_path):
    counted_cells(31).write_h5ad(tmp_path / "more.h5ad")
    with pytest.raises(
        InputDataError, match=r"more.h5ad is not of the same cells.*it has 31 cells"
    ):
        join_embeddings([files[0], tmp_path / "more.h5ad"], "X_omics")
    other = counted_cells(30)[::-1].copy()
    other.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(
        InputDataError, match="30 of 30 cells have another name, first row 0: 'c29'"
    ):
        join_embeddings([files[0], tmp_path / "other.h5ad"], "X_omics")
    with pytest.raises(UsageError, match="Two files are named 'first'"):
        join_embeddings([files[0], files[0]], "X_omics")
    counted_cells(30).write_h5ad(tmp_path / "X_good.h5ad")
    with pytest.raises(UsageError, match="has an embedding 'X_good' already"):
        join_embeddings([tmp_path / "X_good.h5ad", files[0]], "X_good")
    counted_cells(30).write_h5ad(tmp_path / "third.h5ad")
    with pytest.raises(UnknownNameError, match="no embedding 'X_omics'"):
        join_embeddings([files[0], tmp_path / "third.h5ad"], "X_omics")
