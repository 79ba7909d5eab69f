"""Blocks of cells in the bytes of a store, and the coder that checks and makes them.

- Every block is checked whatever its source claims: what is in a store can be trusted.
- A coder has no state but memory that it uses again: one thread may code while another one writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from omics.data.storage.block_checks import (
    BlockError,
    check_genes,
    checked_structure,
    compilable,
    compilable_genes,
)
from omics.data.storage.block_encoding import (
    HAS_ZEROS,
    NOT_ASCENDING,
    NOT_FINITE,
    OUT_OF_RANGE,
    code_counts,
    inspect_rows,
)
from omics.data.storage.reused_memory import ReusedMemory
from omics.data.storage.row_statistics import sums_by_cell
from omics.data.storage.store_format import COUNTS, MAX_COUNT, gene_dtype

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedBlock:
    """A block of cells that has been checked.

    Attributes:
        indptr: int64 [n + 1] from 0.
        positions: uint16 or uint32 [nnz], genes, ascending within a cell.
        values: uint8 [nnz], counts, 255 for those from 255; or float32 [nnz].
        cell_sums: int64 or float64 [n].
        escapes: int64 [e], ascending, the entries coded as 255.
        large: uint32 [e], their counts.
    """

    indptr: Array
    positions: Array
    values: Array
    cell_sums: Array
    escapes: Array
    large: Array

    @property
    def num_cells(self) -> int:
        """Rows."""
        return len(self.indptr) - 1

    @property
    def num_entries(self) -> int:
        """Non-zeros."""
        return len(self.values)


class BlockCoder:
    """Turns blocks of cells into the bytes of a store.

    Args:
        num_genes: positions must be below it.
        value_kind: `counts` (whole numbers from 1 to 2**32 - 1) or `float`.
    """

    def __init__(self, num_genes: int, value_kind: str) -> None:
        self._num_genes = num_genes
        self._value_kind = value_kind
        self._position_type = gene_dtype(num_genes)
        self._memory = {name: ReusedMemory() for name in ("positions", "values")}

    def code(self, indptr: Array, genes: Array, values: Array) -> CodedBlock:
        """Check and code a block.

        Args:
            indptr: integers [n + 1], from 0 to nnz; where each cell begins in the block.
            genes: integers [nnz], ascending within a cell.
            values: [nnz], none of them zero.

        Raises:
            BlockError: the block is not as described; it tells the first such entry.
        """
        indptr = checked_structure(indptr, genes, values)
        genes = compilable_genes(genes)
        code = self._counts if self._value_kind == COUNTS else self._floats
        return code(indptr, genes, values)

    def _counts(self, indptr: Array, genes: Array, values: Array) -> CodedBlock:
        values = compilable(values)
        positions = self._memory["positions"].array(len(genes), self._position_type)
        codes = self._memory["values"].array(len(genes), np.uint8)
        cell_sums = np.empty(len(indptr) - 1, np.int64)
        escapes = code_counts(
            indptr,
            genes,
            values,
            num_genes=self._num_genes,
            coded=(positions, codes),
            cell_sums=cell_sums,
        )
        if len(escapes) and escapes[0] < 0:
            raise _count_error(int(escapes[0]), genes, values, self._num_genes)
        return CodedBlock(
            indptr=indptr,
            positions=positions,
            values=codes,
            cell_sums=cell_sums,
            escapes=escapes,
            large=values[escapes].astype(np.uint32),
        )

    def _floats(self, indptr: Array, genes: Array, values: Array) -> CodedBlock:
        if values.dtype.kind not in "iufb":
            raise BlockError(f"Values of type {values.dtype} are not numbers")
        with np.errstate(over="ignore"):
            stored = values.astype(np.float32)
        wrong = HAS_ZEROS | NOT_FINITE | NOT_ASCENDING | OUT_OF_RANGE
        if inspect_rows(indptr, genes, stored, self._num_genes) & wrong:
            check_genes(indptr, genes, self._num_genes)
            entry = int(np.flatnonzero(~np.isfinite(stored) | (stored == 0))[0])
            raise BlockError(f"{values[entry]} is not a finite float32 other than zero", entry)
        return CodedBlock(
            indptr=indptr,
            positions=genes.astype(self._position_type),
            values=stored,
            cell_sums=sums_by_cell(indptr, stored),
            escapes=np.empty(0, np.int64),
            large=np.empty(0, np.uint32),
        )


def _count_error(found: int, genes: Array, values: Array, num_genes: int) -> BlockError:
    entry = (-1 - found) // 2
    if found % 2:
        return BlockError(f"{values[entry]} is not a count from 1 to {MAX_COUNT}", entry)
    if not 0 <= genes[entry] < num_genes:
        return BlockError(f"Gene position {genes[entry]} is outside 0..{num_genes - 1}", entry)
    return BlockError(f"Gene position {genes[entry]} follows {genes[entry - 1]}", entry)
