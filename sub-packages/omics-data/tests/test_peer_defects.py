"""The fourteen defects found in the nearest peer store, each tried on ours.

The numbers are those of the list in which they were found; see docs/guides/safety.md.
"""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data import Loader, convert, open_store, synthesize
from omics.data.errors import InputDataError, OmicsError, UsageError
from omics.data.storage.store import RowError
from omics.data.storage.store_collection import StoreCollection
from omics.data.storage.store_writer import StoreWriter


def counts_of(store: Any) -> Any:
    return store.take(np.arange(len(store))).to_csr().toarray()


def test_1_other_number_types_after_reopening_read_the_same_values(tmp_path) -> None:
    """A store has no cast in place; another type is another conversion, and says so itself."""
    values = np.array([[8, 3, 0], [3, 3, 6]])
    for dtype in ("float32", "float64", "int32"):
        path = tmp_path / f"{dtype}.h5ad"
        anndata.AnnData(sparse.csr_matrix(values.astype(dtype))).write_h5ad(path)
        store = convert(path, tmp_path / "s", overwrite=(tmp_path / "s").exists())
        for _ in range(2):
            store = open_store(store.path)
            assert counts_of(store).tolist() == values.tolist()
            assert store.num_entries == 5
            store.verify()
    floats = convert(path, tmp_path / "f", location="X", allow_non_counts=True)
    assert counts_of(open_store(floats.path)).tolist() == values.tolist()
    assert open_store(tmp_path / "s").take([0]).counts.dtype == np.uint8


def test_2_reopened_stores_are_joined_whatever_their_widths(tmp_path, write_store) -> None:
    """Row offsets, gene positions and counts of different sizes in the parts."""
    small = write_store(tmp_path / "a", np.ones((50, 10), int))
    large = write_store(tmp_path / "b", np.full((120, 300), 70_000))
    wide = write_store(tmp_path / "c", np.ones((1, 70_000), int))
    stores = [open_store(each.path) for each in (small, large, wide)]
    joined = StoreCollection(stores)
    assert len(joined) == 171
    assert joined.num_entries == sum(each.num_entries for each in stores)
    first = joined.take([0, 49, 50, 169, 170])
    assert first.lengths.tolist() == [10, 10, 300, 300, 70_000]
    assert first.counts[:20].tolist() == [1] * 20
    assert set(first.counts[20:620].tolist()) == {70_000}
    joined.save(tmp_path / "all.json")
    from omics.data.storage.store_collection import open_collection

    again = open_collection(tmp_path / "all.json")
    assert (again.take([50]).counts == 70_000).all()


def test_3_raw_with_more_genes_brings_the_names_of_its_own(tmp_path) -> None:
    whole = synthesize(40, 300, seed=1, mean_genes=60)
    chosen = whole[:, :100].copy()
    chosen.X = chosen.X.log1p()
    chosen.raw = whole
    chosen.write_h5ad(tmp_path / "a.h5ad")
    store = convert(tmp_path / "a.h5ad", tmp_path / "s")
    assert store.provenance["location"] == "raw.X"
    assert store.shape == (40, 300)
    assert store.genes.ids.tolist() == whole.var_names.tolist()
    assert (counts_of(store) == whole.X.toarray()).all()
    assert store.take([5]).genes.max() < len(store.genes)


def test_4_a_failed_conversion_leaves_nothing_and_the_retry_works(tmp_path) -> None:
    adata = synthesize(30, 20, seed=1)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    adata.write_h5ad(tmp_path / "a.h5ad")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputDataError):
        convert(tmp_path / "a.h5ad", tmp_path / "s", location="X")
    with pytest.raises(OmicsError):
        convert(tmp_path / "a.h5ad", tmp_path / "s", location="layers/none")
    assert sorted(tmp_path.iterdir()) == before
    store = convert(tmp_path / "a.h5ad", tmp_path / "s", location="layers/counts")
    assert store.shape == (30, 20)


