"""A converted store holds exactly what AnnData reads, or the file is refused with the reason."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from omics.data import convert, open_store, synthesize
from omics.data.errors import (
    ExistingPathError,
    InputDataError,
    MissingPathError,
    OmicsError,
    UnknownNameError,
    UsageError,
)
from omics.data.sources import matrix_blocks
from omics.data.sources.source_h5ad import open_h5ad

REAL_DATA = os.environ.get("OMICS_REAL_DATA")
REAL_FILES = sorted(Path(REAL_DATA).rglob("*.h5ad")) if REAL_DATA else []


def counts_of(store: Any) -> Any:
    return store.take(np.arange(len(store))).to_csr()


def assert_holds(store: Any, matrix: Any, *, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    """Compare a store with what AnnData says of the same file."""
    assert store.shape == matrix.shape
    found = counts_of(store)
    dense = matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)
    np.testing.assert_array_equal(found.toarray(), dense)
    assert (found.data != 0).all()
    assert store.genes.ids.tolist() == list(var.index.astype(str))
    adata = store.to_anndata(np.empty(0, np.int64))
    pd.testing.assert_frame_equal(
        store.obs.to_pandas(), obs, check_index_type=False, check_column_type=False
    )
    pd.testing.assert_frame_equal(
        adata.var, var, check_index_type=False, check_column_type=False
    )  # fmt: skip


@st.composite
def experiments(draw: Any) -> tuple[anndata.AnnData, dict[str, Any]]:
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(["u1", "i2", "i4", "u4", "i8", "f4", "f8", ">f4", ">i4"]))
    high = draw(st.sampled_from([3, 120, 70_000 if dtype not in {"u1", "i2"} else 120]))
    dense = random.integers(0, high, (rows, columns)) * (random.random((rows, columns)) < 0.5)
    # scipy has no big-endian matrices; those that other programs wrote sparse are tested elsewhere.
    layouts = ["dense"] if dtype.startswith(">") else ["csr", "csc", "dense", "messy"]
    layout = draw(st.sampled_from(layouts))
    if layout == "messy":
        # Every row backwards, every entry split in two, and zeros in between.
        matrix = sparse.csr_matrix(dense[:, ::-1])
        lengths = np.diff(matrix.indptr)
        indices = np.repeat(columns - 1 - matrix.indices, 2)
        halves = np.stack([matrix.data // 2, matrix.data - matrix.data // 2], axis=1).ravel()
        indptr = np.concatenate([[0], np.cumsum(2 * lengths)])
        values: Any = sparse.csr_matrix((halves.astype(dtype), indices, indptr), (rows, columns))
    elif layout == "dense":
        values = dense.astype(dtype)
    else:
        values = sparse.csr_matrix(dense.astype(dtype)).asformat(layout)
    texts = draw(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
            min_size=rows,
            max_size=rows,
        )
    )
    obs = pd.DataFrame(
        {
            "text": pd.Series(texts, dtype=object).to_numpy(),
            "kind": pd.Categorical(random.choice(["a", "b"], rows), categories=["b", "a", "c"]),
            "flag": random.random(rows) < 0.5,
            "maybe": pd.array([None, *range(rows - 1)], dtype="Int64"),
            "share": random.random(rows).astype(np.float32),
        },
        index=[f"cell {number}" for number in range(rows)],
    )
    var = pd.DataFrame(index=[f"gene {number}" for number in range(columns)])
    options = {"compression": draw(st.sampled_from([None, "gzip", "lzf"]))}
    return anndata.AnnData(values, obs=obs, var=var), options


@settings(deadline=None, max_examples=40)
@given(experiment=experiments(), block=st.integers(8, 30))
def test_any_layout_arrives_as_anndata_reads_it(
    experiment: tuple[anndata.AnnData, dict[str, Any]], block: int
) -> None:
    adata, options = experiment
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_blocks, "BLOCK_ENTRIES", block)
        patch.setattr(matrix_blocks, "DENSE_BLOCK_BYTES", 64)
        path = Path(folder) / "a.h5ad"
        adata.write_h5ad(path, **options)
        if adata.X.sum() == 0:
            with pytest.raises(InputDataError, match="X holds no value but zero"):
                convert(path, Path(folder) / "s")
            return
        expected = anndata.read_h5ad(path)
        store = convert(path, Path(folder) / "s")
        assert_holds(store, expected.X, obs=expected.obs, var=expected.var)
        store.verify()


@pytest.mark.parametrize("path", REAL_FILES, ids=lambda path: path.name)
def test_real_files_arrive_as_anndata_reads_them(path: Path, tmp_path: Path) -> None:
    expected = anndata.read_h5ad(path)
    store = convert(path, tmp_path / "s")
    assert store.provenance["location"] == "X"
    assert_holds(store, expected.X, obs=expected.obs, var=expected.var)


@pytest.fixture
def adata() -> anndata.AnnData:
    return synthesize(60, 40, seed=1, mean_genes=20)


def written(adata: anndata.AnnData, folder: Path) -> Path:
    path = folder / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def normalise(adata: anndata.AnnData) -> anndata.AnnData:
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    return adata


def test_raw_counts_in_raw_bring_their_own_genes(adata: anndata.AnnData, tmp_path: Path) -> None:
    chosen = adata[:, 5:25].copy()
    chosen.raw = adata
    store = convert(written(normalise(chosen), tmp_path), tmp_path / "s")
    assert store.provenance["location"] == "raw.X"
    assert_holds(store, adata.X, obs=adata.obs, var=adata.var)


def test_raw_counts_in_a_layer_are_found(adata: anndata.AnnData, tmp_path: Path) -> None:
    adata.layers["counts"] = adata.X.copy()
    store = convert(written(normalise(adata), tmp_path), tmp_path / "s")
    assert store.provenance["location"] == "layers/counts"
    np.testing.assert_array_equal(counts_of(store).toarray(), adata.layers["counts"].toarray())


def test_a_real_normalised_file_is_refused_in_words(tmp_path: Path) -> None:
    path = Path(scanpy.__file__).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    with pytest.raises(InputDataError) as raised:
        convert(path, tmp_path / "s")
    message = str(raised.value)
    assert "X holds scaled values (min -2.032, max 28.41)" in message
    assert "raw.X holds log1p values, log(1 + x) of normalised counts (max 6.489" in message
    assert "the file has no layers" in message
    assert "--counts X --allow-non-counts" in message
    assert not (tmp_path / "s").exists()


def test_a_named_place_without_counts_is_refused_and_the_right_one_named(
    adata: anndata.AnnData, tmp_path: Path
) -> None:
    adata.layers["counts"] = adata.X.copy()
    path = written(normalise(adata), tmp_path)
    with pytest.raises(InputDataError, match=r"X of .* holds log1p .* use --counts layers/counts"):
        convert(path, tmp_path / "s", location="X")
    with pytest.raises(UnknownNameError, match="Did you mean 'layers/counts'"):
        convert(path, tmp_path / "s", location="layers/count")


def test_values_that_are_no_counts_are_kept_when_asked(
    adata: anndata.AnnData, tmp_path: Path
) -> None:
    path = written(normalise(adata), tmp_path)
    with pytest.raises(UsageError, match="only from a named place"):
        convert(path, tmp_path / "s", allow_non_counts=True)
    store = convert(path, tmp_path / "s", location="X", allow_non_counts=True)
    assert store.value_kind == "float"
    np.testing.assert_array_equal(counts_of(store).toarray(), adata.X.toarray())


def test_a_fraction_that_the_sample_missed_stops_the_conversion(
    adata: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omics.data.sources.matrix_sample.MAX_ENTRIES", 64)
    monkeypatch.setattr("omics.data.sources.matrix_sample.MAX_ROWS", 1)
    adata.X.data[-1] = 0.5
    path = written(adata, tmp_path)
    with pytest.raises(InputDataError, match=r"row 59, column \d+ is no raw count: 0.5 is not"):
        convert(path, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_repeated_gene_ids_are_refused_with_a_way_out(
    adata: anndata.AnnData, tmp_path: Path
) -> None:
    adata.var["gene_ids"] = adata.var_names
    adata.var["gene_symbol"] = "S"
    adata.var_names = ["A", "A", "B", "B", *adata.var_names[4:]]
    adata.var_names.name = None
    with pytest.warns(UserWarning, match="Variable names are not unique"):
        path = written(anndata.AnnData(adata.X, adata.obs, adata.var), tmp_path)
    with pytest.raises(
        InputDataError, match=r"2 gene ids of var .* more than once \('A', 'B'\)"
    ) as raised:
        convert(path, tmp_path / "s")
    assert "The column 'gene_ids' is unique: make it the index" in str(raised.value)


def test_repeated_cell_names_are_kept_and_counted(adata: anndata.AnnData, tmp_path: Path) -> None:
    path = written(adata, tmp_path)
    with h5py.File(path, "r+") as handle:
        node = handle["obs/_index"]
        # anndata 0.13 writes nullable text, a group that holds the values.
        node = node["values"] if isinstance(node, h5py.Group) else node
        node[3] = node[2]
    store = convert(path, tmp_path / "s")
    assert store.provenance["duplicate_cell_names"] == 1
    assert store.obs.names[3] == store.obs.names[2]


def test_counts_above_32_bits_are_refused(tmp_path: Path) -> None:
    adata = anndata.AnnData(np.array([[2**32, 1], [0, 3]], dtype=np.uint64))
    with pytest.raises(InputDataError, match="4294967296 is larger than the largest count"):
        convert(written(adata, tmp_path), tmp_path / "s")
    adata.X[0, 0] -= 1
    store = convert(written(adata, tmp_path), tmp_path / "s")
    assert store.take([0]).counts.tolist() == [2**32 - 1, 1]


def test_a_store_is_replaced_only_when_asked(adata: anndata.AnnData, tmp_path: Path) -> None:
    path = written(adata, tmp_path)
    first = convert(path, tmp_path / "s")
    with pytest.raises(ExistingPathError, match="holds a store already"):
        convert(path, tmp_path / "s")
    second = convert(path, tmp_path / "s", overwrite=True)
    assert second.generation == first.generation + 1
    with pytest.raises(ExistingPathError):
        convert(path, path, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ExistingPathError, match="is not a store"):
        convert(path, tmp_path / "mine", overwrite=True)
    assert open_store(tmp_path / "s").generation == second.generation


def test_a_failed_overwrite_leaves_the_old_store(adata: anndata.AnnData, tmp_path: Path) -> None:
    store = convert(written(adata, tmp_path), tmp_path / "s")
    bad = adata.copy()
    bad.X.data[-1] = -1
    bad.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(InputDataError):
        convert(tmp_path / "bad.h5ad", tmp_path / "s", overwrite=True)
    assert open_store(tmp_path / "s").digest == store.digest


def test_a_source_that_changes_meanwhile_is_refused(adata: anndata.AnnData, tmp_path: Path) -> None:
    path = written(adata, tmp_path)
    with pytest.raises(InputDataError, match="changed while it was read"):
        convert(path, tmp_path / "s", on_progress=lambda _count: os.utime(path))
    assert not (tmp_path / "s").exists()


def test_progress_counts_every_cell(
    adata: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix_blocks, "BLOCK_ENTRIES", 50)
    done: list[int] = []
    convert(written(adata, tmp_path), tmp_path / "s", on_progress=done.append)
    assert sum(done) == 60
    assert len(done) > 5


def test_paths_that_are_no_source(tmp_path: Path, adata: anndata.AnnData) -> None:
    with pytest.raises(MissingPathError, match="no file"):
        convert(tmp_path / "none.h5ad", tmp_path / "s")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputDataError, match="is no source of cells"):
        convert(tmp_path / "folder", tmp_path / "s")


def test_a_file_without_readable_matrix_says_why(adata: anndata.AnnData, tmp_path: Path) -> None:
    path = written(adata, tmp_path)
    with h5py.File(path, "r+") as handle:
        handle["X"].attrs["encoding-type"] = "coo_matrix"
    with pytest.raises(InputDataError, match=r"X cannot be read \(its encoding 'coo_matrix'"):
        convert(path, tmp_path / "s")


# The same cases every time: libhdf5 itself is known to crash or hang on rare damage.
@settings(deadline=None, max_examples=60, derandomize=True)
@given(offset=st.integers(0, 10**6), flips=st.integers(1, 255), span=st.integers(1, 64))
def test_a_damaged_file_is_refused_or_harmless(offset: int, flips: int, span: int) -> None:
    """No crash and no untyped error, whatever bytes are changed; checked counts are counts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5ad"
        path.write_bytes(damaged_bytes(offset, flips, span))
        try:
            store = convert(path, Path(folder) / "s")
        except OmicsError:
            assert not (Path(folder) / "s").exists()
        else:
            store.verify()


@cache
def whole_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.h5ad"
        synthesize(12, 10, seed=2, num_types=2).write_h5ad(path)
        return path.read_bytes()


def damaged_bytes(offset: int, flips: int, span: int) -> bytes:
    data = bytearray(whole_bytes())
    offset %= len(data)
    for position in range(offset, min(offset + span, len(data))):
        data[position] ^= flips
    return bytes(data)


def test_matrices_are_those_of_the_file(adata: anndata.AnnData, tmp_path: Path) -> None:
    with open_h5ad(written(adata, tmp_path)) as source:
        assert list(source.matrices) == ["X"]
        assert source.obs_columns == list(adata.obs.columns)
