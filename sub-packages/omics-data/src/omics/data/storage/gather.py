"""Compiled loops that copy ragged rows out of a store: locate, gather, unpack, patch, find top genes.

- `locate_rows` checks the offsets and `all_seen` that every touched chunk is known to be good: the
  common case of `CellStore.take` is a few calls of machine code without an array in between.
- Only the packed layout is decoded with bounds checks; the others get ranges that were checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.compiled import compiled

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]


# What `locate_rows` reports.
LOCATED, ROW_OUTSIDE, OFFSETS_DAMAGED = 0, 1, 2


def locate_rows(
    rows: Array, offsets: Array, limits: tuple[int, int], place: tuple[Array, Array]
) -> int:
    """Find where rows lie in a flat array, and where they go in a batch.

    Args:
        rows: int64 [n].
        offsets: int64 [cells + 1].
        limits: number of cells, and number of entries of the flat array.
        place: filled: `starts` int64 [n], where each row begins, and `indptr` int64 [n + 1].

    Returns:
        LOCATED; ROW_OUTSIDE if a row is not from 0 to cells - 1; OFFSETS_DAMAGED if a row would
        end before it begins or outside the flat array.
    """
    return int(compiled(_locate)(rows, offsets, limits, place))


def all_seen(starts: Array, indptr: Array, seen: Array, items_per_chunk: int) -> bool:
    """Say whether every chunk that rows lie in is marked; False for rows outside the file.

    Args:
        starts: int64 [n], the first item of each row.
        indptr: int64 [n + 1], differences are the numbers of items.
        seen: uint8 [chunks], not 0 where a chunk is known to be good.
        items_per_chunk: of the file.
    """
    return bool(compiled(_all_seen)(starts, indptr, seen, items_per_chunk))


def gather_rows(starts: Array, indptr: Array, source: Array, out: Array) -> None:
    """Copy rows of a flat array into a batch, widening on the way if `out` is wider.

    Args:
        starts: int64 [n], where each row begins in `source`.
        indptr: int64 [n + 1], where each row goes in `out`; also gives the lengths.
        source: [nnz of the store], within which every row must lie.
        out: [nnz of the batch], filled.
    """
    compiled(_copy_rows)(starts, indptr, source, out)


def unpack_rows(
    packed: Array,
    place: tuple[Array, Array, Array],
    num_genes: int,
    out: tuple[Array, Array],
) -> int:
    """Decode rows of the packed layout (see `block_encoding.pack_rows`).

    Args:
        packed: uint8 [bytes].
        place: int64 [n] each row's first byte, int64 [n + 1] its number of bytes as differences,
            int64 [n + 1] where it goes in `out`; the ranges must lie within the arrays.
        num_genes: positions must be below it.
        out: filled: genes, unsigned [nnz], and counts, uint16 or uint32 [nnz], where 65,535 stands
            for that and more.

    Returns:
        -1, or the position in the batch of the first row that does not decode: its bytes end too
        early or too late, or a gene is out of range.
    """
    return int(compiled(_unpack)(packed, place, num_genes, out))


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
    compiled(_patch_rows)(starts, indptr, positions, counts, out)


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
    compiled(loop)(indptr, values, limit, keep)
    return keep


def _locate(
    rows: Array, offsets: Array, limits: tuple[int, int], place: tuple[Array, Array]
) -> int:
    starts, indptr = place
    num_cells, num_entries = limits
    indptr[0] = 0
    total = np.int64(0)
    for index in range(rows.size):
        row = rows[index]
        if row < 0 or row >= num_cells:
            return 1
        start = offsets[row]
        end = offsets[row + 1]
        if start < 0 or end < start or end > num_entries:
            return 2
        starts[index] = start
        total += end - start
        indptr[index + 1] = total
    return 0


def _all_seen(starts: Array, indptr: Array, seen: Array, items_per_chunk: int) -> bool:
    for row in range(starts.size):
        length = indptr[row + 1] - indptr[row]
        if length > 0:
            first = starts[row] // items_per_chunk
            last = (starts[row] + length - 1) // items_per_chunk
            if first < 0 or last >= seen.size:
                return False
            for chunk in range(first, last + 1):
                if seen[chunk] == 0:
                    return False
    return True


def _unpack(  # noqa: PLR0912 (one row, front to back: splitting it would pass arrays around)
    packed: Array,
    place: tuple[Array, Array, Array],
    num_genes: int,
    out: tuple[Array, Array],
) -> int:
    begins, lengths, indptr = place
    genes, counts = out
    for row in range(begins.size):
        data = packed[begins[row] : begins[row] + lengths[row + 1] - lengths[row]]
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_counts = counts[indptr[row] : indptr[row + 1]]
        size = row_genes.size
        fixed = size + (size + 1) // 2
        if data.size < fixed:
            return row
        gaps = data[:size]
        nibbles = data[size:fixed]
        wide = 0
        for entry in range(size):
            wide += gaps[entry] == 255
        tail = fixed
        gene = np.int64(-1)
        if wide == 0:
            for entry in range(size):
                gene += np.int64(gaps[entry]) + 1
                row_genes[entry] = gene
        else:
            if data.size < fixed + 4 * wide:
                return row
            for entry in range(size):
                gap = np.int64(gaps[entry])
                if gap == 255:
                    gap = (
                        np.int64(data[tail])
                        | (np.int64(data[tail + 1]) << 8)
                        | (np.int64(data[tail + 2]) << 16)
                        | (np.int64(data[tail + 3]) << 24)
                    )
                    tail += 4
                gene += gap + 1
                row_genes[entry] = gene
        # Gaps are not negative: the last gene is the largest, so this bounds all of them.
        if gene >= num_genes:
            return row
        for pair in range(size // 2):
            both = nibbles[pair]
            row_counts[2 * pair] = both & 15
            row_counts[2 * pair + 1] = both >> 4
        if size % 2:
            row_counts[size - 1] = nibbles[size // 2] & 15
        large = 0
        for entry in range(size):
            large += row_counts[entry] == 15
        if data.size != tail + 2 * large:
            return row
        if large:
            for entry in range(size):
                if row_counts[entry] == 15:
                    row_counts[entry] = np.int64(data[tail]) | (np.int64(data[tail + 1]) << 8)
                    tail += 2
    return -1


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
