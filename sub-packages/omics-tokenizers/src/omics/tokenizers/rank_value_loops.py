"""Compiled loops that turn cells into tokens in descending order of count / median of the gene.

- The order of a cell does not depend on its total, which divides all values: nothing is normalised.
- Ratios are sorted as float32 bits, squeezed into 18 bits over the range of the cell, by a radix
  sort of two digits; the few neighbours whose keys are equal are then put in order by the float64
  ratios themselves. That is exact, and faster than sorting all 64 bits.
- Of equal ratios the lower gene position comes first, in whatever order the entries stand: the
  order is the one of `omics.data.storage.block_encoding.rank_rows`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.compiled import compiled

Array = np.ndarray[Any, np.dtype[Any]]

_DIGIT_BITS = np.uint64(9)
_DIGIT = 512
_DIGIT_MASK = np.uint64(_DIGIT - 1)
_HALF = np.uint64(32)
_ENTRY = np.uint64(0xFFFFFFFF)
_SHORT_RUN = 32
_GAPS = np.array([7983, 3548, 1577, 701, 301, 132, 57, 23, 10, 4, 1])


@compiled
def rank_tokens(
    cells: tuple[Array, Array, Array],
    tables: tuple[Array, Array],
    frame: tuple[Array, Array, int],
    out: tuple[Array, Array],
) -> None:
    """Write the tokens of cells, genes of the highest ratio first.

    Args:
        cells: int64 [n + 1] where each cell begins, genes [nnz], counts [nnz]. Entries without a
            count above 0 are left out.
        tables: float64 [genes of the store], medians, 0 for genes that are left out; int32 the
            same, token ids.
        frame: int32, tokens that every cell begins with; int32, those it ends with; how many genes
            a cell may have at most.
        out: int32, long enough, tokens; int64 [n + 1] where each cell begins in them.
    """
    indptr, genes, counts = cells
    medians, token_of = tables
    front, back, max_genes = frame
    tokens, offsets = out
    longest = np.int64(0)
    for row in range(indptr.size - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    ratios = np.empty(longest, np.float64)
    rounded = np.empty(longest, np.float32)
    bits = rounded.view(np.uint32)
    positions = np.empty(longest, np.int64)
    names = np.empty(longest, np.int32)
    first = np.empty(longest, np.uint64)
    second = np.empty(longest, np.uint64)
    tallies = np.empty((2, _DIGIT), np.int64)
    offsets[0] = 0
    place = np.int64(0)
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_counts = counts[indptr[row] : indptr[row + 1]]
        length = 0
        for entry in range(row_genes.size):
            gene = row_genes[entry]
            median = medians[gene]
            if median > 0 and row_counts[entry] > 0:
                ratio = row_counts[entry] / median
                ratios[length] = ratio
                rounded[length] = ratio
                positions[length] = gene
                names[length] = token_of[gene]
                length += 1
        _sort(bits[:length], first, second, tallies)
        _settle(first[:length], ratios, positions)
        for token in front:
            tokens[place] = token
            place += 1
        kept = min(length, max_genes)
        row_tokens = tokens[place : place + kept]
        for entry in range(kept):
            row_tokens[entry] = names[first[entry] & _ENTRY]
        place += kept
        for token in back:
            tokens[place] = token
            place += 1
        offsets[row + 1] = place


@compiled
def view_tokens(
    cells: tuple[Array, Array],
    tables: tuple[Array, Array],
    frame: tuple[Array, Array, int],
    out: tuple[Array, Array],
) -> None:
    """Write the tokens of cells whose genes stand in order already, those to leave out last.

    Args:
        cells: int64 [n + 1] where each cell begins, genes [nnz].
        tables: see `rank_tokens`.
        frame: see `rank_tokens`.
        out: see `rank_tokens`.
    """
    indptr, genes = cells
    medians, token_of = tables
    front, back, max_genes = frame
    tokens, offsets = out
    offsets[0] = 0
    place = np.int64(0)
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        kept = 0  # Up to here all genes are known, and from `unknown` on none is.
        unknown = min(row_genes.size, max_genes)
        while kept < unknown:
            middle = (kept + unknown) // 2
            if medians[row_genes[middle]] > 0:
                kept = middle + 1
            else:
                unknown = middle
        for token in front:
            tokens[place] = token
            place += 1
        row_tokens = tokens[place : place + kept]
        for entry in range(kept):
            row_tokens[entry] = token_of[row_genes[entry]]
        place += kept
        for token in back:
            tokens[place] = token
            place += 1
        offsets[row + 1] = place


@compiled
def _sort(bits: Array, first: Array, second: Array, tallies: Array) -> None:
    """Fill `first` with (key, entry) in the order of descending bits; near ones share a key."""
    length = bits.size
    if length == 0:
        return
    highest = bits[0]
    lowest = bits[0]
    for entry in range(length):
        highest = max(highest, bits[entry])
        lowest = min(lowest, bits[entry])
    shift = np.uint32(0)
    while (highest - lowest) >> shift >= np.uint32(_DIGIT * _DIGIT):
        shift += np.uint32(1)
    tallies[:] = 0
    low, high = tallies[0], tallies[1]
    for entry in range(length):
        key = np.uint64((highest - bits[entry]) >> shift)
        first[entry] = (key << _HALF) | np.uint64(entry)
        low[key & _DIGIT_MASK] += 1
        high[key >> _DIGIT_BITS] += 1
    low_place = np.int64(0)
    high_place = np.int64(0)
    for value in range(_DIGIT):
        here = low[value]
        low[value] = low_place
        low_place += here
        here = high[value]
        high[value] = high_place
        high_place += here
    for entry in range(length):
        packed = first[entry]
        value = (packed >> _HALF) & _DIGIT_MASK
        second[low[value]] = packed
        low[value] += 1
    for entry in range(length):
        packed = second[entry]
        value = packed >> (_HALF + _DIGIT_BITS)
        first[high[value]] = packed
        high[value] += 1


@compiled
def _settle(packed: Array, ratios: Array, positions: Array) -> None:
    """Put the entries that share a key in order, by ratio and gene position."""
    begin = 0
    while begin < packed.size:
        key = packed[begin] >> _HALF
        end = begin + 1
        in_order = True
        while end < packed.size and packed[end] >> _HALF == key:
            in_order &= not _before(packed[end], packed[end - 1], ratios, positions)
            end += 1
        if not in_order:
            # Shell's sort: a run is short unless medians are made to fill one key.
            run = packed[begin:end]
            for gap in _GAPS:
                if gap > 1 and run.size <= _SHORT_RUN:
                    continue
                for entry in range(gap, run.size):
                    moving = run[entry]
                    at = entry
                    while at >= gap and _before(moving, run[at - gap], ratios, positions):
                        run[at] = run[at - gap]
                        at -= gap
                    run[at] = moving
        begin = end


@compiled
def _before(one: np.uint64, other: np.uint64, ratios: Array, positions: Array) -> bool:
    """Say whether one entry comes before another."""
    a, b = one & _ENTRY, other & _ENTRY
    if ratios[a] != ratios[b]:
        return ratios[a] > ratios[b]
    return positions[a] < positions[b]
