"""Writing a store: blocks are checked, nothing half-written is ever visible."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from omics.data.atomic_files import writer_lock
from omics.data.errors import ExistingPathError, InputDataError, StoreLockedError, UsageError
from omics.data.storage import store_writer
from omics.data.storage.store import open_store
from omics.data.storage.store_writer import StoreWriter

VAR = pd.DataFrame(index=["g0", "g1", "g2"])
OBS = pd.DataFrame(index=["c0", "c1"])


def _write_two(path, **options):
    with StoreWriter(path, genes_frame=VAR, **options) as writer:
        writer.append(np.array([0, 2, 3]), np.array([0, 2, 1]), np.array([5, 1, 9]))
        writer.finish(OBS)


def test_blocks_of_any_size_make_the_same_store(tmp_path, write_store, random_counts):
    counts = random_counts(17, 9)
    for block in (1, 4, 17, 100):
        store = write_store(tmp_path / str(block), counts, block=block)
        assert (store.take(range(17)).to_csr().toarray() == counts).all()
        assert store.row_sums().tolist() == counts.sum(axis=1).tolist()
        assert store.gene_sums().tolist() == counts.sum(axis=0).tolist()
        assert store.gene_detection().tolist() == (counts > 0).sum(axis=0).tolist()
        store.verify()


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "int16", "uint64", "int64", "float16", "float32", "float64", ">f4"]
)
def test_counts_of_any_number_type_are_taken(dtype, tmp_path):
    values = np.array([1, 1, 1]).astype(dtype)
    with StoreWriter(tmp_path / "s", genes_frame=VAR) as writer:
        writer.append(np.array([0, 2, 3], np.int32), np.array([0, 2, 1], np.uint16), values)
        writer.finish(OBS)
    batch = open_store(tmp_path / "s").take([0, 1])
    assert batch.counts.tolist() == [1, 1, 1]
    assert batch.counts.dtype == np.uint8


@pytest.mark.parametrize(
    ("indptr", "genes", "values", "found"),
    [
        ([0, 2, 1], [0, 1], [1, 1], "indptr runs from 0 to 1 for 2 genes and 2 values"),
        ([0, 2, 1, 2], [0, 1], [1, 1], "indptr decreases"),
        ([1, 2], [0, 1], [1, 1], "indptr runs from 1"),
        ([0, 2], [0, 1], [1], "2 genes and 1 values"),
        ([], [], [], "not one-dimensional"),
        ([[0, 1]], [0], [1], "not one-dimensional"),
        ([0.0, 1.0], [0], [1], "both must be integers"),
        ([0, 1], [0.5], [1], "both must be integers"),
        ([0, 1, 2], [0, 3], [1, 1], "Gene position 3 is outside 0..2, in cell 3"),
        ([0, 1, 2], [0, -1], [1, 1], "Gene position -1 is outside 0..2, in cell 3"),
        ([0, 0, 2], [1, 1], [1, 1], "Gene position 1 follows 1, in cell 3"),
        ([0, 3], [0, 2, 1], [1, 1, 1], "Gene position 1 follows 2, in cell 2"),
        ([0, 1, 1, 2], [0, 0], [1, 0], "0 is not a count from 1 to 4294967295, in cell 4"),
        ([0, 1], [0], [-4], "-4 is not a count"),
        ([0, 1], [0], [2**32], "4294967296 is not a count"),
        ([0, 2], [0, 1], [1, 1.5], "1.5 is not a count"),
        ([0, 1], [0], [np.nan], "nan is not a count"),
        ([0, 1], [0], ["x"], "are not counts"),
    ],
)
def test_bad_blocks_are_refused_naming_the_cell(indptr, genes, values, found, tmp_path):
    with StoreWriter(tmp_path / "s", genes_frame=VAR) as writer:
        writer.append(np.array([0, 1, 2]), np.array([0, 0]), np.array([1, 1]))
        with pytest.raises(InputDataError) as caught:
            writer.append(np.array(indptr), np.array(genes), np.array(values))
        assert found in str(caught.value)
        assert "mend the source" in str(caught.value)
        with pytest.raises(UsageError, match="This writer is closed"):
            writer.finish(OBS)
        with pytest.raises(UsageError, match="This writer is closed"):
            writer.append(np.array([0]), np.array([], int), np.array([]))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 1e39])
def test_bad_floats_are_refused(bad, tmp_path):
    refused = pytest.raises(InputDataError, match="not a finite float32 other than zero, in cell 0")
    with StoreWriter(tmp_path / "s", genes_frame=VAR, value_kind="float") as writer, refused:
        writer.append(np.array([0, 2]), np.array([0, 1]), np.array([0.5, bad]))


def test_writer_outside_its_with_block_is_closed(tmp_path):
    writer = StoreWriter(tmp_path / "s", genes_frame=VAR)
    with pytest.raises(UsageError, match="inside its `with` block"):
        writer.append(np.array([0]), np.array([], int), np.array([]))
    with pytest.raises(UsageError, match="inside its `with` block"):
        writer.finish(OBS)


def test_obs_of_another_length_is_refused_and_can_be_mended(tmp_path):
    with StoreWriter(tmp_path / "s", genes_frame=VAR) as writer:
        writer.append(np.array([0, 2, 3]), np.array([0, 2, 1]), np.array([5, 1, 9]))
        with pytest.raises(InputDataError, match="obs has 3 rows for 2 cells"):
            writer.finish(pd.DataFrame(index=["a", "b", "c"]))
        writer.finish(OBS)
        with pytest.raises(UsageError, match="This writer is closed"):
            writer.finish(OBS)
    assert len(open_store(tmp_path / "s")) == 2


def test_leaving_without_finish_removes_everything(tmp_path):
    def stop_half_way():
        with StoreWriter(tmp_path / "deep" / "s", genes_frame=VAR) as writer:
            writer.append(np.array([0, 1]), np.array([0]), np.array([1]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert list((tmp_path / "deep").iterdir()) == []


def test_repeated_gene_ids_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputDataError, match="more than once"):
        StoreWriter(tmp_path / "s", genes_frame=pd.DataFrame(index=["g", "g"]))
    assert list(tmp_path.iterdir()) == []


def test_bad_var_leaves_nothing(tmp_path):
    bad = pd.DataFrame({"a": [[1], [2]]}, index=["g0", "g1"])
    with pytest.raises(InputDataError, match="'a' of var"):
        StoreWriter(tmp_path / "s", genes_frame=bad).__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"value_kind": "ints"}, "value_kind is 'ints'"),
        ({"provenance": {"a": {1}}}, "plain JSON"),
        ({"provenance": {"a": float("nan")}}, "plain JSON"),
    ],
)
def test_bad_options_are_refused(options, found, tmp_path):
    with pytest.raises(UsageError, match=found):
        StoreWriter(tmp_path / "s", genes_frame=VAR, **options)


def test_existing_store_is_kept_unless_overwritten(tmp_path):
    _write_two(tmp_path / "s")
    with pytest.raises(ExistingPathError, match="holds a store already"):
        _write_two(tmp_path / "s")
    assert open_store(tmp_path / "s").generation == 1


def test_overwriting_makes_a_new_generation_and_removes_the_old(tmp_path, write_store):
    _write_two(tmp_path / "s")
    store = write_store(tmp_path / "s", [[0, 7], [1, 0], [0, 0]], overwrite=True)
    assert store.generation == 2
    assert store.shape == (3, 2)
    assert store.take([0]).counts.tolist() == [7]
    names = sorted(each.name for each in (tmp_path / "s").iterdir())
    assert names == [".lock", "CURRENT", "gen-2"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_and_files_that_are_no_stores_are_never_touched(overwrite, tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "CURRENT").write_bytes(b"MANIFEST-000001\n")
    (tmp_path / "home" / "000003.log").write_bytes(b"1")
    for name, found in (("file", "not a folder"), ("home", "is not a store")):
        with pytest.raises(ExistingPathError, match=found):
            _write_two(tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "file").read_bytes() == b"1"
    assert len(list((tmp_path / "home").iterdir())) == 2


def test_store_can_be_written_into_an_empty_folder(tmp_path):
    _write_two(tmp_path)
    assert len(open_store(tmp_path)) == 2


def test_damaged_store_can_be_overwritten(tmp_path):
    _write_two(tmp_path / "s")
    (tmp_path / "s" / "CURRENT").unlink()
    with pytest.raises(ExistingPathError):
        _write_two(tmp_path / "s")
    _write_two(tmp_path / "s", overwrite=True)
    store = open_store(tmp_path / "s")
    assert store.generation == 2
    store.verify()


def test_leftovers_of_a_killed_writer_are_reclaimed(tmp_path):
    leftover = tmp_path / "s" / ".gen-1.tmp"
    leftover.mkdir(parents=True)
    (leftover / "counts.bin").write_bytes(b"1")
    (tmp_path / "s" / ".lock").write_bytes(b"1 host\n")
    _write_two(tmp_path / "s")
    names = sorted(each.name for each in (tmp_path / "s").iterdir())
    assert names == [".lock", "CURRENT", "gen-1"]


def test_second_writer_is_refused_and_harms_nothing(tmp_path):
    (tmp_path / "s").mkdir()
    refused = pytest.raises(StoreLockedError, match="is being written by process")
    with writer_lock(tmp_path / "s"), refused:
        _write_two(tmp_path / "s")
    _write_two(tmp_path / "s")


@pytest.mark.parametrize(("largest", "dtype"), [(65535, np.uint16), (65536, np.uint32)])
def test_matrix_of_large_counts_is_stored_in_wider_integers(
    largest, dtype, tmp_path, write_store, monkeypatch
):
    monkeypatch.setattr(store_writer, "REREAD_ITEMS", 7)
    counts = np.arange(200, 260).reshape(6, 10)
    counts[3, 4] = largest
    store = write_store(tmp_path / "s", counts)
    assert store.count_dtype == dtype
    assert (store.take(range(6)).to_csr().toarray() == counts).all()
    names = {each.name for each in (tmp_path / "s" / "gen-1").iterdir()}
    assert not any(name.startswith("escape") or name.endswith(".wide") for name in names)
    store.verify()


def test_few_large_counts_stay_in_the_escape_table(tmp_path, write_store):
    counts = np.ones((10, 10), np.int64)
    counts[4, 5], counts[9, 9] = 255, 2**32 - 1
    store = write_store(tmp_path / "s", counts)
    assert store.count_dtype == np.uint32
    assert (tmp_path / "s" / "gen-1" / "counts.bin").stat().st_size == 100
    assert (tmp_path / "s" / "gen-1" / "escape_counts.bin").stat().st_size == 8
    assert (store.take(range(10)).to_csr().toarray() == counts).all()


CRASHING = """
import os, sys
import numpy as np, pandas as pd
from omics.data.storage.store import open_store
from omics.data.storage.store_writer import StoreWriter

