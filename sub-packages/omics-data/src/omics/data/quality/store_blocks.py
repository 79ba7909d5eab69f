"""A store as a dask array of CSR blocks, for scanpy's out-of-core functions and for our own passes.

- A block is a range of cells read by `CellStore.take` in the task that needs it; a task carries the
  path of the store, not its data, so it may run in a thread here or on another machine.
- Values are float64: every count and every sum below 2**53 is exact, whatever the order of blocks.
- Memory: one block of at most `BLOCK_ENTRIES` entries (about 100 MB with its copies) per thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.quality.qc_extra import import_extra
from omics.data.sources.matrix_blocks import row_ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata

    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_ENTRIES = 2_000_000
# What a cell costs beside its entries: the metrics keep its 500 largest counts in a dense row.
_ENTRIES_PER_CELL = 250


def cut_rows(store: CellStore, rows: Array | None = None, *, limit: int = BLOCK_ENTRIES) -> Array:
    """Cut some rows of a store into consecutive blocks of bounded size.

    Args:
        store: the store.
        rows: int64 [n]; None takes all.
        limit: entries that a block may hold (a single longer cell is a block of its own).

    Returns:
        int64 [blocks + 1], the positions in `rows` between the blocks, from 0 to n.
    """
    lengths = store.lengths if rows is None else store.lengths[rows]
    return np.concatenate([np.zeros(1, np.int64), row_ends(lengths + _ENTRIES_PER_CELL, limit)])


def read_block(store: CellStore, rows: Array) -> Any:
    """Return some cells as a float64 CSR matrix [n, genes] with int32 indices.

    Args:
        store: the store.
        rows: int64 [n].
    """
    from scipy.sparse import csr_matrix

    batch = store.take(rows)
    return csr_matrix(
        (batch.counts.astype(np.float64), batch.genes.astype(np.int32), batch.indptr),
        shape=(len(batch), batch.num_genes),
    )


def dask_matrix(
    store: CellStore, rows: Array | None = None, *, block_entries: int = BLOCK_ENTRIES
) -> Any:
    """Return cells as a dask array of CSR blocks, none of them read yet.

    Args:
        store: the store; every worker that computes must see its path.
        rows: int64 [n], the cells in order; None takes all.
        block_entries: how many entries a block may hold.

    Returns:
        A `dask.array.Array` [n, genes] of float64; `compute()` gives one CSR matrix in memory.

    Raises:
        MissingExtraError: dask is not installed.
    """
    from scipy.sparse import csr_matrix

    array = import_extra("dask.array")
    chosen = np.arange(len(store)) if rows is None else np.asarray(rows, np.int64)
    sizes = tuple(np.diff(cut_rows(store, rows, limit=block_entries)).tolist()) or (0,)
    empty = csr_matrix((0, store.shape[1]), dtype=np.float64)
    if not len(chosen):
        return array.from_array(empty, chunks=(0, store.shape[1]), asarray=False)
    return array.map_blocks(
        _RowReader(store),
        array.from_array(chosen, chunks=(sizes,)),
        new_axis=[1],
        chunks=(sizes, (store.shape[1],)),
        dtype=np.float64,
        meta=empty,
    )


class _RowReader:
    """Reads the block of cells that a chunk of rows names."""

    def __init__(self, store: CellStore) -> None:
        self.store = store

    def __call__(self, rows: Array) -> Any:
        return read_block(self.store, rows)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return type(self).__name__, str(self.store.path), self.store.digest


def dask_anndata(
    store: CellStore,
    rows: Array | None = None,
    *,
    obs: Sequence[str] = (),
    block_entries: int = BLOCK_ENTRIES,
) -> anndata.AnnData:
    """Return cells as AnnData whose X stays on disk, for scanpy's functions that know dask.

    Of scanpy 1.11 these do: `pp.calculate_qc_metrics`, `filter_cells`, `filter_genes`,
    `normalize_total`, `log1p`, `highly_variable_genes` (not the flavour seurat_v3) and `pca` with
    `svd_solver="covariance_eigh"`.

    Args:
        store: the store.
        rows: int64 [n]; None takes all.
        obs: columns to bring along, as categories where they hold text.
        block_entries: how many entries a block may hold.

    Returns:
        X (a dask array of CSR blocks), obs with the chosen columns, var with the gene columns.

    Raises:
        MissingExtraError: dask is not installed.
        UnknownNameError: there is no such obs column.
    """
    import anndata
    import pandas as pd

    chosen = np.arange(len(store)) if rows is None else np.asarray(rows, np.int64)
    columns = {name: store.obs[name][chosen] for name in obs}
    frame = pd.DataFrame(columns, index=[str(row) for row in chosen.tolist()])
    for name in obs:
        if frame[name].dtype.kind == "O":
            frame[name] = frame[name].astype("category")
    genes = pd.DataFrame(dict(store.genes.columns), index=store.genes.ids.astype(object))
    matrix = dask_matrix(store, rows, block_entries=block_entries)
    return anndata.AnnData(matrix, obs=frame, var=genes)
