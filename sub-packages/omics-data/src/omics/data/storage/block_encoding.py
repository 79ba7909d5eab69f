"""Compiled loops that turn blocks of cells into the bytes of a store: check, code, pack, rank.

- One pass checks every entry, codes it and counts it; a block is refused at its first bad entry.
- The statistics of a gene are a histogram: how many cells have a count of 1, 2, ... 254 of it, and
  how many a larger one. Detection, sums and nearly all medians follow from it. It has two parts,
  so that the counts below 16, nearly all there are, touch one cache line per gene.
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


def encode_counts(
    indptr: Array,
    genes: Array,
    values: Array,
    *,
    coded: tuple[Array, Array],
    sums: tuple[Array, Array, Array, Array],
) -> Array:
    """Check counts, code them in bytes and add them up, in one pass.

    Args:
        indptr: int64 [n + 1], ascending from 0 to nnz.
        genes: integers [nnz].
        values: [nnz], int64, float32 or float64.
        coded: filled: gene positions, uint16 or uint32 [nnz], and codes, uint8 [nnz]: the count,
            or 255 for counts from 255.
        sums: added to: how many cells have a count below 16 of each gene, uint32 [g, SMALL_BINS];
            how many have a larger one, uint32 [g, LARGE_BINS], where the last bin takes all from
            255; the sum of the counts in that bin, int64 [g]. Filled: the sum of each cell,
            int64 [n].

    Returns:
        int64 [e], ascending, the entries coded as 255; or one negative number: -1 - 2 * entry at
        the first entry that is not a whole number from 1 to 2**32 - 1, -2 - 2 * entry at the
        first gene position that is out of range or does not ascend.
    """
    small, large, escaped_sums, cell_sums = sums
    block = (genes, values)
    bad_row = compiled(_code_rows)(indptr, block, coded, cell_sums, len(small))
    if bad_row >= 0:
        row = slice(indptr[bad_row], indptr[bad_row + 1])
        wrong = _first_wrong(genes[row], values[row], len(small))
        return np.array([wrong - 2 * indptr[bad_row]], np.int64)
    escapes = np.empty(len(values), np.int64)
    found = compiled(_count_rows)(coded, values, (small, large, escaped_sums), escapes)
    return escapes[:found].copy()


def _first_wrong(genes: Array, values: Array, num_genes: int) -> int:
    """Return -1 - 2 * entry for a wrong value, -2 - 2 * entry for a wrong gene, of one row."""
    rising = np.concatenate([genes[:1] >= 0, genes[1:] > genes[:-1]])
    misplaced = ~rising | (genes >= num_genes)
    no_count = ~((values >= 1) & (values <= 2**32 - 1) & (values == np.floor(values)))
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


# Two loops instead of one: without early exits the first becomes SIMD, and the second is bound by
# its scattered additions alone. Together they are twice as fast as one loop that does both.
def _code_rows(
    indptr: Array,
    block: tuple[Array, Array],
    coded: tuple[Array, Array],
    cell_sums: Array,
    num_genes: int,
) -> int:
    genes, values = block
    gene_codes, codes = coded
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_values = values[indptr[row] : indptr[row + 1]]
        row_gene_codes = gene_codes[indptr[row] : indptr[row + 1]]
        row_codes = codes[indptr[row] : indptr[row + 1]]
        total = np.int64(0)
        before = np.int64(-1)
        wrong: Any = False
        for entry in range(row_values.size):
            value = row_values[entry]
            inside = (value >= 1) & (value <= 4294967295)
            count = np.uint32(value if inside else 1)  # The cast of any other is undefined.
            gene = np.int64(row_genes[entry])
            wrong |= (count != value) | (gene <= before) | (gene >= num_genes)
            before = gene
            row_gene_codes[entry] = gene
            row_codes[entry] = min(count, 255)
            total += count
        cell_sums[row] = total
        if wrong:
            return row
    return -1


def _count_rows(
    coded: tuple[Array, Array], values: Array, sums: tuple[Array, Array, Array], escapes: Array
) -> int:
    gene_codes, codes = coded
    small, large, escaped_sums = sums
    num_escapes = 0
    for entry in range(codes.size):
        gene = gene_codes[entry]
        code = codes[entry]
        if code < 16:
            small[gene, code] += 1
        else:
            large[gene, code] += 1
            if code == 255:
                escaped_sums[gene] += np.int64(values[entry])
                escapes[num_escapes] = entry
                num_escapes += 1
    return num_escapes


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
