"""The packed layout, the rank view and reused buffers give what the plain store gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.errors import UnknownNameError, UsageError
from omics.data.storage.batch_buffers import BatchBuffers
from omics.data.storage.store import open_store
from omics.data.storage.store_format import rank_digest


def _counts(seed, num_cells=20, num_genes=600):
    rng = np.random.default_rng(seed)
    counts = np.where(rng.random((num_cells, num_genes)) < 0.02, rng.geometric(0.4, 600), 0)
    counts[rng.integers(0, num_cells, 5), rng.integers(0, num_genes, 5)] = [
        14,
        15,
        255,
        65535,
        2**31,
    ]
    return counts


@given(seed=st.integers(0, 10))
def test_packed_cells_equal_plain_ones(seed, tmp_path_factory, write_store):
    counts = _counts(seed)
    path = tmp_path_factory.mktemp("packed") / "s"
    store = write_store(path, counts, layout="packed")
    rows = np.random.default_rng(seed).integers(0, 20, 30)
    batch = store.take(rows)
    assert (batch.to_csr().toarray() == counts[rows]).all()
    assert batch.counts.dtype == store.count_dtype == np.uint32
    assert store.layout == "packed"
    assert (store.gene_sums() == counts.sum(axis=0)).all()
    store.verify()


def test_packed_counts_below_the_escape_stay_narrow(tmp_path, write_store):
    store = write_store(tmp_path / "s", np.array([[1, 0, 65534]]), layout="packed")
    assert store.take([0]).counts.dtype == np.uint16
    assert store.take([0]).counts.tolist() == [1, 65534]


def test_packed_store_of_typical_counts_takes_about_half(tmp_path, write_store):
    rng = np.random.default_rng(0)
    counts = np.where(rng.random((300, 2000)) < 0.1, rng.geometric(0.7, (300, 2000)), 0)
    plain = write_store(tmp_path / "plain", counts, block=300)
    packed = write_store(tmp_path / "packed", counts, layout="packed", block=300)
    sizes = {
        name: store._manifest.files[name].size
        for store, names in ((plain, ["genes.bin", "counts.bin"]), (packed, ["packed.bin"]))
        for name in names
    }
    assert sizes["genes.bin"] + sizes["counts.bin"] == 3 * plain.num_entries
    assert sizes["packed.bin"] < 1.6 * packed.num_entries


def test_ranked_genes_follow_count_by_median(tmp_path, write_store):
    counts = np.array([[4, 4, 1, 9], [0, 0, 0, 0], [1, 0, 1, 1]])
    medians = {"gene0": 2.0, "gene1": 1.0, "gene2": 0.25}
    store = write_store(tmp_path / "s", counts, rank_medians={**medians, "elsewhere": 3.0})
    indptr, genes = store.take_ranked([2, 0, 1])
    assert indptr.tolist() == [0, 3, 7, 7]
    assert genes.tolist() == [2, 0, 3, 1, 2, 0, 3]  # 4, 0.5, none; 4, 4, 2, none
    assert store.rank_digest == rank_digest(np.array([2.0, 1.0, 0.25, 0.0]))
    buffers = BatchBuffers()
    assert store.take_ranked([2, 0, 1], buffers=buffers)[1].tolist() == genes.tolist()


def test_a_store_without_rank_view_says_how_to_get_one(tmp_path, write_store):
    store = write_store(tmp_path / "s", np.eye(2))
    assert store.rank_digest is None
    with pytest.raises(
        UnknownNameError, match=r"no rank view\. Convert it with a table of medians"
    ):
        store.take_ranked([0])


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"layout": "pakced"}, "There is no layout 'pakced'. Did you mean 'packed'?"),
        ({"rank_medians": {"gene0": -1.0}}, "negative or not a number"),
        ({"rank_medians": {"gene0": np.nan}}, "negative or not a number"),
        ({"rank_medians": {"GENE0": 1.0}}, "a median for none of the genes"),
        ({"layout": "packed", "value_kind": "float"}, "for counts only"),
        ({"rank_medians": {"gene0": 1.0}, "value_kind": "float"}, "for counts only"),
    ],
)
def test_bad_layouts_and_medians_are_refused(options, found, tmp_path, write_store):
    with pytest.raises(UsageError, match=found.replace("?", r"\?")):
        write_store(tmp_path / "s", np.eye(2), **options)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("layout", ["plain", "packed"])
def test_reused_buffers_hold_one_batch_after_the_other(layout, tmp_path, write_store):
    counts = _counts(3)
    store = write_store(tmp_path / "s", counts, layout=layout)
    buffers = BatchBuffers()
    first = store.take(range(20), buffers=buffers)
    whole = first.to_csr().toarray()
    assert (whole == counts).all()
    second = store.take([5, 6], buffers=buffers)
    assert np.shares_memory(first.counts, second.counts)
    assert np.shares_memory(first.indptr, second.indptr)
    assert (second.to_csr().toarray() == counts[5:7]).all()
    third = store.take(np.arange(20).repeat(3), buffers=buffers)
    assert not np.shares_memory(second.counts, third.counts)  # Grown: the old batch stays whole.
    assert (second.to_csr().toarray() == counts[5:7]).all()
    assert (third.to_csr().toarray() == counts.repeat(3, axis=0)).all()


def test_blocks_hold_every_cell_once_within_their_bound(tmp_path, write_store):
    counts = _counts(1)
    store = write_store(tmp_path / "s", counts)
    blocks = list(store.blocks(max_entries=30))
    assert np.concatenate([block.rows for block in blocks]).tolist() == list(range(20))
    assert all(len(block.genes) <= 30 or len(block) == 1 for block in blocks)
    assert len(blocks) > 3


def test_medians_of_counts_and_floats_equal_numpy(tmp_path, write_store, monkeypatch):
    monkeypatch.setattr("omics.data.storage.gene_statistics.COLLECTED_ENTRIES", 40)
    monkeypatch.setattr("omics.data.storage.store_writer.REREAD_ITEMS", 17)
    rng = np.random.default_rng(4)
    counts = rng.integers(0, 90, (31, 12)) * (rng.random((31, 12)) < 0.7)
    counts[:, 3] = 0
    floats = counts.astype(np.float32) / 3
    for number, (values, options) in enumerate(
        [(counts, {}), (counts, {"layout": "packed"}), (floats, {"value_kind": "float"})]
    ):
        store = write_store(tmp_path / f"s{number}", values, **options)
        expected = [
            np.median(column[column != 0].astype(float)) if column.any() else 0.0
            for column in values.T
        ]
        assert store.gene_medians().tolist() == expected
        store.verify()


def test_opened_again_a_store_is_the_same(tmp_path, write_store):
    import pickle

    store = write_store(
        tmp_path / "s", _counts(2), layout="packed", obs=pd.DataFrame(index=range(20))
    )
    again = pickle.loads(pickle.dumps(store))
    assert again.take([3]).counts.tolist() == open_store(tmp_path / "s").take([3]).counts.tolist()