@pytest.mark.parametrize("largest", [200, 300, 60_000, 70_000])
@pytest.mark.parametrize("num_genes", [10, 300, 70_000])
def test_5_the_types_of_counts_and_genes_do_not_touch_each_other(
    largest: int, num_genes: int, tmp_path, write_store
) -> None:
    """Also in torch, which lacks many operations on unsigned integers of 16 and 32 bits."""
    matrix = sparse.lil_matrix((4, num_genes), dtype=np.int64)
    matrix[0, 0], matrix[1, num_genes - 1], matrix[3, 1] = 1, largest, 2
    store = write_store(tmp_path / "s", matrix.tocsr())
    batch = store.take([0, 1, 2, 3])
    assert batch.genes.dtype == (np.uint16 if num_genes <= 65_536 else np.uint32)
    # One type for the whole store, from its largest count, not from this batch or its genes.
    assert batch.counts.dtype == store.take([0]).counts.dtype == store.count_dtype
    dense = batch.to_csr().toarray()
    assert dense[1, num_genes - 1] == largest
    assert dense.sum() == largest + 3
    torch = pytest.importorskip("torch")
    built = torch.zeros(4, num_genes)
    cells = torch.as_tensor(batch.cell_of_entry())
    genes = torch.as_tensor(batch.genes.astype(np.int64))
    built.index_put_((cells, genes), torch.as_tensor(batch.counts.astype(np.float32)))
    assert (built.numpy() == dense).all()


def test_6_every_batch_is_as_wide_as_the_gene_table(tmp_path, write_store) -> None:
    store = write_store(tmp_path / "s", np.eye(10, 25, dtype=int))
    widths = {batch.to_csr().shape[1] for batch in Loader(store, batch_size=3)}
    assert widths == {25}
    assert store.take([0]).num_genes == store.take([]).num_genes == 25


def test_7_a_pickle_is_a_path(tmp_path, write_store) -> None:
    small = write_store(tmp_path / "a", np.ones((5, 20), int))
    large = write_store(tmp_path / "b", np.ones((5000, 200), int), block=5000)
    sizes = [len(pickle.dumps(each)) for each in (small, large)]
    assert max(sizes) < 1000
    assert abs(sizes[0] - sizes[1]) < 50
    assert len(pickle.loads(pickle.dumps(large))) == 5000
    both = StoreCollection([small, large])
    assert len(pickle.dumps(both)) < 5000


def test_8_neighbours_are_left_out_as_a_whole_and_the_rest_stays(tmp_path) -> None:
    """A store holds cells, not the graph between them: obsp, obsm and uns stay in the file."""
    adata = synthesize(20, 30, seed=1)
    adata.obsp["distances"] = sparse.eye(20, format="csr")
    adata.obsm["X_pca"] = np.ones((20, 3))
    adata.uns["neighbors"] = {"params": {"k": 3}}
    adata.write_h5ad(tmp_path / "a.h5ad")
    other = synthesize(20, 30, seed=1)
    other.obs_names = [f"other {name}" for name in other.obs_names]
    other.write_h5ad(tmp_path / "b.h5ad")
    stores = [convert(tmp_path / f"{name}.h5ad", tmp_path / name) for name in "ab"]
    joined = StoreCollection(stores)
    for each, length in ((stores[0], 20), (joined, 40)):
        back = each.to_anndata()
        assert back.shape == (length, 30)
        assert list(back.obsp) == list(back.obsm) == list(back.uns) == []
    assert (joined.take([39]).to_csr() != adata.X[19]).nnz == 0


def test_10_stores_of_other_writers_are_joined(tmp_path, write_store, monkeypatch) -> None:
    """What matters is the version of the format, not that of the package."""
    first = write_store(tmp_path / "a", np.eye(3, dtype=int))
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "99.1")
    second = write_store(tmp_path / "b", np.eye(3, dtype=int) * 2)
    assert first.written_by != second.written_by == "omics-data 99.1"
    assert counts_of(StoreCollection([first, second])).sum() == 9


