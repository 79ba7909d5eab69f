"""Writing the cells and genes that passed as a store of their own, streamed block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.quality.store_blocks import cut_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]


def write_filtered_store(
    store: CellStore,
    rows: Array,
    path: str | Path,
    *,
    genes: Array | None = None,
    reason: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> CellStore:
    """Write some cells of a store as a new store, with the obs and var columns as they are.

    Memory is one block of cells and the obs table.

    Args:
        store: to read.
        rows: int64 [n], the cells in the order wanted.
        path: the store to create.
        genes: int64 [g], the genes to keep, ascending; None keeps all. A cell that has none of them
            stays, and is empty.
        reason: plain JSON for the provenance, such as the thresholds that were applied.
        overwrite: replace a store at `path`.
        on_progress: called with the number of cells just written.

    Returns:
        The new store, opened; its provenance names the store it was taken from.

    Raises:
        RowError: a row outside the store.
        ExistingPathError: `path` exists and may not be replaced.
        UsageError: `path` is the store that is read, or the genes are not places in it, ascending.
    """
    from pathlib import Path

    from omics.data.errors import UsageError
    from omics.data.storage.store import open_store
    from omics.data.storage.store_writer import StoreWriter

    if Path(path).absolute() == store.path:
        raise UsageError(f"{path} is the store that is read; write the kept cells to another path.")
    chosen = np.asarray(rows, np.int64)
    var = store.to_anndata(np.empty(0, np.int64)).var
    place = None
    if genes is not None:
        place = _places(np.asarray(genes, np.int64), len(var))
        var = var.iloc[genes]
    cuts = cut_rows(store, chosen)
    provenance = {
        "taken_from": {"store_digest": store.digest, "cells": len(store)},
        "origin": store.provenance,
        **({} if reason is None else {"reason": dict(reason)}),
    }
    with StoreWriter(
        path,
        genes_frame=var,
        value_kind=store.value_kind,
        overwrite=overwrite,
        provenance=provenance,
    ) as writer:
        for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            batch = store.take(chosen[begin:end])
            if place is not None:
                batch = batch.keep_entries(place[batch.genes] >= 0)
            kept = batch.genes if place is None else place[batch.genes]
            writer.append(batch.indptr, kept, batch.counts)
            if on_progress is not None:
                on_progress(end - begin)
        writer.finish(store.obs.to_pandas().iloc[chosen])
    return open_store(path)


def _places(genes: Array, num_genes: int) -> Array:
    """Return int64 [num_genes], the new place of each gene; -1 for those left out."""
    from omics.data.errors import UsageError

    if not len(genes) or genes[0] < 0 or genes[-1] >= num_genes or (np.diff(genes) <= 0).any():
        raise UsageError(
            f"The {len(genes):,} genes to keep are not places among the {num_genes:,} genes of the "
            "store, ascending and each once."
        )
    place = np.full(num_genes, -1, np.int64)
    place[genes] = np.arange(len(genes))
    return place