def write(path, number, cells):
    var = pd.DataFrame(index=[f"g{i}" for i in range(3)])
    with StoreWriter(path, genes_frame=var, overwrite=True) as writer:
        indptr = np.arange(cells + 1)
        writer.append(indptr, np.zeros(cells, int), np.full(cells, number))
        writer.finish(pd.DataFrame(index=[str(i) for i in range(cells)]))

def crash_at(step):
    done = 0
    def counted(operation):
        def run(*arguments, **options):
            nonlocal done
            done += 1
            if done == step:
                os._exit(9)
            return operation(*arguments, **options)
        return run
    os.fsync = lambda descriptor: None  # Slow, and a killed process loses no writes.
    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))

path = sys.argv[1]
write(path, 1, 4)
seen = []
for step in range(1, 1000):
    child = os.fork()
    if child == 0:
        crash_at(step)
        write(path, step + 1, step + 4)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    store = open_store(path)
    store.verify()
    cells = len(store)
    value = set(store.take(range(cells)).counts.tolist())
    assert value == {cells - 3}, (step, cells, value)
    seen.append(cells == step + 4)
    if os.waitstatus_to_exitcode(status) == 0:
        break
    assert os.waitstatus_to_exitcode(status) == 9
names = sorted(os.listdir(path))
assert names == [".lock", "CURRENT", store._folder.name], names
print(len(seen), seen.index(True), seen.count(False))
"""


def test_killed_at_every_step_leaves_the_old_data_or_the_new(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, str(tmp_path / "s")],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    steps, first_new, old = map(int, done.stdout.split())
    assert steps > 20  # Operations of one write: fsyncs, renames, removals.
    assert first_new == old  # Once CURRENT is swapped, every later crash leaves the new data.
    assert 0 < first_new < steps - 1


def test_full_disk_is_an_error_and_leaves_the_old_data(tmp_path, monkeypatch):
    _write_two(tmp_path / "s")

    def full(self, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_writer.ChecksummedFile, "write", full)
    with pytest.raises(OSError, match="No space left"):
        _write_two(tmp_path / "s", overwrite=True)
    monkeypatch.undo()
    open_store(tmp_path / "s").verify()
    names = sorted(each.name for each in (tmp_path / "s").iterdir())
    assert names == [".lock", "CURRENT", "gen-1"]


def test_memory_of_appending_does_not_grow_with_the_store(tmp_path):
    import tracemalloc

    part = csr_matrix(np.ones((200, 50), np.float32))
    var = pd.DataFrame(index=[f"g{i}" for i in range(50)])
    with StoreWriter(tmp_path / "s", genes_frame=var) as writer:
        writer.append(part.indptr, part.indices, part.data)
        tracemalloc.start()
        writer.append(part.indptr, part.indices, part.data)
        _, one = tracemalloc.get_traced_memory()
        for _ in range(100):
            writer.append(part.indptr, part.indices, part.data)
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        writer.finish(pd.DataFrame(index=[str(i) for i in range(writer.num_cells)]))
    assert peak < 1.5 * one + 50_000
    assert now < 50_000
