"""`coded_stream`: the cells of a matrix in the bytes of a store, their genes renumbered on the way.

- What is stored as it ought to be passes one check, that of the coder. Only a block that the coder
  refuses is looked at by its matrix, which brings it into order or says where it is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.sources.matrix_blocks import MatrixSource
from omics.data.storage.block_checks import BlockError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from omics.data.matching.gene_remap import GeneMap
    from omics.data.sources.protocol import Matrix, ValueStorage
    from omics.data.storage.coded_blocks import BlockCoder, CodedBlock

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedBlock:
    """Some cells on their way into a store.

    Attributes:
        coded: the cells.
        seen: the sum of their values in the source, if genes are matched.
        kept: the sum of those in `coded`, likewise.
    """

    coded: CodedBlock
    seen: float = 0
    kept: float = 0


def coded_stream(
    matrix: Matrix,
    coder: BlockCoder,
    *,
    gene_map: GeneMap | None,
    storage: ValueStorage,
    first_cell: int = 0,
    scratch: Path | None = None,
) -> Iterator[StreamedBlock]:
    """Stream the cells of a matrix for a store.

    Args:
        matrix: of an open source.
        coder: of the store.
        gene_map: the way into the genes of the store; None leaves them as they are.
        storage: `counts` or `float`, see `Matrix.blocks`.
        first_cell: leave out the cells before this one.
        scratch: see `Matrix.blocks`.

    Yields:
        All cells in their order, none twice.

    Raises:
        InputDataError: the matrix is damaged, or a value is not of the kind asked for.
    """
    if gene_map is not None and not gene_map.is_identity:
        for block in matrix.blocks(storage, scratch=scratch, first_cell=first_cell):
            mapped = gene_map.apply(*block)
            coded = coder.code(*mapped)
            yield StreamedBlock(coded=coded, seen=_sum(block[2]), kept=_sum(mapped[2]))
        return
    if isinstance(matrix, MatrixSource):
        blocks = matrix.stored_blocks(scratch=scratch, first_cell=first_cell)
    else:
        blocks = matrix.blocks(storage, scratch=scratch, first_cell=first_cell)
    for block in blocks:
        try:
            coded = coder.code(*block)
        except BlockError:
            if not isinstance(matrix, MatrixSource):
                raise
            coded = coder.code(*matrix.canonical(first_cell, *block, storage=storage))
        first_cell += coded.num_cells
        total = 0 if gene_map is None else _sum(coded.cell_sums)
        yield StreamedBlock(coded=coded, seen=total, kept=total)


def _sum(values: Array) -> float:
    if values.dtype.kind == "f":
        return float(values.sum(dtype=np.float64))
    return int(values.sum(dtype=np.int64))
