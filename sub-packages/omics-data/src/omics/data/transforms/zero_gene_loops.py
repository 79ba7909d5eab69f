"""The compiled loop that picks genes which a cell does not express."""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.compiled import compiled
from omics.data.keyed_loops import cell_bits, entry_bits, to_unit

Array = np.ndarray[Any, np.dtype[Any]]


@compiled
def fill_zero_genes(
    indptr: Array,
    genes: Array,
    drawing: tuple[Array, np.uint64, Array, int],
    filled: Array,
    out: Array,
) -> None:
    """Append to each row genes of a pool that it does not hold, each choice alike likely.

    A partial Fisher-Yates shuffle of the pool without the row's genes: every gene at most once,
    in random order.

    Args:
        indptr: int64 [n + 1].
        genes: unsigned [nnz], each once in a row.
        drawing: int64 [n] names of the cells, key of `stream_key`, int64 [p] ascending pool,
            number of genes in all.
        filled: int64 [n + 1], where the longer rows begin; none asks for more than the pool has.
        out: [m], filled: the row's own genes first.
    """
    cells, key, pool, num_genes = drawing
    held_by = np.full(num_genes, -1, np.int64)
    candidates = np.empty(pool.size + 1, np.int64)
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_out = out[filled[row] : filled[row + 1]]
        own = row_genes.size
        for entry in range(own):
            row_out[entry] = row_genes[entry]
            held_by[row_genes[entry]] = row
        if own == row_out.size:
            continue
        left = np.int64(0)
        for place in range(pool.size):
            candidates[left] = pool[place]
            left += np.int64(held_by[pool[place]] != row)
        bits = cell_bits(key, cells[row])
        for place in range(row_out.size - own):
            chosen = place + np.int64(to_unit(entry_bits(bits, place)) * (left - place))
            gene = candidates[chosen]
            candidates[chosen] = candidates[place]
            row_out[own + place] = gene
