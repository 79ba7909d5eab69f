"""Writing the cells that passed as a store of their own, streamed block by block."""

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
    reason: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> CellStore:
    """Write some cells of a store as a new store, with all genes and the obs columns as they are.

    Memory is one block of cells and the obs table.

    Args:
        store: to read.
        rows: int64 [n], the cells in the order wanted.
        path: the store to create.
        reason: plain JSON for the provenance, such as the thresholds that were applied.
        overwrite: replace a store at `path`.
        on_progress: called with the number of cells just written.

    Returns:
        The new store, opened; its provenance names the store it was taken from.

    Raises:
        RowError: a row outside the store.
        ExistingPathError: `path` exists and may not be replaced.
        UsageError: `path` is the store that is read.
    """
    from pathlib import Path

    from omics.data.errors import UsageError
    from omics.data.storage.store import open_store
    from omics.data.storage.store_writer import StoreWriter

    if Path(path).absolute() == store.path:
        raise UsageError(f"{path} is the store that is read; write the kept cells to another path.")
    chosen = np.asarray(rows, np.int64)
    cuts = cut_rows(store, chosen)
    provenance = {
        "taken_from": {"store_digest": store.digest, "cells": len(store)},
        "origin": store.provenance,
        **({} if reason is None else {"reason": dict(reason)}),
    }
    with StoreWriter(
        path,
        genes_frame=store.to_anndata(np.empty(0, np.int64)).var,
        value_kind=store.value_kind,
        overwrite=overwrite,
        provenance=provenance,
    ) as writer:
        for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            batch = store.take(chosen[begin:end])
            writer.append(batch.indptr, batch.genes, batch.counts)
            if on_progress is not None:
                on_progress(end - begin)
        writer.finish(store.obs.to_pandas().iloc[chosen])
    return open_store(path)