def test_11_the_cost_of_a_row_does_not_grow_with_the_number_of_stores(
    tmp_path, write_store
) -> None:
    store = write_store(tmp_path / "s", np.ones((20, 8), int), block=20)

    def seconds(members: int) -> float:
        joined = StoreCollection([store] * members)
        rows = np.random.default_rng(0).integers(0, 20, 64) + (len(joined) - 20)
        joined.take(rows)
        best = float("inf")
        for _ in range(7):
            started = time.perf_counter()
            joined.take(rows)
            best = min(best, time.perf_counter() - started)
        return best

    few, many = seconds(2), seconds(400)
    assert many < 10 * few + 2e-3


@pytest.mark.parametrize("rows", [[-1], [0, -3], [20]])
def test_12_rows_outside_are_an_error_never_an_empty_answer(
    rows: list[int], tmp_path, write_store
) -> None:
    store = write_store(tmp_path / "s", np.ones((20, 8), int))
    for each in (store, StoreCollection([store])):
        with pytest.raises(RowError, match=r"Row (-1|-3|20) is outside"):
            each.take(rows)
        with pytest.raises(TypeError):
            each[0]  # type: ignore[index]


def test_12_lists_arrays_and_ranges_are_taken_and_slices_of_batches(tmp_path, write_store) -> None:
    matrix = np.arange(1, 161).reshape(20, 8)
    store = write_store(tmp_path / "s", matrix)
    for rows in ([1, 2], (2, 1), range(0, 20, 5), np.array([3, 3], np.uint8), []):
        expected = matrix[np.asarray(list(rows), int)]
        assert (store.take(rows).to_csr().toarray() == expected).all()
    batch = store.take(range(20))
    assert (batch[3:9].to_csr().toarray() == matrix[3:9]).all()
    assert (batch[-2:].to_csr().toarray() == matrix[-2:]).all()
    for wrong in (np.array([True] * 20), [0.5], "12", [[1]]):
        with pytest.raises((UsageError, OmicsError)):
            store.take(wrong)


def test_13_the_length_never_raises(tmp_path, write_store) -> None:
    """Lengths are checked when a store is opened; len() only says what was found."""
    store = write_store(tmp_path / "s", np.ones((4, 3), int))
    (tmp_path / "s" / "gen-1" / "offsets.bin").unlink()
    assert len(store) == 4
    assert bool(store)
    assert len(StoreCollection([store, store])) == 8


def test_14_nothing_is_visible_before_everything_is_durable(tmp_path, monkeypatch) -> None:
    """Data, then manifest, then the name of the generation, then CURRENT; each flushed."""
    events: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def flushed(descriptor: int) -> None:
        events.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def moved(kind: Any) -> Any:
        def move(source: Any, target: Any, **options: Any) -> None:
            events.append(("move", Path(target).name))
            kind(source, target, **options)

        return move

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", moved(rename))
    monkeypatch.setattr(os, "replace", moved(replace))
    with StoreWriter(tmp_path / "s", genes_frame=pd.DataFrame(index=["g"])) as writer:
        writer.append(np.array([0, 1]), np.array([0]), np.array([3]))
        writer.finish(pd.DataFrame(index=["c"]))
    monkeypatch.undo()
    generation, current = events.index(("move", "gen-1")), events.index(("move", "CURRENT"))
    files = {each.name for each in (tmp_path / "s" / "gen-1").iterdir()}
    assert generation < current
    assert files <= {name for kind, name in events[:generation] if kind == "flush"}
    # The names themselves: the store folder after each of the two moves.
    assert ("flush", "s") in events[generation:current]
    assert ("flush", "s") in events[current:]


def test_9_files_of_one_name_in_two_folders_stay_apart(tmp_path) -> None:
    for number, folder in enumerate("xy"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        adata = synthesize(10 + number, 20, seed=number)
        adata.write_h5ad(tmp_path / "in" / folder / "a.h5ad")
    paths = [tmp_path / "in" / folder / "a.h5ad" for folder in "xy"]
    store = convert(paths, tmp_path / "s")
    expected = np.vstack([anndata.read_h5ad(path).X.toarray() for path in paths])
    assert (counts_of(store) == expected).all()
    names = store.obs["source"]
    assert len(set(names[:10])) == len(set(names[10:])) == 1
    assert names[0] != names[10]
