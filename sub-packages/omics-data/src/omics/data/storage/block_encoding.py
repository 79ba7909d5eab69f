"""Compiled loops that turn blocks of cells into the bytes of a store: check, code, pack, rank.

- One pass checks every entry and codes it; a block is refused at its first bad entry.
- The statistics of a gene are a histogram: how many cells have a count of 1, 2, ... 254 of it, and
  how many a larger one. Detection, sums and nearly all medians follow from it. It has two parts:
  counts below 16, nearly all there are, in numbers of 16 bits, side by side for the genes that
  follow each other in a cell, so that what is added to all the time stays in the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.compiled import compiled

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

SMALL_BINS = 16
LARGE_BINS = 256
PACKED_ESCAPE = 65535

# What `inspect_rows` reports.
OUT_OF_RANGE, NOT_ASCENDING, HAS_ZEROS, NOT_A_COUNT, NOT_FINITE = 1, 2, 4, 8, 16


def inspect_rows(indptr: Array, genes: Array, values: Array, num_genes: int) -> int:
    """Say what is unusual about a block, in one pass.

    Args:
        indptr: int64 [n + 1], ascending from 0 to nnz.
        genes: integers [nnz].
        values: numbers [nnz].
        num_genes: positions must be below it.

    Returns:
        The sum of those that hold: 1 a gene position out of range, 2 genes of a cell not strictly
        ascending, 4 a zero, 8 a value that is no whole number from 0 to 2**32 - 1, 16 a value
        that is not finite as float32.
    """
    return int(compiled(_inspect)(indptr, genes, values, num_genes))


def code_counts(
    indptr: Array,
    genes: Array,
    values: Array,
    *,
    num_genes: int,
    coded: tuple[Array, Array],
    cell_sums: Array,
) -> Array:
    """Check counts and code them in bytes, in one pass.

    Args:
        indptr: int64 [n + 1], ascending from 0 to nnz.
        genes: int32 or int64 [nnz].
        values: [nnz], int64, float32 or float64.
        num_genes: positions must be below it.
        coded: filled: gene positions, uint16 or uint32 [nnz], and codes, uint8 [nnz]: the count,
            or 255 for counts from 255.
        cell_sums: filled: the sum of each cell, int64 [n].

    Returns:
        int64 [e], ascending, the entries coded as 255; or one negative number: -1 - 2 * entry at
        the first entry that is not a whole number from 1 to 2**32 - 1, -2 - 2 * entry at the
        first gene position that is out of range or does not ascend.
    """
    escapes = np.empty(len(values), np.int64)
    found = compiled(_code)(indptr, (genes, values), (*coded, cell_sums), num_genes, escapes)
    if found < 0:
        row = slice(indptr[-1 - found], indptr[-found])
        wrong = _first_wrong(genes[row], values[row], num_genes)
        return np.array([wrong - 2 * row.start], np.int64)
    return escapes[:found].copy()


def count_codes(positions: Array, codes: Array, *, small: Array, large: Array) -> None:
    """Add codes to the histograms of their genes.

    Args:
        positions: unsigned [nnz], genes.
        codes: uint8 [nnz], as from `code_counts`.
        small: added to: how often each gene has a code below `SMALL_BINS`, uint16
            [SMALL_BINS, g]; the caller knows that it cannot overflow.
        large: added to: how often it has a larger one, uint32 [g, LARGE_BINS].
    """
    compiled(_count)(positions, codes, small, large)


def _first_wrong(genes: Array, values: Array, num_genes: int) -> int:
    """Return -1 - 2 * entry for a wrong value, -2 - 2 * entry for a wrong gene, of one row."""
    rising = np.concatenate([genes[:1] >= 0, genes[1:] > genes[:-1]])
    misplaced = ~rising | (genes >= num_genes)
    small = values < 2.0**32  # float32 would round 2**32 - 1 up.
    no_count = ~((values >= 1) & small & (values == np.floor(values)))
    entry = int(np.argmax(misplaced | no_count))
    return -1 - 2 * entry if no_count[entry] else -2 - 2 * entry


def pack_rows(indptr: Array, genes: Array, counts: Array, row_ends: Array) -> Array:
    """Write rows in the packed layout.

    A row of m entries is m gap bytes (the number of genes left out since the entry before; 255
    for 255 and more), then ceil(m / 2) bytes of two 4-bit counts each (the first entry in the low
    half; 15 for 15 and more), then for every gap of 255 its true value in 4 bytes, then for every
    count of 15 its true value in 2 bytes (65,535 for that and more), both in order, little-endian.

    Args:
        indptr: int64 [n + 1].
        genes: unsigned [nnz], ascending within a cell.
        counts: uint32 [nnz].
        row_ends: int64 [n], filled: where each row ends in the result.

    Returns:
        uint8 [bytes].
    """
    largest = 9 * len(genes) + len(indptr)
    packed = np.empty(largest, np.uint8)
    used = compiled(_pack)(indptr, genes, counts, (packed, row_ends))
    return packed[:used]


def rank_rows(indptr: Array, genes: Array, counts: Array, medians: Array) -> Array:
    """Return the genes of each cell in descending order of count / median.

    Ties go to the lower gene position; genes without a median (0) come last, in their order. The
    order of normalised values is the same, as a cell's total divides all of them (rank-value
    encoding of Theodoris et al. 2023).

    Args:
        indptr: int64 [n + 1].
        genes: unsigned [nnz], ascending within a cell.
        counts: numbers [nnz].
        medians: float64 [g], 0 where there is none.

    Returns:
        [nnz], of the type of `genes`.
    """
    ranked = np.empty_like(genes)
    compiled(_rank)(indptr, (genes, ranked), counts, medians)
    return ranked


def _inspect(indptr: Array, genes: Array, values: Array, num_genes: int) -> int:
    found = 0
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_values = values[indptr[row] : indptr[row + 1]]
        before = np.int64(-1)
        falls: Any = False
        outside: Any = False
        zero: Any = False
        odd: Any = False
        endless: Any = False
        for entry in range(row_genes.size):
            gene = np.int64(row_genes[entry])
            falls |= gene <= before
            outside |= (gene < 0) | (gene >= num_genes)
            before = gene
            value = row_values[entry]
            zero |= value == 0
            whole = (value >= 0) & (value <= 4294967295) & (value == np.floor(value))
            odd |= not whole
            endless |= not (np.abs(np.float64(value)) <= 3.4028234663852886e38)
        found |= outside * 1 | falls * 2 | zero * 4 | odd * 8 | endless * 16
    return found


# Coding and counting are two passes over a block: without early exits and scattered additions the
# first becomes SIMD, and the histogram stays in the cache while no more than codes stream past it.
def _code(
    indptr: Array,
    block: tuple[Array, Array],
    coded: tuple[Array, Array, Array],
    num_genes: int,
    escapes: Array,
) -> int:
    genes, values = block
    positions, codes, cell_sums = coded
    zero, most = values.dtype.type(0), values.dtype.type(255)
    num_escapes = 0
    for row in range(indptr.size - 1):
        begin = indptr[row]
        end = indptr[row + 1]
        row_genes = genes[begin:end]
        row_values = values[begin:end]
        row_positions = positions[begin:end]
        row_codes = codes[begin:end]
        followers = row_genes[1:]
        wrong: Any = False
        for entry in range(followers.size):
            wrong |= followers[entry] <= row_genes[entry]
            row_positions[entry] = row_genes[entry]
        if row_genes.size:
            last = row_genes.size - 1
            row_positions[last] = row_genes[last]
            wrong |= (row_genes[0] < 0) | (row_genes[last] >= num_genes)
        total = np.int64(0)
        escaped: Any = False
        for entry in range(row_values.size):
            value = row_values[entry]
            # Comparisons in this order make 0 of NaN, so that every cast is defined.
            floored = value if value > zero else zero  # noqa: FURB136
            capped = floored if floored < most else most  # noqa: FURB136
            code = np.int32(capped)
            wrong |= (code == 0) | (capped != values.dtype.type(code))
            escaped |= code == 255
            row_codes[entry] = code
            total += code
        if escaped:
            for entry in range(row_values.size):
                value = row_values[entry]
                if value >= most:
                    if value > 4294967295 or value != np.floor(value):
                        return -1 - row
                    total += np.int64(value) - 255
                    escapes[num_escapes] = begin + entry
                    num_escapes += 1
        if wrong:
            return -1 - row
        cell_sums[row] = total
    return num_escapes


def _count(positions: Array, codes: Array, small: Array, large: Array) -> None:
    for entry in range(codes.size):
        gene = positions[entry]
        code = codes[entry]
        if code < SMALL_BINS:
            small[code, gene] += 1
        else:
            large[gene, code] += 1


def _pack(indptr: Array, genes: Array, counts: Array, out: tuple[Array, Array]) -> int:
    packed, row_ends = out
    place = 0
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_counts = counts[indptr[row] : indptr[row + 1]]
        size = row_genes.size
        gaps = packed[place : place + size]
        nibbles = packed[place + size : place + size + (size + 1) // 2]
        nibbles[:] = 0
        tail = place + size + (size + 1) // 2
        before = np.int64(-1)
        for entry in range(size):
            gap = np.int64(row_genes[entry]) - before - 1
            before = np.int64(row_genes[entry])
            gaps[entry] = min(gap, 255)
            if gap >= 255:
                for byte in range(4):
                    packed[tail + byte] = (gap >> (8 * byte)) & 255
                tail += 4
        for entry in range(size):
            count = np.int64(row_counts[entry])
            nibble: Any = min(count, 15)
            nibbles[entry >> 1] |= nibble << (4 * (entry & 1))
            if count >= 15:
                shown: Any = min(count, 65535)
                packed[tail] = shown & 255
                packed[tail + 1] = shown >> 8
                tail += 2
        place = tail
        row_ends[row] = place
    return place


def _rank(indptr: Array, genes: tuple[Array, Array], counts: Array, medians: Array) -> None:
    positions, ranked = genes
    # A stable radix sort on the bits of count / median: positive float64 numbers are in the order
    # of their bits, and inverting the bits turns the order round. Six digits of 11 bits; a digit
    # that all keys share is skipped.
    longest = 0
    for row in range(indptr.size - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    ratios = np.empty(longest, np.float64)
    bits = ratios.view(np.uint64)
    keys = np.empty((2, longest), np.uint64)
    order = np.empty((2, longest), np.int64)
    tallies = np.empty(2048, np.int64)
    for row in range(indptr.size - 1):
        begin = indptr[row]
        size = indptr[row + 1] - begin
        for entry in range(size):
            median = medians[positions[begin + entry]]
            ratios[entry] = counts[begin + entry] / median if median > 0 else 0.0
        for entry in range(size):
            keys[0, entry] = ~bits[entry]
            order[0, entry] = entry
        side = 0
        for digit in range(6):
            shift = np.uint64(11 * digit)
            tallies[:] = 0
            for entry in range(size):
                tallies[(keys[side, entry] >> shift) & np.uint64(2047)] += 1
            if size and tallies[(keys[side, 0] >> shift) & np.uint64(2047)] == size:
                continue
            total = 0
            for value in range(2048):
                here = tallies[value]
                tallies[value] = total
                total += here
            for entry in range(size):
                value = (keys[side, entry] >> shift) & np.uint64(2047)
                keys[1 - side, tallies[value]] = keys[side, entry]
                order[1 - side, tallies[value]] = order[side, entry]
                tallies[value] += 1
            side = 1 - side
        for entry in range(size):
            ranked[begin + entry] = positions[begin + order[side, entry]]
