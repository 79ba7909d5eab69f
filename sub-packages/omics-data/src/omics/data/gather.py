"""Compiled loops over ragged rows: encode counts, gather rows, patch escapes, find top genes.

- The loops run on sub-views (`source[a:b]`), whose indices are known not to be negative: numba
  then leaves out its wrap-around checks and the copies become SIMD.
- They release the GIL, so the loader's thread and the training step run side by side.
- numba is imported, and a loop compiled, at first use; the machine code is cached on disk.
- Nothing is bounds-checked here: callers pass only ranges they have checked.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = np.ndarray[Any, np.dtype[Any]]


def encode_counts(
    indptr: Array, genes: Array, values: Array, *, codes: Array, sums: tuple[Array, Array, Array]
) -> Array:
    """Check counts, code them in bytes and add them up, in one pass.

    Args:
        indptr: int64 [n + 1].
        genes: int64 [nnz], known to be in range.
        values: [nnz], int64, float32 or float64.
        codes: uint8 [nnz], filled: the count, or 255 for counts from 255.
        sums: int64 sums to add to: of genes [g], cells with an entry of a gene [g], cells [n].

    Returns:
        int64 [e], ascending, the entries coded as 255; or one negative number, -1 - entry, at
        the first entry that is not a whole number from 1 to 2**32 - 1.
    """
    escapes = np.empty(len(values), np.int64)
    found = _compiled(_encode_rows)((indptr, genes), values, (codes, escapes), sums)
    return np.array([found], np.int64) if found < 0 else escapes[:found].copy()


def gather_rows(starts: Array, indptr: Array, source: Array, out: Array) -> None:
    """Copy rows of a flat array into a batch, widening on the way if `out` is wider.

    Args:
        starts: int64 [n], where each row begins in `source`.
        indptr: int64 [n + 1], where each row goes in `out`; also gives the lengths.
        source: [nnz of the store], within which every row must lie.
        out: [nnz of the batch], filled.
    """
    _compiled(_copy_rows)(starts, indptr, source, out)


def patch_escapes(
    starts: Array, indptr: Array, positions: Array, counts: Array, out: Array
) -> None:
    """Put the true counts where a batch holds the escape code.

    Args:
        starts: int64 [n], where each row begins in the store.
        indptr: int64 [n + 1], where each row lies in `out`.
        positions: int64 [e], ascending store positions of all escaped entries.
        counts: uint32 [e], their counts.
        out: uint32 [nnz of the batch], changed in place.
    """
    _compiled(_patch_rows)(starts, indptr, positions, counts, out)


def mark_top(indptr: Array, values: Array, limit: int) -> Array:
    """Mark the entries of each row with the highest values.

    Args:
        indptr: int64 [n + 1].
        values: [nnz], no NaN.
        limit: how many entries a row may keep, at least 1.

    Returns:
        bool [nnz], True for at most `limit` entries a row; of equal values the earlier wins.
    """
    keep = np.ones(len(values), np.bool_)
    loop = _mark_rows if values.dtype.kind == "f" else _mark_count_rows
    _compiled(loop)(indptr, values, limit, keep)
    return keep


def _encode_rows(
    structure: tuple[Array, Array],
    values: Array,
    coded: tuple[Array, Array],
    sums: tuple[Array, Array, Array],
) -> int:
    indptr, genes = structure
    codes, escapes = coded
    gene_sums, gene_detection, cell_sums = sums
    num_escapes = 0
    for row in range(indptr.size - 1):
        begin = indptr[row]
        row_genes = genes[begin : indptr[row + 1]]
        row_values = values[begin : indptr[row + 1]]
        row_codes = codes[begin : indptr[row + 1]]
        total = np.int64(0)
        for entry in range(row_values.size):
            value = row_values[entry]
            if not (value >= 1 and value <= 4294967295):
                return -1 - (begin + entry)
            count = np.int64(value)
            if count != value:
                return -1 - (begin + entry)
            if count < 255:
                row_codes[entry] = count
            else:
                row_codes[entry] = 255
                escapes[num_escapes] = begin + entry
                num_escapes += 1
            total += count
            gene_sums[row_genes[entry]] += count
            gene_detection[row_genes[entry]] += 1
        cell_sums[row] = total
    return num_escapes


def _copy_rows(starts: Array, indptr: Array, source: Array, out: Array) -> None:
    for row in range(starts.size):
        length = indptr[row + 1] - indptr[row]
        taken = source[starts[row] : starts[row] + length]
        place = out[indptr[row] : indptr[row + 1]]
        for entry in range(length):
            place[entry] = taken[entry]


def _patch_rows(starts: Array, indptr: Array, positions: Array, counts: Array, out: Array) -> None:
    for row in range(starts.size):
        begin = starts[row]
        end = begin + indptr[row + 1] - indptr[row]
        escape = np.searchsorted(positions, begin)
        while escape < positions.size and positions[escape] < end:
            out[indptr[row] + positions[escape] - begin] = counts[escape]
            escape += 1


def _mark_rows(indptr: Array, values: Array, limit: int, keep: Array) -> None:
    for row in range(indptr.size - 1):
        length = indptr[row + 1] - indptr[row]
        if length <= limit:
            continue
        row_values = values[indptr[row] : indptr[row + 1]]
        row_keep = keep[indptr[row] : indptr[row + 1]]
        lowest_kept = np.partition(row_values, length - limit)[length - limit]
        room = limit
        for entry in range(length):
            if row_values[entry] > lowest_kept:
                room -= 1
        for entry in range(length):
            tie = row_values[entry] == lowest_kept and room > 0
            row_keep[entry] = tie or row_values[entry] > lowest_kept
            if tie:
                room -= 1


def _mark_count_rows(indptr: Array, values: Array, limit: int, keep: Array) -> None:
    # A histogram of small counts finds the lowest kept count without sorting. Four of them side
    # by side, as most counts are 1 and would wait for each other in one.
    tallies: Any = np.zeros((4, 256), np.int64)
    for row in range(indptr.size - 1):
        length = indptr[row + 1] - indptr[row]
        if length <= limit:
            continue
        row_values = values[indptr[row] : indptr[row + 1]]
        row_keep = keep[indptr[row] : indptr[row + 1]]
        tallies[:] = 0
        for entry in range(length):
            tallies[entry & 3, min(int(row_values[entry]), 255)] += 1
        lowest_kept = np.int64(255)
        above = np.int64(0)
        while lowest_kept > 0:
            here = tallies[:, lowest_kept].sum()
            if above + here >= limit:
                break
            above += here
            lowest_kept -= 1
        if lowest_kept == 255:  # More than `limit` large counts: rare, so sorting will do.
            lowest_kept = np.int64(np.sort(row_values)[length - limit])
            above = np.int64(0)
            for entry in range(length):
                above += np.int64(row_values[entry]) > lowest_kept
        room = limit - above
        for entry in range(length):
            count = np.int64(row_values[entry])
            tie = (count == lowest_kept) & (room > 0)
            row_keep[entry] = tie | (count > lowest_kept)
            room -= np.int64(tie)


@cache
def _compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Return the machine code of a loop (made for each combination of types at its first call)."""
    import numba

    try:
        return numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # No folder to cache in (read-only installation, no home folder).
        return numba.njit(nogil=True)(loop)
