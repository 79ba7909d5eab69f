"""`corpus_medians`: the exact non-zero median of each gene over a corpus, in bounded memory.

- What is ranked are counts scaled to 10,000 per cell, over all genes of the cell, in float64.
- Positive float64 numbers are in the order of their bits. The median is found digit by digit, from
  the highest: each pass over the cells counts, for every gene, the next digit of the values that
  agree with what is known of its median. Nothing is collected and nothing is approximated.
- The table of counts takes at most `max_table_bytes`, however many cells there are. With 20,000
  genes that is 11 bits a digit and six passes; more genes take fewer bits and more passes.
- An even number of values has two middle ones: if they differ, one more pass finds the smallest
  value above the lower one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.compiled import compiled
from omics.data.errors import InputDataError
from omics.data.sources.matrix_blocks import BLOCK_ENTRIES, row_ends
from omics.data.storage.store_format import COUNTS
from omics.tokenizers.gene_token_file import GeneTokens, vocabulary_by_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from omics.data import CellStore, GeneTable
    from omics.data.storage.store_collection import StoreCollection

Array = np.ndarray[Any, np.dtype[Any]]

TARGET_SUM = 10_000.0
FRAME_TOKENS = ("<pad>", "<mask>", "<cls>", "<eos>")
MAX_TABLE_BYTES = 192 * 2**20
_FEWEST_BITS, _MOST_BITS = 2, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Digits:
    """How the keys of values, 63 bits less those of the smallest, are cut into digits.

    Attributes:
        lowest: the bits of the smallest value there can be, which every key is less.
        bits: of a digit.
        shifts: where each digit begins, the highest first.
    """

    lowest: np.uint64
    bits: int
    shifts: tuple[int, ...]

    @classmethod
    def of(cls, num_genes: int, totals: Array, max_bytes: int) -> _Digits:
        """Choose digits as wide as the table has room for."""
        deepest = max(float(totals.max(initial=1)), 1.0)
        lowest = np.float64(TARGET_SUM / deepest).view(np.uint64)
        # A value may be rounded up to just above the largest there can be.
        largest = int(np.float64(TARGET_SUM).view(np.uint64)) - int(lowest) + 16
        room = max_bytes // (4 * max(num_genes, 1))
        bits = min(max(room.bit_length() - 1, _FEWEST_BITS), _MOST_BITS)
        number = -(-largest.bit_length() // bits)
        return cls(
            lowest=lowest, bits=bits, shifts=tuple(bits * i for i in reversed(range(number)))
        )


def num_passes(
    cells: CellStore | StoreCollection, *, max_table_bytes: int = MAX_TABLE_BYTES
) -> int:
    """Return how often all cells are read, at most.

    Args:
        cells: of raw counts.
        max_table_bytes: as for `corpus_medians`.
    """
    return len(_Digits.of(cells.shape[1], cells.row_sums(), max_table_bytes).shifts) + 1


def corpus_medians(
    cells: CellStore | StoreCollection,
    *,
    max_table_bytes: int = MAX_TABLE_BYTES,
    on_progress: Callable[[int], None] | None = None,
) -> Array:
    """Return the median of each gene's values where it has one.

    A value is count * 10,000 / total of the cell.

    Args:
        cells: a store of raw counts, or many as one.
        max_table_bytes: memory for the table of counts (at least 16 bytes a gene are taken); less
            memory means more passes.
        on_progress: called with the number of cells just read, in each pass.

    Returns:
        float64 [genes], NaN for genes without a count.

    Raises:
        InputDataError: the store holds no counts, or more cells than can be counted.
    """
    if cells.value_kind != COUNTS:
        raise InputDataError(
            f"{cells.path} holds {cells.value_kind} values; medians are taken of raw counts. "
            "Convert the counts of the source (another layer, or raw)."
        )
    if len(cells) >= 2**32:
        raise InputDataError(
            f"There are {len(cells):,} cells; medians are taken of at most {2**32 - 1:,}. Give "
            "fewer stores."
        )
    totals = cells.row_sums()
    num_genes = cells.shape[1]
    digits = _Digits.of(num_genes, totals, max_table_bytes)
    known = np.zeros(num_genes, np.uint64)  # The digits of the lower middle value, found so far.
    below = np.zeros(num_genes, np.int64)  # How many values are smaller than these digits say.
    here = np.zeros(num_genes, np.int64)  # How many agree with them.
    numbers = np.zeros(num_genes, np.int64)
    tally = np.zeros((num_genes, 2**digits.bits), np.uint32)
    for index, shift in enumerate(digits.shifts):
        tally[:] = 0
        for entries in _blocks(cells, totals, on_progress):
            compiled(_tally)(entries, known, (digits.lowest, shift, digits.bits), tally)
        if index == 0:
            numbers = tally.sum(axis=1, dtype=np.int64)
        compiled(_next_digit)(tally, ((numbers - 1) // 2, below, here, known), digits.bits)
    lower = (known + digits.lowest).view(np.float64)
    differ = (numbers > 0) & (numbers // 2 >= below + here)
    above = np.where(differ, np.inf, lower)
    if differ.any():
        for entries in _blocks(cells, totals, on_progress):
            compiled(_smallest_above)(entries, lower, above)
    return np.where(numbers > 0, (lower + above) / 2, np.nan)


def _blocks(
    cells: CellStore | StoreCollection,
    totals: Array,
    on_progress: Callable[[int], None] | None,
) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Yield indptr, genes, counts and totals of all cells, in blocks."""
    begin = 0
    for end in row_ends(cells.lengths, BLOCK_ENTRIES).tolist():
        batch = cells.take(np.arange(begin, end))
        yield batch.indptr, batch.genes, batch.counts, totals[begin:end]
        if on_progress is not None:
            on_progress(len(batch))
        begin = end


