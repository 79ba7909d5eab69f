"""Doublet scores are scanpy's, batch by batch, within a stated amount of memory."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy

from omics.data.errors import InputDataError, ResourceError, UsageError
from omics.data.quality import score_doublets
from omics.data.quality.doublets import estimate_bytes
from omics.data.quality.thresholds import Batches


def all_together(store):
    return Batches(column=None, names=("all",), codes=np.zeros(len(store), np.int64))


def test_scores_equal_scanpys_and_unscored_cells_are_not_called(faulty_store):
    found = score_doublets(faulty_store, all_together(faulty_store), seed=3)
    memory = faulty_store.to_anndata()
    memory.X = memory.X.astype(np.float32)
    scanpy.pp.scrublet(memory, random_state=3, verbose=False)
    np.testing.assert_array_equal(found.scores, memory.obs["doublet_score"].to_numpy(float))
    assert np.isnan(found.scores[0])  # The empty cell.
    assert not found.called[0]
    (record,) = found.batches
    assert record["batch"] is None
    assert record["called"] == found.called.sum()
    assert sum(record["observed"]) == np.isfinite(found.scores).sum()
    assert len(record["simulated"]) == 50
    if record["threshold"] is not None:
        assert (found.scores[found.called] > record["threshold"]).all()


def test_a_batch_does_not_depend_on_the_others_and_small_ones_have_no_score(faulty_store):
    codes = np.repeat([0, 1, 2], [140, 150, 10])
    names = ("a", "b", "c")
    both = score_doublets(faulty_store, Batches(column="x", names=names, codes=codes))
    other = np.where(codes == 2, 1, codes)
    again = score_doublets(faulty_store, Batches(column="x", names=names[:2], codes=other))
    np.testing.assert_array_equal(both.scores[:140], again.scores[:140])
    assert np.isnan(both.scores[290:]).all()
    assert [each["batch"] for each in both.batches] == ["a", "b"]
    assert "1 batch(es) have fewer than 50 cells: too few for doublet scores" in both.remarks


def test_too_large_a_batch_is_refused_before_it_is_read(faulty_store):
    with pytest.raises(ResourceError) as caught:
        score_doublets(faulty_store, all_together(faulty_store), max_memory_gb=0.001)
    message = str(caught.value)
    assert "The cells (300 cells) would take about" in message
    assert "--batch" in message
    assert "--doublet-memory" in message
    batches = Batches(column="lane", names=("one",), codes=np.zeros(300, np.int64))
    with pytest.raises(ResourceError, match=r"Batch 'one' of lane .* smaller batches"):
        score_doublets(faulty_store, batches, max_memory_gb=0.001)
    assert estimate_bytes(10_000, 20_000_000, 20_000) > 80 * 20_000_000


def test_cells_that_cannot_be_told_apart_and_other_bad_input(tmp_path, write_store, faulty_store):
    alike = write_store(tmp_path / "alike", np.ones((60, 40), int))
    with pytest.raises(InputDataError, match=r"cannot score batch 'all'.*60 cells"):
        score_doublets(alike, all_together(alike))
    floats = write_store(tmp_path / "f", np.full((60, 3), 0.5), value_kind="float")
    with pytest.raises(InputDataError, match="holds no raw counts"):
        score_doublets(floats, all_together(floats))
    with pytest.raises(UsageError, match=r"below 2\*\*32"):
        score_doublets(faulty_store, all_together(faulty_store), seed=2**32)
