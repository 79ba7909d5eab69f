"""A store as an `.h5ad` file, streamed, for every program that reads AnnData.

- The file appears whole or not at all, and holds exactly what was converted: counts, obs, var.
- Counts are written as signed integers (int32, or int64 if the store has counts that need more
  than 16 bits): unsigned ones wrap round in the arithmetic of other programs.
- uns["omics"] says which store the file came from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.sources.matrix_blocks import BLOCK_ENTRIES, row_ends

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata

    from omics.data.storage.store import CellStore

CHUNK_ENTRIES = 2**16


def export_h5ad(
    store: CellStore,
    path: str | Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Write a store as an `.h5ad` file (gzip, CSR).

    Args:
        store: the store.
        path: the file to create.
        overwrite: replace a file that is there.
        on_progress: called with the number of cells just written.

    Raises:
        ExistingPathError: `path` exists and may not be replaced.
        MissingPathError: its folder does not exist.
        CorruptStoreError: the store is damaged; no file is written then.
    """
    import h5py
    from anndata.io import write_elem

    from omics.data.atomic_files import replace_file, require_free

    path = require_free(path, overwrite=overwrite)
    frame = store.to_anndata(np.empty(0, np.int64)).var
    with replace_file(path) as temporary, h5py.File(temporary, "w") as handle:
        handle.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(handle, "obs", store.obs.to_pandas())
        write_elem(handle, "var", frame)
        write_elem(handle, "uns", {"omics": {"store_digest": store.digest}})
        for name in ("layers", "obsm", "obsp", "varm", "varp"):
            write_elem(handle, name, {})
        _write_matrix(handle.create_group("X"), store, on_progress)


def write_h5ad(adata: anndata.AnnData, path: str | Path, *, overwrite: bool = False) -> None:
    """Write an AnnData object as an `.h5ad` file that appears whole or not at all.

    Args:
        adata: in memory.
        path: the file to create.
        overwrite: replace a file that is there.

    Raises:
        ExistingPathError: `path` exists and may not be replaced.
        MissingPathError: its folder does not exist.
    """
    from omics.data.atomic_files import replace_file, require_free

    with replace_file(require_free(path, overwrite=overwrite)) as temporary:
        adata.write_h5ad(temporary, compression="gzip")


def _write_matrix(group: Any, store: CellStore, on_progress: Callable[[int], None] | None) -> None:
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array(store.shape, np.int64)
    lengths = store.lengths
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    total = int(indptr[-1])
    options: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    if total:
        options["chunks"] = (min(total, CHUNK_ENTRIES),)
    data = group.create_dataset(
        "data", (total,), _export_dtype(store), **(options if total else {})
    )
    wide = np.int64 if store.shape[1] > np.iinfo(np.int32).max else np.int32
    indices = group.create_dataset("indices", (total,), wide, **(options if total else {}))
    group.create_dataset("indptr", data=indptr)
    begin = 0
    for end in row_ends(lengths, BLOCK_ENTRIES):
        batch = store.take(np.arange(begin, end))
        data[indptr[begin] : indptr[end]] = batch.counts
        indices[indptr[begin] : indptr[end]] = batch.genes
        if on_progress is not None:
            on_progress(int(end) - begin)
        begin = int(end)


def _export_dtype(store: CellStore) -> np.dtype[Any]:
    if store.value_kind == "float":
        return np.dtype(np.float32)
    return np.dtype(np.int64 if store.count_dtype.itemsize > 2 else np.int32)
