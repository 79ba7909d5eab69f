"""Reading a store: what was written comes back, in any order, and nothing else does."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from omics.data.errors import (
    CorruptStoreError,
    InputDataError,
    MissingPathError,
    StoreVersionError,
    UnknownNameError,
    UsageError,
)
from omics.data.storage.store import CellStore, RowError, open_store

EDGE_COUNTS = [1, 2, 254, 255, 256, 65535, 65536, 2**32 - 1]


@st.composite
def matrices(draw):
    """Small matrices with empty rows and columns and all-escape rows."""
    num_cells, num_genes = draw(st.integers(0, 7)), draw(st.integers(0, 6))
    value = st.one_of(st.just(0), st.sampled_from(EDGE_COUNTS))
    common = st.one_of(st.just(0), st.integers(1, 3))
    rows = [
        draw(st.lists(draw(st.sampled_from([value, common, st.just(0)])), min_size=num_genes,
                      max_size=num_genes))
        for _ in range(num_cells)
    ]  # fmt: skip
    return np.array(rows, np.int64).reshape(num_cells, num_genes)


@settings(max_examples=60)
@given(
    matrix=matrices(),
    block=st.integers(1, 4),
    verify=st.sampled_from(["first", "always", "off"]),
    data=st.data(),
)
def test_any_matrix_comes_back(tmp_path_factory, write_store, *, matrix, block, verify, data):
    path = tmp_path_factory.mktemp("stores") / "s"
    written = write_store(path, matrix, block=block)
    store = open_store(path, verify=verify)
    num_cells = len(matrix)
    assert store.shape == matrix.shape
    assert store.lengths.tolist() == (matrix > 0).sum(axis=1).tolist()
    assert store.row_sums().tolist() == matrix.sum(axis=1).tolist()
    assert store.gene_sums().tolist() == matrix.sum(axis=0).tolist()
    assert store.gene_detection().tolist() == (matrix > 0).sum(axis=0).tolist()
    rows = data.draw(st.lists(st.integers(0, num_cells - 1), max_size=9)) if num_cells else []
    batch = store.take(rows)
    assert batch.rows.tolist() == rows
    assert batch.counts.dtype == store.count_dtype
    assert (batch.to_csr().toarray() == matrix[rows]).all()
    for begin, end in zip(batch.indptr[:-1], batch.indptr[1:], strict=True):
        assert (np.diff(batch.genes[begin:end].astype(np.int64)) > 0).all()
    store.verify()
    assert written.digest == store.digest


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_empty_stores_work(shape, tmp_path, write_store):
    store = write_store(tmp_path / "s", np.zeros(shape, int))
    assert store.shape == shape
    assert len(store) == shape[0]
    assert len(store.genes) == shape[1]
    assert store.take(range(shape[0])).counts.tolist() == []
    assert len(store.obs.to_pandas()) == shape[0]
    assert store.to_anndata().shape == shape
    store.verify()


def test_type_of_counts_is_that_of_the_store_not_of_the_batch(tmp_path, write_store):
    small = write_store(tmp_path / "small", np.full((30, 2), 254))
    assert small.take([0]).counts.dtype == np.uint8
    counts = np.ones((30, 2), int)
    counts[0, 0] = 300
    large = write_store(tmp_path / "large", counts)
    assert large.take([0]).counts.dtype == large.take([1]).counts.dtype == np.uint32
    assert large.take([]).counts.dtype == np.uint32
    assert large.take([]).genes.dtype == np.uint16


def test_more_than_65536_genes_take_32_bit_positions(tmp_path, write_store):
    matrix = csr_matrix(([5, 6], ([0, 1], [70_000, 3])), shape=(2, 70_001))
    store = write_store(tmp_path / "s", matrix)
    batch = store.take([1, 0])
    assert batch.genes.dtype == np.uint32
    assert batch.genes.tolist() == [3, 70_000]
    store.verify()


def test_cells_spanning_many_chunks_come_back(tmp_path, write_store, monkeypatch, random_counts):
    monkeypatch.setattr("omics.data.storage.store_writer.CHUNK_BYTES", 16)
    counts = random_counts(40, 60, density=0.7)
    store = write_store(tmp_path / "s", counts)
    rows = np.random.default_rng(0).permutation(40)
    for part in np.array_split(rows, 9):
        assert (store.take(part).to_csr().toarray() == counts[part]).all()
    assert store.verify().num_chunks > 500


def test_floats_are_kept_as_float32(tmp_path, write_store):
    values = np.array([[0.5, 0, -1.25], [0, 0, 0], [1e-30, 3e38, 2]], np.float32)
    store = write_store(tmp_path / "s", values, value_kind="float")
    assert store.value_kind == "float"
    batch = store.take([2, 0])
    assert batch.counts.dtype == np.float32
    assert (batch.to_csr().toarray() == values[[2, 0]]).all()
    assert store.row_sums().dtype == np.float64
    np.testing.assert_allclose(store.gene_sums(), values.astype(np.float64).sum(axis=0))
    assert store.gene_detection().tolist() == [2, 1, 2]
    store.verify()


@pytest.mark.parametrize("rows", [[4], [-1], [0, 99], np.array([2**63], np.uint64)])
def test_rows_outside_the_store_are_refused(rows, tmp_path, write_store):
    store = write_store(tmp_path / "s", np.eye(4))
    with pytest.raises(
        RowError, match=r"Row \S+ is outside .*which has 4 cells \(rows 0 to 3"
    ) as e:
        store.take(rows)
    assert isinstance(e.value, IndexError)
    assert str(np.asarray(rows)[-1]) in str(e.value)


@pytest.mark.parametrize("rows", [[0.0], [True, False], [[0]], ["a"]])
def test_rows_that_are_no_integers_are_refused(rows, tmp_path, write_store):
    store = write_store(tmp_path / "s", np.eye(4))
    with pytest.raises(UsageError, match="one-dimensional array of integers"):
        store.take(rows)


def test_obs_columns_come_along(tmp_path, write_store):
    obs = pd.DataFrame(
        {"label": pd.Categorical(["a", None, "b"]), "n": [1, 2, 3]}, index=["x", "y", "z"]
    )
    store = write_store(tmp_path / "s", np.eye(3), obs=obs)
    batch = store.take([2, 1], obs=["label", "n"])
    assert batch.obs["label"].tolist() == ["b", None]
    assert batch.obs["n"].tolist() == [3, 2]
    assert store.obs.names.tolist() == ["x", "y", "z"]
    with pytest.raises(UnknownNameError, match=r"no column 'labl'\. Did you mean 'label'"):
        store.take([0], obs=["labl"])


def test_genes_have_ids_symbols_and_columns(tmp_path, write_store):
    var = pd.DataFrame({"gene_name": ["A", None], "n": [1, 2]}, index=["E1", "E2"])
    store = write_store(tmp_path / "s", np.eye(2), var=var)
    assert store.genes.ids.tolist() == ["E1", "E2"]
    assert store.genes.symbols.tolist() == ["A", "E2"]
    assert store.genes.columns["n"].tolist() == [1, 2]


def test_store_becomes_the_anndata_it_was(tmp_path, write_store, random_counts):
    counts = random_counts(5, 4)
    obs = pd.DataFrame(
        {"t": pd.Categorical(list("abcab"), categories=list("cbaz"), ordered=True)},
        index=[f"c{i}" for i in range(5)],
    )
    var = pd.DataFrame({"s": list("wxyz")}, index=list("WXYZ"))
    store = write_store(tmp_path / "s", counts, obs=obs, var=var)
    whole = store.to_anndata()
    assert isinstance(whole, anndata.AnnData)
    assert whole.X.dtype == store.count_dtype
    assert (whole.X.toarray() == counts).all()
    pd.testing.assert_frame_equal(whole.obs, obs)
    pd.testing.assert_frame_equal(whole.var, var)
    part = store.to_anndata([3, 0])
    assert (part.X.toarray() == counts[[3, 0]]).all()
    assert part.obs_names.tolist() == ["c3", "c0"]


def test_pickle_is_small_and_opens_the_same_store(tmp_path, write_store, random_counts):
    small = write_store(tmp_path / "a", random_counts(3, 3))
    counts = random_counts(500, 50)
    large = write_store(tmp_path / "b", counts, block=100)
    _ = large.obs.names, large.genes, large.take(range(500))
    sizes = [len(pickle.dumps(store)) for store in (small, large)]
    assert max(sizes) < 300
    assert sizes[0] == sizes[1]
    again = pickle.loads(pickle.dumps(large))
    assert (again.take([7, 3]).to_csr().toarray() == counts[[7, 3]]).all()
    assert again.digest == large.digest


def test_pickle_survives_a_change_of_folder(tmp_path, write_store, monkeypatch):
    write_store(tmp_path / "s", np.eye(2))
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(open_store("s"))
    monkeypatch.chdir("/")
    assert len(pickle.loads(data)) == 2


def test_reader_keeps_its_generation_when_the_store_is_overwritten(tmp_path, write_store):
    old = write_store(tmp_path / "s", [[1, 2], [3, 0]], obs=pd.DataFrame({"a": [1, 2]}))
    pickled = pickle.dumps(old)
    new = write_store(tmp_path / "s", [[9, 9]], overwrite=True)
    assert old.generation == 1
    assert old.take([1, 0]).counts.tolist() == [3, 1, 2]
    assert old.obs["a"].tolist() == [1, 2]
    assert old.genes.ids.tolist() == ["gene0", "gene1"]
    assert new.take([0]).counts.tolist() == [9, 9]
    assert old.verify().generation == 1
    with pytest.raises(MissingPathError, match="overwritten: its generation 1"):
        pickle.loads(pickled)


def test_opening_while_a_new_generation_replaces_the_old_reads_the_new(
    tmp_path, write_store, monkeypatch
):
    write_store(tmp_path / "s", [[1]])
    opened = CellStore.__init__
    overtaken = []

    def be_overtaken(self, path, **options):
        if not overtaken:
            overtaken.append(True)
            write_store(path, [[2]], overwrite=True)
        opened(self, path, **options)

    monkeypatch.setattr(CellStore, "__init__", be_overtaken)
    store = open_store(tmp_path / "s")
    assert store.generation == 2
    assert store.take([0]).counts.tolist() == [2]


def test_threads_read_the_same_store(tmp_path, write_store, random_counts):
    counts = random_counts(200, 30)
    store = write_store(tmp_path / "s", counts, block=50)
    parts = np.array_split(np.random.default_rng(0).permutation(200), 40)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(store.take, parts))
    for part, batch in zip(parts, batches, strict=True):
        assert (batch.to_csr().toarray() == counts[part]).all()


def test_reading_opens_nothing_for_writing(tmp_path, write_store, monkeypatch):
    write_store(tmp_path / "s", np.eye(3))
    os.chmod(tmp_path / "s", 0o555)  # noqa: PTH101 - as a read-only file system shows it
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")}
    flags_seen = []
    opened = os.open

    def logged(path, flags, *arguments, **options):
        if not str(path).endswith(".seen"):  # The map of checked chunks, in shared memory.
            flags_seen.append(flags)
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", logged)
    store = open_store(tmp_path / "s")
    store.take([0, 1, 2])
    store.verify()
    assert flags_seen
    assert not any(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) for flags in flags_seen)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")} == before
    assert store.take([0]).counts.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        store.row_sums()[0] = 1


def test_paths_may_hold_spaces_and_any_script(tmp_path, write_store):
    store = write_store(tmp_path / "my store é 数据", np.eye(2))
    assert (store.take([0]).to_csr().toarray() == [[1, 0]]).all()


def test_symbolic_links_to_stores_and_files_work(tmp_path, write_store):
    write_store(tmp_path / "s", np.eye(2))
    (tmp_path / "link").symlink_to(tmp_path / "s")
    genes = tmp_path / "s" / "gen-1" / "genes.bin"
    genes.rename(tmp_path / "elsewhere")
    genes.symlink_to(tmp_path / "elsewhere")
    open_store(tmp_path / "link").verify()


def test_provenance_and_writer_are_kept(tmp_path, write_store):
    store = write_store(tmp_path / "s", np.eye(2))
    assert store.provenance == {"from": "x"}
    assert store.written_by.startswith("omics-data ")
    assert "2 cells, 2 genes, 2 entries" in repr(store)


def test_verify_reports_what_it_checked(tmp_path, write_store):
    store = write_store(tmp_path / "s", np.eye(2))
    (tmp_path / "s" / "gen-1" / "notes.txt").write_text("mine")
    report = store.verify()
    sizes = [p.stat().st_size for p in (tmp_path / "s" / "gen-1").iterdir()]
    assert report.num_bytes == sum(sizes) - 4
    assert report.num_files == len(sizes) - 1 + 1
    assert report.extra_files == ("notes.txt",)
    assert report.to_dict()["generation"] == 1


def test_what_is_no_store_is_refused(tmp_path, write_store):
    with pytest.raises(MissingPathError, match="does not exist"):
        open_store(tmp_path / "nothing")
    (tmp_path / "file.h5ad").write_bytes(b"1")
    with pytest.raises(InputDataError, match=r"is a file, not a store.*omics-data convert"):
        open_store(tmp_path / "file.h5ad")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputDataError, match="is not a store: it has no file CURRENT"):
        open_store(tmp_path / "folder")
    write_store(tmp_path / "s", np.eye(2))
    with pytest.raises(UsageError, match=r"verify is 'frist'\. Did you mean 'first'"):
        open_store(tmp_path / "s", verify="frist")


def test_unfinished_conversion_is_no_store(tmp_path):
    (tmp_path / "s" / ".gen-1.tmp").mkdir(parents=True)
    with pytest.raises(InputDataError, match="conversion was not finished"):
        open_store(tmp_path / "s")


def test_newer_format_asks_for_an_update(tmp_path, write_store):
    import hashlib

    write_store(tmp_path / "s", np.eye(2))
    manifest = tmp_path / "s" / "gen-1" / "MANIFEST.json"
    data = manifest.read_bytes().replace(b'"format_version":1', b'"format_version":9')
    manifest.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "s" / "CURRENT").write_text(f"gen-1 {digest}\n")
    with pytest.raises(StoreVersionError, match=r"version 9.*pip install --upgrade"):
        open_store(tmp_path / "s")


def test_copied_store_is_the_same_store(tmp_path, write_store):
    store = write_store(tmp_path / "s", np.eye(2))
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    copy = open_store(tmp_path / "copy")
    copy.verify()
    assert copy.digest == store.digest


def test_generation_of_another_number_is_refused(tmp_path, write_store):
    write_store(tmp_path / "s", np.eye(2))
    (tmp_path / "s" / "gen-1").rename(tmp_path / "s" / "gen-2")
    current = tmp_path / "s" / "CURRENT"
    current.write_bytes(current.read_bytes().replace(b"gen-1", b"gen-2"))
    with pytest.raises(CorruptStoreError, match="belongs to another generation"):
        open_store(tmp_path / "s")
