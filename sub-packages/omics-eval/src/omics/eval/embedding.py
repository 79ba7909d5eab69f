"""`embed`: cells of an AnnData object, an `.h5ad` file or a store to vectors in `obsm`.

- Runs the one inference loop of omics.models with the bundle's own preprocessing, so the numbers
  are those of `omics-train predict`.
- Cells are never dropped or reordered. A cell without an expressed gene that the model knows has
  a row of NaN and its reason in `obs["omics_reason"]`: an invented vector would pass for data.
- An object in memory or a file goes through a temporary store, where counts are checked value by
  value; what is not counts is refused, not embedded.
- `uns["omics"][key_added]` says how each embedding came about.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError
from omics.eval.baselines import counts_of
from omics.eval.cell_files import read_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

    from omics.data.storage.store import CellStore
    from omics.models.bundle import Bundle

Array = np.ndarray[Any, np.dtype[Any]]

REASON_COLUMN = "omics_reason"
NO_COUNTS = "no counts"
NO_KNOWN_GENE = "no expressed gene that the model knows"
_BLOCK_CELLS = 4096


def embed(
    source: AnnData | CellStore | str | Path,
    bundle: Bundle | str | Path,
    *,
    key_added: str = "X_omics",
    batch_size: int = 32,
    device: str = "auto",
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> AnnData:
    """Add an embedding of every cell.

    Args:
        source: an AnnData object (changed in place), an `.h5ad` file, a store or its folder.
        bundle: a loaded bundle, its folder, or `hf:owner/name`.
        key_added: key of obsm.
        batch_size: cells at once.
        device: `auto`, `cpu`, `cuda`, ...
        overwrite: replace an embedding of that key.
        on_progress: called with the number of cells just finished.

    Returns:
        The cells in their order, with `obsm[key_added]` float32 [n, d], `obs["omics_reason"]`
        (empty for an embedded cell) and provenance in `uns["omics"][key_added]`. A store becomes
        an AnnData object with its counts in X.

    Raises:
        UsageError: the key exists and may not be replaced.
        MissingPathError: no such file, store or bundle.
        InputDataError: no counts, too few genes that the model knows, or a damaged file.
    """
    from omics.models.bundle import Bundle
    from omics.models.inference import bind_genes

    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    with _cells_and_store(source, key_added, overwrite=overwrite) as (adata, store, place):
        embedding, reasons, used = _run(
            loaded, store, batch_size=batch_size, device=device, on_progress=on_progress
        )
        provenance = {
            "bundle_digest": loaded.digest,
            "bundle": "" if loaded.path is None else loaded.path.name,
            "store_digest": store.digest,
            "counts": place,
            "genes": str(bind_genes(loaded, store).coverage),
            "num_cells": len(store),
            "num_without_embedding": int((reasons != "").sum()),
            "batch_size": batch_size,
            "device": used,
            "versions": _versions(),
        }
    _write(adata, key_added, embedding=embedding, reasons=reasons, provenance=provenance)
    return adata


def _run(
    bundle: Bundle,
    store: CellStore,
    *,
    batch_size: int,
    device: str,
    on_progress: Callable[[int], None] | None,
) -> tuple[Array, Array, str]:
    """Return float32 [n, d] embeddings, object [n] reasons ("" for none), and the device."""
    from omics.models.inference import choose_device, run_cells

    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; it must be at least 1.")
    chosen = choose_device(device)
    embedding = np.full((len(store), bundle.model.model_config.hidden_size), np.nan, np.float32)
    reasons = np.full(len(store), "", dtype=object)
    silent = np.asarray(store.row_sums()) == 0
    for result in run_cells(
        bundle, store, batch_size=batch_size, device=chosen, on_progress=on_progress
    ):
        seen = result.num_tokens > 0
        embedding[result.rows[seen]] = result.embeddings[seen]
        blind = result.rows[~seen]
        reasons[blind] = np.where(silent[blind], NO_COUNTS, NO_KNOWN_GENE)
    faulty = np.flatnonzero(~np.isfinite(embedding).all(axis=1) & (reasons == ""))
    if len(faulty):
        raise InputDataError(
            f"The model gave values that are not finite for {len(faulty)} of {len(store)} cells, "
            f"first in row {int(faulty[0])}. Its weights are at fault: train again, or take an "
            "earlier bundle."
        )
    return embedding, reasons, str(chosen)


@contextlib.contextmanager
def _cells_and_store(
    source: AnnData | CellStore | str | Path, key_added: str, *, overwrite: bool
) -> Iterator[tuple[AnnData, CellStore, str]]:
    """Yield the cells to write to, a store of their counts, and where the counts were."""
    from anndata import AnnData

    from omics.data.cell_source import open_cells
    from omics.data.storage.store import CellStore

    if isinstance(source, CellStore):
        yield source.to_anndata(), source, "X"
    elif isinstance(source, AnnData):
        _check_key(source, key_added, overwrite=overwrite)
        with tempfile.TemporaryDirectory(prefix="omics-") as scratch:
            store, place = _store_of(source, Path(scratch) / "cells.store")
            yield source, store, place
    elif Path(source).is_file():
        adata = read_cells(source)
        _check_key(adata, key_added, overwrite=overwrite)
        with open_cells(source) as store:
            yield adata, store, str(store.provenance["location"])
    else:
        with open_cells(source) as store:
            yield store.to_anndata(), store, "X"


def _check_key(adata: AnnData, key_added: str, *, overwrite: bool) -> None:
    if key_added in adata.obsm and not overwrite:
        raise UsageError(
            f"obsm already holds {key_added!r}. Name another key (key_added, --key-added), or "
            "allow it to be replaced (overwrite, --overwrite)."
        )


def _store_of(adata: AnnData, path: Path) -> tuple[CellStore, str]:
    """Write the counts of an AnnData object as a store; return it and where the counts were."""
    import pandas as pd

    from omics.data.storage.store import open_store
    from omics.data.storage.store_writer import StoreWriter

    counts, place = counts_of(adata)
    genes = adata.raw.var if place == "raw.X" else adata.var
    counts = counts.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()
    with StoreWriter(path, genes_frame=genes, provenance={"location": place}) as writer:
        for start in range(0, adata.n_obs, _BLOCK_CELLS):
            block = counts[start : start + _BLOCK_CELLS]
            writer.append(block.indptr.astype(np.int64), block.indices, block.data)
        writer.finish(pd.DataFrame(index=adata.obs_names.astype(str)))
    return open_store(path), place


def _write(
    adata: AnnData, key_added: str, *, embedding: Array, reasons: Array, provenance: dict[str, Any]
) -> None:
    import pandas as pd

    adata.obsm[key_added] = embedding
    adata.obs[REASON_COLUMN] = pd.Categorical(reasons, categories=["", NO_COUNTS, NO_KNOWN_GENE])
    # A plain dict: AnnData may hand out a view of uns that is not written back.
    adata.uns["omics"] = {**dict(adata.uns.get("omics", {})), key_added: provenance}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("omics-eval", "omics-models", "torch")}
