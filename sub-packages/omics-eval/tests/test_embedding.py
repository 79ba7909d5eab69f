from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data import convert, open_store
from omics.data.errors import InputDataError, MissingPathError, OmicsError, UsageError
from omics.eval.embedding import NO_COUNTS, NO_KNOWN_GENE, embed
from omics.models import embed_cells

NUM_CELLS, NUM_GENES = 23, 12


@pytest.fixture
def cells():
    """Cell 4 is empty, cell 7 expresses only a gene that the model does not know."""
    generator = np.random.default_rng(0)
    counts = generator.poisson(1.0, (NUM_CELLS, NUM_GENES)).astype(np.float32)
    counts[:, 0] += 1
    counts[4] = 0
    counts[7] = 0
    counts[7, NUM_GENES - 1] = 3
    obs = pd.DataFrame({"kind": ["a"] * NUM_CELLS}, index=[f"cell {i}" for i in range(NUM_CELLS)])
    var = pd.DataFrame(
        {"symbol": [f"S{i}" for i in range(NUM_GENES)]}, index=[f"G{i}" for i in range(NUM_GENES)]
    )
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


@pytest.fixture
def file(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_object_file_and_store_give_the_same_numbers(cells, file, bundle, tmp_path):
    store = convert(file, tmp_path / "cells.store")
    expected = embed_cells(bundle, store, batch_size=32)
    sources = {
        "object": cells.copy(),
        "file": file,
        "text": str(file),
        "folder": store.path,
        "store": store,
    }
    expected[[4, 7]] = np.nan
    for name, source in sources.items():
        found = embed(source, bundle, device="cpu")
        assert found.obsm["X_omics"].dtype == np.float32, name
        assert np.array_equal(found.obsm["X_omics"], expected, equal_nan=True), name
        assert list(found.obs_names) == list(cells.obs_names), name


def test_batches_do_not_change_a_bit(cells, bundle):
    first = embed(cells.copy(), bundle, batch_size=32, device="cpu").obsm["X_omics"]
    second = embed(cells.copy(), bundle, batch_size=5, device="cpu").obsm["X_omics"]
    assert np.array_equal(first, second, equal_nan=True)


def test_cells_that_cannot_be_embedded_are_kept_with_their_reason(cells, bundle):
    found = embed(cells, bundle)
    assert found is cells
    assert np.flatnonzero(np.isnan(found.obsm["X_omics"]).all(axis=1)).tolist() == [4, 7]
    assert not np.isnan(np.delete(found.obsm["X_omics"], [4, 7], axis=0)).any()
    reasons = found.obs["omics_reason"].astype(str).to_numpy()
    assert (reasons[4], reasons[7]) == (NO_COUNTS, NO_KNOWN_GENE)
    assert set(np.delete(reasons, [4, 7])) == {""}


def test_provenance_says_how_it_was_made(cells, bundle_folder, bundle, tmp_path):
    embed(cells, str(bundle_folder), key_added="X_first")
    embed(cells, bundle, key_added="X_second", batch_size=7)
    record = cells.uns["omics"]["X_second"]
    assert set(cells.uns["omics"]) == {"X_first", "X_second"}
    assert record["bundle_digest"] == bundle.digest != ""
    assert (record["batch_size"], record["counts"]) == (7, "X")
    assert (record["num_cells"], record["num_without_embedding"]) == (NUM_CELLS, 2)
    cells.write_h5ad(tmp_path / "out.h5ad")
    back = ad.read_h5ad(tmp_path / "out.h5ad")
    assert back.uns["omics"]["X_second"]["bundle_digest"] == bundle.digest
    assert np.array_equal(back.obsm["X_second"], cells.obsm["X_second"], equal_nan=True)
    assert back.obs["omics_reason"].tolist() == cells.obs["omics_reason"].tolist()


def test_an_embedding_is_replaced_only_when_asked(cells, file, bundle):
    embed(cells, bundle)
    with pytest.raises(UsageError, match=r"obsm already holds 'X_omics'. Name another key"):
        embed(cells, bundle)
    cells.obsm["X_omics"] = cells.obsm["X_omics"] * 0
    assert np.nansum(np.abs(embed(cells, bundle, overwrite=True).obsm["X_omics"])) > 0
    cells.write_h5ad(file)
    with pytest.raises(UsageError, match="obsm already holds"):
        embed(file, bundle)


def test_counts_elsewhere_are_used_and_the_object_keeps_its_x(cells, file, bundle):
    expected = embed(cells.copy(), bundle).obsm["X_omics"]
    logged = cells.copy()
    logged.raw = cells.copy()
    logged.X = logged.X.log1p()
    before = logged.X.copy()
    found = embed(logged, bundle)
    assert np.array_equal(found.obsm["X_omics"], expected, equal_nan=True)
    assert (before != found.X).nnz == 0
    assert found.uns["omics"]["X_omics"]["counts"] == "raw.X"
    logged = cells.copy()
    logged.raw = cells.copy()
    logged.X = before
    logged.write_h5ad(file)
    from_file = embed(file, bundle)
    assert np.array_equal(from_file.obsm["X_omics"], expected, equal_nan=True)
    assert from_file.uns["omics"]["X_omics"]["counts"] == "raw.X"
    assert (before != from_file.X).nnz == 0


def test_values_that_are_no_counts_are_refused(cells, bundle):
    cells.X = cells.X.log1p()
    with pytest.raises(InputDataError, match="none of X holds whole non-negative numbers"):
        embed(cells, bundle)


def test_foreign_genes_are_refused(cells, bundle):
    cells.var_names = [f"other{i}" for i in range(NUM_GENES)]
    cells.var["symbol"] = [f"none{i}" for i in range(NUM_GENES)]
    with pytest.raises(InputDataError, match="of the vocabulary's 11 genes"):
        embed(cells, bundle)


def test_a_model_that_gives_nonsense_is_refused(cells, bundle):
    next(bundle.model.parameters()).data.fill_(np.nan)
    with pytest.raises(InputDataError, match="not finite for 21 of 23 cells, first in row 0"):
        embed(cells, bundle)


def test_unusable_arguments_are_named(cells, bundle, tmp_path):
    with pytest.raises(UsageError, match="batch_size is 0"):
        embed(cells, bundle, batch_size=0)
    with pytest.raises(UsageError, match="Device 'abacus' cannot be used"):
        embed(cells, bundle, device="abacus")
    with pytest.raises(MissingPathError, match=r"There is no file or folder .*absent\.h5ad"):
        embed(tmp_path / "absent.h5ad", bundle)
    with pytest.raises(OmicsError, match="no bundle folder"):
        embed(cells, tmp_path / "absent")


def test_the_input_file_is_left_as_it_is(file, bundle):
    before = file.read_bytes()
    embed(file, bundle)
    assert file.read_bytes() == before


def test_no_cells_are_an_empty_embedding(cells, bundle):
    found = embed(cells[:0].copy(), bundle)
    assert found.obsm["X_omics"].shape == (0, 16)


def test_a_store_becomes_cells_with_its_counts(cells, file, bundle, tmp_path):
    convert(file, tmp_path / "cells.store")
    found = embed(open_store(tmp_path / "cells.store"), bundle)
    assert (found.X != cells.X).nnz == 0
    assert found.var["symbol"].tolist() == cells.var["symbol"].tolist()