def _tally(
    entries: tuple[Array, Array, Array, Array],
    known: Array,
    digit: tuple[np.uint64, int, int],
    tally: Array,
) -> None:
    indptr, genes, counts, totals = entries
    lowest, shift, bits = digit
    # Keys have 63 bits: above them is nothing, and a shift by 64 would not be defined.
    low, high = np.uint64(shift), np.uint64(min(shift + bits, 63))
    mask = np.uint64((1 << bits) - 1)
    value = np.empty(1, np.float64)
    pattern = value.view(np.uint64)
    for row in range(indptr.size - 1):
        total = np.float64(totals[row])
        for entry in range(indptr[row], indptr[row + 1]):
            gene = genes[entry]
            value[0] = np.float64(counts[entry]) * 10_000.0 / total
            key = pattern[0] - lowest
            if key >> high == known[gene]:
                tally[gene, (key >> low) & mask] += np.uint32(1)


def _next_digit(tally: Array, state: tuple[Array, Array, Array, Array], bits: int) -> None:
    middle, below, here, known = state
    shift = np.uint64(bits)
    for gene in range(middle.size):
        seen = below[gene]
        for digit in range(tally.shape[1]):
            number = np.int64(tally[gene, digit])
            if seen + number > middle[gene] and number > 0:
                below[gene] = seen
                here[gene] = number
                known[gene] = (known[gene] << shift) | np.uint64(digit)
                break
            seen += number


def _smallest_above(entries: tuple[Array, Array, Array, Array], lower: Array, above: Array) -> None:
    indptr, genes, counts, totals = entries
    for row in range(indptr.size - 1):
        total = np.float64(totals[row])
        for entry in range(indptr[row], indptr[row + 1]):
            gene = genes[entry]
            value = np.float64(counts[entry]) * 10_000.0 / total
            if value > lower[gene] and value < above[gene]:
                above[gene] = value


def median_tokens(genes: GeneTable, medians: Array) -> GeneTokens:
    """Return a vocabulary of the genes that have a median, as Geneformer V2 lays its own out.

    Args:
        genes: of the corpus.
        medians: float64 [genes], NaN for genes that are left out.

    Raises:
        InputDataError: no gene has a median.
    """
    ids, symbols = genes.ids.tolist(), genes.symbols.tolist()
    order = sorted(np.flatnonzero(~np.isnan(medians)).tolist(), key=lambda gene: ids[gene])
    if not order:
        raise InputDataError("No gene has a count, so none has a median. Give stores with cells.")
    return GeneTokens(
        vocabulary=vocabulary_by_names([*FRAME_TOKENS, *(ids[gene] for gene in order)]),
        symbols=tuple(symbols[gene] for gene in order),
        medians=medians[order],
    )
