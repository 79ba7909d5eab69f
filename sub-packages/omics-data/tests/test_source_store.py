"""A store read as a source gives the blocks, samples and tables that it holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data.errors import InputDataError, UnknownNameError
from omics.data.sources import source_store
from omics.data.sources.registry import open_source


@pytest.fixture
def store(write_store, random_counts, tmp_path):
    obs = pd.DataFrame({"donor": ["a", "b"] * 10}, index=[f"c{n}" for n in range(20)])
    return write_store(tmp_path / "s", random_counts(20, 15, seed=3), obs=obs)


def rebuilt(blocks, num_genes):
    parts = [sparse.csr_matrix((v, g, p), (len(p) - 1, num_genes)) for p, g, v in blocks]
    return sparse.vstack(parts).toarray()


@pytest.mark.parametrize("first_cell", [0, 7, 20])
def test_blocks_are_the_cells_from_any_one_on(store, monkeypatch, first_cell):
    monkeypatch.setattr(source_store, "BLOCK_ENTRIES", 30)
    expected = store.take(np.arange(20)).to_csr().toarray()
    with open_source(store.path) as source:
        assert source.format_name == "omics store"
        matrix = source.matrix("X")
        for storage, dtype in (("counts", np.uint32), ("float", np.float32)):
            blocks = list(matrix.blocks(storage, first_cell=first_cell))
            assert all(values.dtype == dtype for _, _, values in blocks)
            assert all(len(genes) <= 30 for _, genes, _ in blocks)
            if blocks:
                np.testing.assert_array_equal(rebuilt(blocks, 15), expected[first_cell:])
            else:
                assert first_cell == 20
        with pytest.raises(UnknownNameError, match="no matrix 'raw'"):
            source.matrix("raw")


def test_tables_stamp_and_fingerprint_are_those_of_the_store(store):
    with open_source(store.path) as source:
        pd.testing.assert_frame_equal(source.obs(), store.obs.to_pandas())
        assert source.var().index.tolist() == store.genes.ids.tolist()
        assert source.obs_columns == ["donor"]
        assert source.stamp() == store.digest
        assert source.fingerprint()["store_digest"] == store.digest
        assert source.table_bytes() > 0


def test_samples_are_whole_cells_within_the_budget(store):
    with open_source(store.path) as source:
        matrix = source.matrix("X")
        whole = matrix.sample(10**6)
        assert whole.complete
        assert len(whole.values) == store.num_entries
        some = matrix.sample(8 * 60)
        assert not some.complete
        assert 0 < len(some.values) <= 60
        assert some.indptr[-1] == len(some.values)
        assert matrix.sample(8) is None
        assert matrix.count_empty(10**6) == int((store.lengths == 0).sum())
        assert matrix.count_empty(8) is None


def test_a_store_of_fractions_is_no_source_of_counts(write_store, tmp_path):
    values = np.array([[1.0, 0.5], [2.0, 0.0]])
    store = write_store(tmp_path / "f", values, value_kind="float")
    with open_source(store.path) as source:
        with pytest.raises(InputDataError, match=r"value 0\.5 of cell 0 is no raw count"):
            list(source.matrix("X").blocks("counts"))
        assert rebuilt(source.matrix("X").blocks("float"), 2).tolist() == values.tolist()
