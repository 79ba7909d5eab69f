"""The streamed blocks of a matrix: equal to scipy's reading, bounded, and strict about damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from omics.data.errors import InputDataError
from omics.data.sources import matrix_blocks
from omics.data.sources.matrix_blocks import MatrixSource
from omics.data.sources.memory_matrix import dense_matrix

DTYPES = ["?", "u1", "i2", "<i4", ">i4", "u8", "i8", "f2", "<f4", ">f4", "f8"]


def stored(
    handle: h5py.File, matrix: Any, *, encoding: str, dtype: str, **options: Any
) -> MatrixSource:
    """Write a scipy matrix as it stands (order, zeros, duplicates) and return its source."""
    group = handle.create_group("X")
    if encoding == "dense":
        values = group.create_dataset("dense", data=matrix.toarray().astype(dtype), **options)
        parts = {"values": values}
    else:
        parts = {
            "values": group.create_dataset("data", data=matrix.data.astype(dtype), **options),
            "indices": group.create_dataset("indices", data=matrix.indices, **options),
            "indptr": group.create_dataset("indptr", data=matrix.indptr, **options),
        }
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    path = Path(handle.filename)
    return MatrixSource(path=path, location="X", encoding=encoding, shape=shape, **parts)  # type: ignore[arg-type]


def memory_file() -> h5py.File:
    return h5py.File("memory.h5ad", "w", driver="core", backing_store=False)


def read_back(source: MatrixSource, storage: str = "counts", **options: Any) -> Any:
    """Join all blocks into one CSR matrix, checking the promises of each block."""
    parts = []
    for indptr, genes, values in source.blocks(storage, **options):  # type: ignore[arg-type]
        assert indptr[0] == 0
        assert genes.dtype in (np.int32, np.int64)
        assert values.dtype.kind in ("iuf" if storage == "counts" else "f")
        assert (values != 0).all()
        for row in range(len(indptr) - 1):
            assert (np.diff(genes[indptr[row] : indptr[row + 1]].astype(np.int64)) > 0).all()
        shape = (len(indptr) - 1, source.shape[1])
        wide = values.astype(np.int64 if storage == "counts" else np.float32)
        parts.append(sparse.csr_matrix((wide, genes.astype(np.int64), indptr), shape=shape))
    if not parts:
        return sparse.csr_matrix(source.shape, dtype=np.int64)
    return sparse.csr_matrix(sparse.vstack(parts))


@st.composite
def messy_matrices(draw: Any) -> tuple[Any, str, str]:
    """Sparse counts with explicit zeros, unsorted and repeated indices."""
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(1, 9))
    entries = draw(st.integers(0, 40)) if rows else 0
    encoding = draw(st.sampled_from(["csr", "csc", "dense"]))
    dtype = draw(st.sampled_from(DTYPES))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    minor, major = (columns, rows) if encoding != "csc" else (rows, columns)
    owners = np.sort(random.integers(0, max(major, 1), entries))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=major))])
    indices = random.integers(0, max(minor, 1), entries).astype(np.int32)
    high = 2 if dtype == "?" else (60 if dtype == "u1" else 300)
    data = random.integers(0, high, entries)
    make = sparse.csc_matrix if encoding == "csc" else sparse.csr_matrix
    return make((data, indices, indptr), shape=(rows, columns)), encoding, dtype


@settings(deadline=None, max_examples=150)
@given(case=messy_matrices(), block=st.integers(1, 20))
def test_blocks_hold_what_scipy_reads(case: tuple[Any, str, str], block: int) -> None:
    matrix, encoding, dtype = case
    if dtype in {"?", "u1"} and encoding == "dense":
        matrix.data = np.minimum(matrix.data, 1)
    expected = matrix.toarray()
    if dtype in {"?", "u1"} and encoding == "dense":
        expected = expected.astype(dtype).astype(np.int64)
    with pytest.MonkeyPatch.context() as patch, memory_file() as handle:
        patch.setattr(matrix_blocks, "BLOCK_ENTRIES", block)
        patch.setattr(matrix_blocks, "DENSE_BLOCK_BYTES", block * 8)
        patch.setattr(matrix_blocks, "INDPTR_WINDOW", 3)
        patch.setattr(matrix_blocks, "MAX_REPEATS", 40)
        source = stored(handle, matrix, encoding=encoding, dtype=dtype)
        found = read_back(source)
    assert found.shape == matrix.shape
    np.testing.assert_array_equal(found.toarray(), expected)


@pytest.mark.parametrize("encoding", ["csr", "csc", "dense"])
def test_compressed_chunks_are_read_across_their_borders(
    encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(matrix_blocks, "BLOCK_ENTRIES", 97)
    monkeypatch.setattr(matrix_blocks, "DENSE_BLOCK_BYTES", 997)
    matrix = sparse.random(200, 50, density=0.2, random_state=0, format="csr")
    matrix.data = np.ceil(matrix.data * 9)
    matrix = matrix.tocsc() if encoding == "csc" else matrix
    with memory_file() as handle:
        options = {"compression": "gzip", "chunks": (7, 9) if encoding == "dense" else (31,)}
        source = stored(handle, matrix, encoding=encoding, dtype="f4", **options)
        blocks = list(source.blocks(scratch=tmp_path))
        assert len(blocks) > 10
        assert max(len(block[1]) for block in blocks) <= 200
        np.testing.assert_array_equal(read_back(source).toarray(), matrix.toarray())
    assert not list(tmp_path.iterdir())


def test_float_storage_keeps_fractions_and_negatives() -> None:
    matrix = sparse.csr_matrix(np.array([[0.5, 0.0, -2.25], [0.0, 0.0, 0.0], [1e-3, 7.0, 0.0]]))
    with memory_file() as handle:
        found = read_back(stored(handle, matrix, encoding="csr", dtype="f8"), "float")
    np.testing.assert_array_equal(found.toarray(), matrix.toarray().astype(np.float32))


@pytest.mark.parametrize("encoding", ["csr", "csc", "dense"])
@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (np.nan, "f4", "nan is not a number"),
        (np.inf, "f8", "inf is not a number"),
        (-3, "i4", "is negative"),
        (2.5, "f4", "2.5 is not a whole number"),
        (2**32, "u8", "larger than the largest count"),
        (2**40, "f8", "larger than the largest count"),
    ],
)
def test_a_value_that_is_no_count_is_named_with_its_place(
    encoding: str, value: float, dtype: str, words: str
) -> None:
    dense = np.zeros((5, 4), dtype=dtype)
    dense[1, 0], dense[3, 2] = 1, value
    matrix = sparse.csr_matrix(dense)
    matrix = matrix.tocsc() if encoding == "csc" else matrix
    with memory_file() as handle:
        source = stored(handle, matrix, encoding=encoding, dtype=dtype)
        with pytest.raises(InputDataError, match="row 3, column 2") as raised:
            list(source.blocks())
    assert words in str(raised.value)


def test_a_sum_of_duplicates_too_large_is_refused() -> None:
    matrix = sparse.csr_matrix(
        (np.array([2**32 - 1, 1], dtype=np.uint32), np.array([1, 1]), np.array([0, 2])),
        shape=(1, 3),
    )
    with memory_file() as handle:
        source = stored(handle, matrix, encoding="csr", dtype="u4")
        with pytest.raises(InputDataError, match=r"row 0, column 1 .* larger than the largest"):
            list(source.blocks())


@pytest.mark.parametrize("encoding", ["csr", "csc"])
@pytest.mark.parametrize(
    ("part", "new", "words"),
    [
        ("indptr", [0, 3, 2, 4], "does not ascend"),
        ("indptr", [1, 2, 3, 4], "does not ascend"),
        ("indptr", [0, 1, 2, 9], "does not ascend"),
        ("indptr", [0, 1, 2, 3], "ends at 3, not at its 4 values"),
        ("indptr", [0, 4], "indptr has 2 offsets where 4 are needed"),
        ("indices", [0, 1, -1, 2], "at .* -1, outside 0 to 2"),
        ("indices", [0, 1, 3, 2], "at .* 3, outside 0 to 2"),
        ("indices", [0, 1, 2], "4 values for 3 indices"),
        ("indices", [0.0, 1.0, 2.0, 2.0], "not a list of integers"),
        ("values", [1, 2, 3], "3 values for 4 indices"),
        ("values", [b"1", b"2", b"3", b"4"], "not numbers"),
    ],
)
def test_a_broken_sparse_structure_is_refused(
    encoding: str, part: str, new: list[Any], words: str
) -> None:
    parts = {"values": [1, 2, 3, 4], "indices": [0, 1, 2, 2], "indptr": [0, 2, 3, 4], part: new}
    with memory_file() as handle:
        datasets = {name: handle.create_dataset(name, data=data) for name, data in parts.items()}
        source = MatrixSource(
            path=Path("a.h5ad"), location="X", encoding=encoding, shape=(3, 3), **datasets
        )  # type: ignore[arg-type]
        with pytest.raises(InputDataError, match=words) as raised:
            list(source.blocks())
    assert "X of a.h5ad" in str(raised.value)


def test_a_row_with_more_entries_than_memory_allows_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matrix_blocks, "BLOCK_ENTRIES", 5)
    matrix = sparse.csr_matrix((np.ones(20), np.zeros(20, int), [0, 20]), shape=(1, 3))
    with memory_file() as handle:
        source = stored(handle, matrix, encoding="csr", dtype="f4")
        with pytest.raises(InputDataError, match="row 0 has 20 entries for 3 places"):
            list(source.blocks())


def test_a_damaged_compressed_chunk_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "damaged.h5"
    values = np.random.default_rng(0).integers(1, 99, 5000)
    with h5py.File(path, "w") as handle:
        matrix = sparse.csr_matrix((values, np.arange(5000), [0, 5000]), shape=(1, 5000))
        source = stored(handle, matrix, encoding="csr", dtype="f4", compression="gzip")
        offset = handle["X/data"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = b"\xff" * 64
    path.write_bytes(bytes(data))
    with h5py.File(path) as handle:
        group = handle["X"]
        source = MatrixSource(
            path=path,
            location="X",
            encoding="csr",
            shape=(1, 5000),
            values=group["data"],
            indices=group["indices"],
            indptr=group["indptr"],
        )
        with pytest.raises(InputDataError, match="/X/data cannot be read"):
            list(source.blocks())


@pytest.mark.parametrize("encoding", ["csr", "csc", "dense"])
def test_a_matrix_without_entries_or_cells_has_no_values(encoding: str) -> None:
    for shape in [(0, 4), (3, 4), (3, 0)]:
        matrix = sparse.csr_matrix(shape, dtype=np.float32)
        matrix = matrix.tocsc() if encoding == "csc" else matrix
        with memory_file() as handle:
            found = read_back(stored(handle, matrix, encoding=encoding, dtype="f4"))
            assert found.shape == shape
            assert found.nnz == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_a_dense_block_is_bounded_by_its_values_whatever_their_type(dtype):
    values = np.ones((5000, 2000), dtype)
    matrix = dense_matrix(values, path=Path("x"), location="X")
    found = [len(block[2]) for block in matrix.stored_blocks()]
    assert sum(found) == values.size
    assert max(found) <= 4 * 2**20
