"""`GeneMap`: brings the entries of cells from one gene table into another, vectorised.

- A map that keeps the order of genes needs no sorting: entries are renumbered as they stand.
- Otherwise genes of a cell are put in order through a bitmap of the new table, which costs one
  look at its words per cell instead of a sort; entries that come to one gene are summed in 64 bits.
- The compiled loops see ranges checked here only, and release the GIL.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.compiled import compiled
from omics.data.errors import InputDataError

if TYPE_CHECKING:
    from omics.data.sources.protocol import Block

Array = np.ndarray[Any, np.dtype[Any]]

MAX_COUNT = 2**32 - 1

# The position of the only set bit of a word is found by a multiplication and this table.
_BIT_FACTOR = np.uint64(0x03F79D71B4CB0A89)
_BIT_OF = np.zeros(64, np.int64)
_BIT_OF[[(((1 << bit) * int(_BIT_FACTOR)) % 2**64) >> 58 for bit in range(64)]] = np.arange(64)


class GeneMap:
    """The way from the genes of one table to those of another.

    Args:
        positions: integers [old genes], the place of each in the new table, -1 for those left out.
        num_genes: of the new table.
    """

    def __init__(self, positions: Array, num_genes: int) -> None:
        self.positions: Array = np.ascontiguousarray(positions, dtype=np.int32)
        self.num_genes = num_genes
        if (
            len(self.positions)
            and not -1 <= self.positions.min() <= self.positions.max() < num_genes
        ):
            raise ValueError(f"A position of the map is outside -1 to {num_genes - 1}.")

    def __len__(self) -> int:
        """Return the number of old genes."""
        return len(self.positions)

    @cached_property
    def is_identity(self) -> bool:
        """Whether old and new positions are the same, and the tables equally long."""
        same = len(self) == self.num_genes
        return same and bool((self.positions == np.arange(self.num_genes)).all())

    @cached_property
    def keeps_all(self) -> bool:
        """Whether no gene is left out."""
        return bool((self.positions >= 0).all())

    @cached_property
    def keeps_order(self) -> bool:
        """Whether the genes that are kept stand in the same order, each on a place of its own."""
        kept = self.positions[self.positions >= 0]
        return bool((kept[1:] > kept[:-1]).all())

    @cached_property
    def merges(self) -> bool:
        """Whether several genes come to one."""
        kept = self.positions[self.positions >= 0]
        return len(np.unique(kept)) < len(kept)

    def apply(self, indptr: Array, genes: Array, values: Array) -> Block:
        """Return cells with the genes of the new table.

        Args:
            indptr: int64 [n + 1] from 0.
            genes: integers [nnz], positions in the old table.
            values: [nnz].

        Returns:
            indptr int64 [n + 1], genes uint32 and values of what is kept, genes ascending within
            a cell. Values keep their type, but summed counts are uint32 and sums of zero left out.

        Raises:
            InputDataError: the block contradicts itself, or a sum is no count of 32 bits.
        """
        _check(indptr, genes, values, num_genes=len(self))
        out_indptr = np.zeros(len(indptr), np.int64)
        out_genes = np.empty(len(genes), np.uint32)
        if self.keeps_order:
            out_values = np.empty(len(values), values.dtype)
            outs = (out_indptr, out_genes, out_values)
            compiled(_renumber)((indptr, genes, values), self.positions, outs)
        else:
            sum_dtype = np.float64 if values.dtype.kind == "f" else np.int64
            out_values = np.empty(len(values), sum_dtype)
            work = (
                np.zeros(self.num_genes // 64 + 1, np.uint64),
                np.zeros(self.num_genes, sum_dtype),
            )
            outs = (out_indptr, out_genes, out_values)
            compiled(_collect)((indptr, genes, values), self.positions, work, outs)
        end = int(out_indptr[-1])
        return out_indptr, out_genes[:end], self._narrowed(out_values[:end], values.dtype)

    def _narrowed(self, sums: Array, dtype: np.dtype[Any]) -> Array:
        if sums.dtype == dtype:
            return sums
        if not self.merges or dtype.kind == "f":
            return sums.astype(dtype)
        if len(sums) and int(sums.max()) > MAX_COUNT:
            raise InputDataError(
                f"The counts of genes that come to one add up to {int(sums.max()):,}, more than "
                f"the largest count a store holds ({MAX_COUNT:,}). Keep the first of them instead "
                "(--repeated-genes first)."
            )
        return sums.astype(np.uint32)


def place_rows(
    indptr: Array, entries: tuple[Array, Array], starts: Array, out: tuple[Array, Array]
) -> None:
    """Copy ragged rows to their places in a batch.

    Args:
        indptr: int64 [n + 1] from 0, the rows.
        entries: genes and values [nnz] of the rows.
        starts: int64 [n], where each row goes in `out`.
        out: genes and values of the batch, filled there; wide enough.
    """
    compiled(_place)((indptr, *entries), starts, out)


def place_mapped_rows(
    indptr: Array,
    entries: tuple[Array, Array],
    *,
    positions: Array,
    starts: Array,
    out: tuple[Array, Array],
) -> None:
    """Copy ragged rows to their places in a batch, with other gene positions.

    Args:
        indptr: int64 [n + 1] from 0, the rows.
        entries: genes and values [nnz] of the rows; every gene is known to be in `positions`.
        positions: int32, the new position of each gene, none of them -1.
        starts: int64 [n], where each row goes in `out`.
        out: genes and values of the batch, filled there; wide enough.
    """
    compiled(_place_mapped)((indptr, *entries), positions, starts, out)


def _check(indptr: Array, genes: Array, values: Array, *, num_genes: int) -> None:
    """Refuse a block that the compiled loops could not walk safely."""
    sound = (
        len(indptr) > 0
        and indptr[0] == 0
        and indptr[-1] == len(genes) == len(values)
        and not (np.diff(indptr) < 0).any()
        and (not len(genes) or 0 <= int(genes.min()) <= int(genes.max()) < num_genes)
    )
    if not sound:
        raise InputDataError(
            f"A block of {len(indptr) - 1:,} cells and {len(genes):,} entries contradicts itself, "
            f"or names genes outside 0 to {num_genes - 1}. The source is damaged; write it again."
        )


def _renumber(
    block: tuple[Array, Array, Array], positions: Array, out: tuple[Array, Array, Array]
) -> None:
    indptr, genes, values = block
    out_indptr, out_genes, out_values = out
    place = 0
    for row in range(indptr.size - 1):
        for entry in range(indptr[row], indptr[row + 1]):
            position = positions[genes[entry]]
            if position >= 0:
                out_genes[place] = position
                out_values[place] = values[entry]
                place += 1
        out_indptr[row + 1] = place


def _collect(
    block: tuple[Array, Array, Array],
    positions: Array,
    work: tuple[Array, Array],
    out: tuple[Array, Array, Array],
) -> None:
    indptr, genes, values = block
    words, sums = work
    out_indptr, out_genes, out_values = out
    one, low_bits, six = np.uint64(1), np.int64(63), np.int64(6)
    place = 0
    for row in range(indptr.size - 1):
        lowest: Any = words.size
        highest: Any = -1
        for entry in range(indptr[row], indptr[row + 1]):
            position: Any = np.int64(positions[genes[entry]])
            if position >= 0:
                word = position >> six
                words[word] |= one << np.uint64(position & low_bits)
                sums[position] += values[entry]
                lowest = min(lowest, word)
                highest = max(highest, word)
        for word in range(lowest, highest + 1):
            bits = words[word]
            words[word] = np.uint64(0)
            while bits != np.uint64(0):
                bit = bits & (~bits + one)
                bits ^= bit
                position = word * 64 + _BIT_OF[np.int64((bit * _BIT_FACTOR) >> np.uint64(58))]
                if sums[position] != 0:
                    out_genes[place] = position
                    out_values[place] = sums[position]
                    place += 1
                sums[position] = 0
        out_indptr[row + 1] = place


def _place(block: tuple[Array, Array, Array], starts: Array, out: tuple[Array, Array]) -> None:
    indptr, genes, values = block
    out_genes, out_values = out
    for row in range(starts.size):
        length = indptr[row + 1] - indptr[row]
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_values = values[indptr[row] : indptr[row + 1]]
        to_genes = out_genes[starts[row] : starts[row] + length]
        to_values = out_values[starts[row] : starts[row] + length]
        for entry in range(length):
            to_genes[entry] = row_genes[entry]
            to_values[entry] = row_values[entry]


def _place_mapped(
    block: tuple[Array, Array, Array], positions: Array, starts: Array, out: tuple[Array, Array]
) -> None:
    indptr, genes, values = block
    out_genes, out_values = out
    for row in range(starts.size):
        length = indptr[row + 1] - indptr[row]
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_values = values[indptr[row] : indptr[row + 1]]
        to_genes = out_genes[starts[row] : starts[row] + length]
        to_values = out_values[starts[row] : starts[row] + length]
        for entry in range(length):
            to_genes[entry] = positions[row_genes[entry]]
            to_values[entry] = row_values[entry]
