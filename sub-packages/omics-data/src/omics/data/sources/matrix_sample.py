"""Reads a little of a matrix, from several places, to see what kind of values it holds.

- The budget counts decompressed bytes: a chunk touched is a chunk paid, however little is used.
- Whole cells are preferred, since their sums tell normalised values apart; columns of a CSC
  matrix, or blocks of a dense one chunked by columns, give values only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from omics.data.sources.matrix_blocks import MatrixSource

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLE_BYTES = 64 * 2**20
NUM_PLACES = 8
MAX_ENTRIES = 2_000_000
MAX_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class ValueSample:
    """Some values of a matrix.

    Attributes:
        values: [m], as stored, without zeros.
        indptr: int64 [k + 1] when `values` are those of k whole cells; else None.
        num_places: how many matrix places (stored entries, or cells x genes) were looked at.
        complete: every stored value was read.
        bytes_read: decompressed bytes, whole chunks counted.
        seconds: how long that took.
    """

    values: Array
    indptr: Array | None
    num_places: int
    complete: bool
    bytes_read: int
    seconds: float


def sample_matrix(matrix: MatrixSource, *, budget: int = SAMPLE_BYTES) -> ValueSample | None:
    """Read values from up to `NUM_PLACES` places of a matrix.

    Args:
        matrix: of an open file.
        budget: how many decompressed bytes may be read.

    Returns:
        The sample, or None when a single chunk of the file is larger than the budget.

    Raises:
        InputDataError: the matrix is damaged.
    """
    started = time.perf_counter()
    matrix.check_structure()
    if matrix.encoding == "dense":
        parts, complete, spent = _dense_parts(matrix, budget)
    elif matrix.encoding == "csr":
        parts, complete, spent = _row_parts(matrix, budget)
    else:
        parts, complete, spent = _value_parts(matrix, budget)
    if not parts and not complete:
        return None
    values, indptr = _joined(parts, matrix.values.dtype)
    looked_at = sum(part[2] for part in parts)
    values, indptr = _without_zeros(values, indptr)
    return ValueSample(
        values=values,
        indptr=indptr,
        num_places=looked_at,
        complete=complete,
        bytes_read=spent,
        seconds=time.perf_counter() - started,
    )


# A part is (values, indptr of whole cells or None, places looked at).
_Part = tuple[Array, Array | None, int]


def _chunk(dataset: Any) -> tuple[int, int]:
    """Return (elements along the first axis, bytes) of what one read of `dataset` decompresses."""
    if dataset.chunks is None:
        return 1, int(dataset.dtype.itemsize)
    return int(dataset.chunks[0]), int(np.prod(dataset.chunks)) * int(dataset.dtype.itemsize)


def _places(total: int, budget: int, chunk: tuple[int, int]) -> tuple[int, int]:
    """Return how many places of how many elements of a list the budget allows."""
    chunk_length, chunk_bytes = chunk
    for places in range(NUM_PLACES, 0, -1):
        # A place may begin inside a chunk, so it touches one chunk more than it fills.
        chunks = budget // places // chunk_bytes - 1
        if chunks >= 1:
            return places, min(chunks * chunk_length, MAX_ENTRIES // places)
    return (1, min(chunk_length, total)) if chunk_bytes <= budget else (0, 0)


def _value_parts(matrix: MatrixSource, budget: int) -> tuple[list[_Part], bool, int]:
    total, chunk = int(matrix.values.shape[0]), _chunk(matrix.values)
    if total * matrix.values.dtype.itemsize <= budget and total <= MAX_ENTRIES:
        values = matrix.read_values(slice(0, total))
        return [(values, None, total)] if total else [], True, values.nbytes
    places, length = _places(total, budget, chunk)
    parts: list[_Part] = []
    for place in range(places):
        begin = place * total // places
        begin -= begin % chunk[0]
        values = matrix.read_values(slice(begin, min(begin + length, total)))
        parts.append((values, None, len(values)))
    return parts, False, sum(_cost(len(part[0]), chunk) for part in parts)


def _cost(length: int, chunk: tuple[int, int]) -> int:
    return (-(-length // chunk[0]) + 1) * chunk[1]


def _row_parts(matrix: MatrixSource, budget: int) -> tuple[list[_Part], bool, int]:
    num_rows, total = matrix.shape[0], int(matrix.values.shape[0])
    chunk, offset_chunk = _chunk(matrix.values), _chunk(matrix.indptr)
    all_bytes = total * matrix.values.dtype.itemsize + matrix.indptr.nbytes
    if all_bytes <= budget and total <= MAX_ENTRIES:
        places, length, max_rows = 1, total, num_rows
    else:
        places, length = _places(total, budget // 2, chunk)
        max_rows = MAX_ROWS
        if places * _cost(max_rows, offset_chunk) > budget // 2:
            return _value_parts(matrix, budget // 2)
    parts: list[_Part] = []
    for place in range(places):
        first = place * num_rows // places
        offsets = matrix.read(matrix.indptr, slice(first, min(first + max_rows, num_rows) + 1))
        offsets = offsets.astype(np.int64)
        if offsets[0] < 0 or offsets[-1] > total or (np.diff(offsets) < 0).any():
            raise matrix.error("its indptr does not ascend from 0 to the number of values")
        last = int(np.searchsorted(offsets, offsets[0] + length, side="right")) - 1
        values = matrix.read_values(slice(int(offsets[0]), int(offsets[last])))
        parts.append((values, offsets[: last + 1] - offsets[0], len(values)))
    if total and not any(len(part[0]) for part in parts):
        return _value_parts(matrix, budget // 2)
    complete = max_rows == num_rows and places == 1
    spent = sum(_cost(len(part[0]), chunk) for part in parts)
    return parts, complete, spent + places * _cost(max_rows, offset_chunk)


def _dense_parts(matrix: MatrixSource, budget: int) -> tuple[list[_Part], bool, int]:
    num_rows, num_genes = matrix.shape
    values, item = matrix.values, matrix.values.dtype.itemsize
    if num_rows * num_genes * item <= budget and num_rows * num_genes <= 4 * MAX_ENTRIES:
        block = matrix.read_values(slice(0, num_rows))
        return [_dense_part(block)], True, block.nbytes
    chunk_rows, chunk_columns = values.chunks or (1, num_genes)
    band = chunk_rows * -(-num_genes // chunk_columns) * chunk_columns * item
    # Whole rows where a band of chunks fits the budget, else one chunk at a time.
    whole_rows = band <= budget
    piece = band if whole_rows else chunk_rows * chunk_columns * item
    places = min(NUM_PLACES, budget // piece)
    bands = max(1, min(budget // max(places, 1) // piece, MAX_ROWS // chunk_rows))
    parts: list[_Part] = []
    for place in range(places):
        first = place * num_rows // places // chunk_rows * chunk_rows
        if whole_rows:
            stop = min(first + bands * chunk_rows, num_rows)
            parts.append(_dense_part(matrix.read_values(slice(first, stop))))
        else:
            column = place * num_genes // places // chunk_columns * chunk_columns
            where = (slice(first, first + chunk_rows), slice(column, column + chunk_columns))
            block = matrix.read_values(where)
            parts.append((block[block != 0], None, block.size))
    return parts, False, places * piece * (bands if whole_rows else 1)


def _dense_part(block: Array) -> _Part:
    filled = block != 0
    indptr = np.zeros(len(block) + 1, np.int64)
    np.cumsum(filled.sum(axis=1), out=indptr[1:])
    return block[filled], indptr, block.size


def _joined(parts: list[_Part], dtype: Any) -> tuple[Array, Array | None]:
    if not parts:
        return np.empty(0, dtype.newbyteorder("=")), None
    values = np.concatenate([part[0] for part in parts])
    lengths: list[Array] = []
    for _, indptr, _ in parts:
        if indptr is None:
            return values, None
        lengths.append(np.diff(indptr))
    return values, np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)


def _without_zeros(values: Array, indptr: Array | None) -> tuple[Array, Array | None]:
    keep = values != 0
    if keep.all():
        return values, indptr
    if indptr is not None:
        kept_before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
        indptr = kept_before[indptr]
    return values[keep], indptr
