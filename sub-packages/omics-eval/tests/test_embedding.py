from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from omics.data import convert, open_store
from omics.data.errors import InputDataError, MissingPathError, OmicsError, UsageError
from omics.eval.embedding import embed, embed_file, embed_genes_file
from omics.models import embed_cells, embed_genes
from omics.models.inference import NO_COUNTS, NO_KNOWN_GENE

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
    assert np.flatnonzero(np.isnan(expected).any(axis=1)).tolist() == [4, 7]
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
    assert [each["model"] for each in cells.uns["omics"].values()] == ["bundle", "bundle"]
    assert (record["pooling"], record["layer"], record["counts"]) == ("pooled", "final", "X")
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
    with pytest.raises(
        InputDataError, match="not finite for 21 of 23 cells of a batch, first in row 0"
    ):
        embed(cells, bundle)


def test_unusable_arguments_are_named(cells, bundle, tmp_path):
    with pytest.raises(UsageError, match="batch_size is 0"):
        embed(cells, bundle, batch_size=0)
    with pytest.raises(UsageError, match="Device 'abacus' cannot be used"):
        embed(cells, bundle, device="abacus")
    with pytest.raises(MissingPathError, match=r"There is no file or folder .*absent\.h5ad"):
        embed(tmp_path / "absent.h5ad", bundle)
    with pytest.raises(OmicsError, match=r"There is no model .*absent: neither a folder"):
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


def test_file_to_file_gives_the_same_numbers_and_keeps_everything(cells, file, bundle, tmp_path):
    cells.uns["mine"] = {"a": 1}
    cells.obsm["X_other"] = np.arange(2 * NUM_CELLS, dtype=np.float64).reshape(-1, 2)
    cells.write_h5ad(file)
    expected = embed(cells.copy(), bundle, device="cpu")
    store = convert(file, tmp_path / "cells.store")
    for name, source in (("file", file), ("store", store.path)):
        record = embed_file(source, bundle, tmp_path / f"{name}.h5ad", batch_tokens=30)
        found = ad.read_h5ad(tmp_path / f"{name}.h5ad")
        assert np.array_equal(found.obsm["X_omics"], expected.obsm["X_omics"], equal_nan=True)
        assert found.obsm["X_omics"].dtype == np.float32
        assert found.obs["omics_reason"].tolist() == expected.obs["omics_reason"].tolist()
        assert (found.X != cells.X).nnz == 0
        assert (found.obs_names == cells.obs_names).all()
        assert found.obs["kind"].tolist() == ["a"] * NUM_CELLS
        saved = found.uns["omics"]["X_omics"]
        assert {key: saved[key] for key in ("bundle_digest", "num_without_embedding", "genes")} == {
            "bundle_digest": bundle.digest,
            "num_without_embedding": 2,
            "genes": record["genes"],
        }
        if name == "file":
            assert found.uns["mine"] == {"a": 1}
            assert np.array_equal(found.obsm["X_other"], cells.obsm["X_other"])
    # A second embedding stands beside the first.
    embed_file(tmp_path / "file.h5ad", bundle, tmp_path / "two.h5ad", key_added="X_2", layer=0)
    two = ad.read_h5ad(tmp_path / "two.h5ad")
    assert set(two.uns["omics"]) == {"X_omics", "X_2"}
    assert np.array_equal(two.obsm["X_omics"], expected.obsm["X_omics"], equal_nan=True)
    assert not np.array_equal(two.obsm["X_2"], two.obsm["X_omics"], equal_nan=True)


def test_a_taken_name_is_refused_before_any_work(cells, file, bundle, tmp_path):
    cells.obsm["X_omics"] = np.zeros((NUM_CELLS, 3))
    cells.write_h5ad(file)
    with pytest.raises(UsageError, match="obsm already holds 'X_omics'"):
        embed_file(file, bundle, tmp_path / "out.h5ad")
    assert not (tmp_path / "out.h5ad").exists()
    embed_file(file, bundle, tmp_path / "out.h5ad", overwrite=True)
    assert ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_omics"].shape == (NUM_CELLS, 16)


def test_counts_in_raw_are_embedded_and_a_file_without_folders_is_filled(file, cells, bundle):
    import h5py

    out = file.with_name("out.h5ad")
    logged = cells.copy()
    logged.raw = cells.copy()
    logged.X = logged.X.log1p()
    logged.write_h5ad(file)
    with h5py.File(file, "r+") as handle:
        del handle["obsm"], handle["uns"]
    embed_file(file, bundle, out)
    found = ad.read_h5ad(out)
    assert found.uns["omics"]["X_omics"]["counts"] == "raw.X"
    assert (found.X != logged.X).nnz == 0
    expected = embed(cells.copy(), bundle).obsm["X_omics"]
    assert np.array_equal(found.obsm["X_omics"], expected, equal_nan=True)


def test_pooling_and_layer_can_be_chosen(cells, file, bundle, tmp_path):
    options = {"pooling": "mean+token:0", "layer": -1}
    embed(cells, bundle, key_added="X_mean", **options)
    store = convert(file, tmp_path / "cells.store")
    expected = embed_cells(bundle, store, **options)
    assert np.array_equal(cells.obsm["X_mean"], expected, equal_nan=True)
    assert cells.obsm["X_mean"].shape == (NUM_CELLS, 32)
    record = cells.uns["omics"]["X_mean"]
    assert (record["pooling"], record["layer"]) == ("mean+token:0", "1")


def test_genes_get_a_table_with_one_row_each(file, bundle, tmp_path):
    store = convert(file, tmp_path / "cells.store")
    expected = embed_genes(bundle, store, layer=1)
    for name in ("genes.parquet", "genes.csv"):
        found, coverage = embed_genes_file(file, bundle, tmp_path / name, layer=1)
        assert "11 genes" in coverage
        read = pd.read_parquet if name.endswith("parquet") else pd.read_csv
        table = read(tmp_path / name)
        assert table["gene"].tolist() == found.genes.tolist() == expected.genes.tolist()
        assert table["num_cells"].tolist() == expected.num_cells.tolist()
        vectors = table[[f"e{i}" for i in range(16)]].to_numpy(np.float32)
        assert np.array_equal(vectors, expected.vectors)
    schema = pq.read_schema(tmp_path / "genes.parquet")
    assert schema.metadata[b"layer"] == b"1"
    with pytest.raises(UsageError, match=r"genes\.h5ad is no name of a table"):
        embed_genes_file(file, bundle, tmp_path / "genes.h5ad")


def test_reference_fault_2_cells_that_are_left_out_shift_no_other(cells, bundle):
    """The embedding was written by position there, although cells could be dropped before."""
    found = embed(cells.copy(), bundle).obsm["X_omics"]
    for row in (0, 3, 5, 6, 8, NUM_CELLS - 1):
        alone = embed(cells[[row]].copy(), bundle).obsm["X_omics"]
        assert np.array_equal(found[row], alone[0]), row
    seen = np.delete(np.arange(NUM_CELLS), [4, 7])
    only_seen = embed(cells[seen].copy(), bundle).obsm["X_omics"]
    assert np.array_equal(only_seen, found[seen])
