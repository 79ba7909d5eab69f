"""`embed`: cells of an AnnData object, an `.h5ad` file or a store to vectors in `obsm`.

- Runs the one inference loop of omics.models with the bundle's own preprocessing, so the numbers
  are those of `omics-train predict`.
- Cells are never dropped or reordered. A cell without an expressed gene that the model knows has
  a row of NaN and its reason in `obs["omics_reason"]`.
- `embed_file` does the same from file to file, whatever the number of cells.
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

from omics.data.errors import UsageError
from omics.eval.baselines import counts_of
from omics.eval.cell_files import read_cells
from omics.eval.h5ad_output import (
    REASON_COLUMN,
    is_h5ad,
    open_h5ad_output,
    refuse_taken_names,
)
from omics.eval.table_files import check_suffix, write_genes
from omics.models.inference import REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anndata import AnnData

    from omics.data.storage.store import CellStore
    from omics.models.bundle import Bundle
    from omics.models.gene_embedding import GeneEmbedding
    from omics.models.readout import Readout

Array = np.ndarray[Any, np.dtype[Any]]

_BLOCK_CELLS = 4096


def embed(
    source: AnnData | CellStore | str | Path,
    bundle: Bundle | str | Path,
    *,
    key_added: str = "X_omics",
    pooling: str | None = None,
    layer: int | None = None,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    precision: str = "32-true",
    device: str = "auto",
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> AnnData:
    """Add an embedding of every cell.

    Args:
        source: an AnnData object (changed in place), an `.h5ad` file, a store or its folder.
        bundle: a loaded bundle, its folder, or `hf:owner/name`.
        key_added: key of obsm.
        pooling: how tokens become the row of a cell (`mean`, `first_token`, `token:1`,
            `mean+pooler`, ...); None for what the bundle says.
        layer: whose hidden states these are: 0 for the inputs, -1 for the last block, ...; None
            for what the bundle says.
        batch_tokens: tokens at once; None for what suits the device.
        batch_size: cells at once, at most; None for no limit but that of the tokens.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        device: `auto`, `cpu`, `cuda`, ...
        overwrite: replace an embedding of that key.
        on_progress: called with the number of cells just finished.

    Returns:
        The cells in their order, with `obsm[key_added]` float32 [n, d], `obs["omics_reason"]`
        (empty for an embedded cell) and provenance in `uns["omics"][key_added]`. A store becomes
        an AnnData object with its counts in X.

    Raises:
        UsageError: the key exists and may not be replaced.
        ConfigError: no such pooling or layer in this model.
        MissingPathError: no such file, store or bundle.
        InputDataError: no counts, too few genes that the model knows, or a damaged file.
    """
    from omics.models.bundle import Bundle
    from omics.models.inference import choose_device, run_cells
    from omics.models.readout import Readout

    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    readout = Readout.of(loaded.model.model_config, pooling=pooling, layer=layer)
    chosen = str(choose_device(device))
    with _cells_and_store(source, key_added, overwrite=overwrite) as (adata, store, place):
        embedding = np.full((len(store), readout.width), np.nan, np.float32)
        reasons = np.zeros(len(store), np.int8)
        for result in run_cells(
            loaded,
            store,
            pooling=pooling,
            layer=layer,
            batch_tokens=batch_tokens,
            batch_size=batch_size,
            precision=precision,
            device=chosen,
            on_progress=on_progress,
        ):
            embedding[result.rows] = result.embeddings
            reasons[result.rows] = result.reasons
        record = embedding_record(
            loaded, store, readout, device=chosen, precision=precision, counts=place
        )
        record["num_without_embedding"] = int((reasons > 0).sum())
    _write(adata, key_added, embedding=embedding, reasons=reasons, record=record)
    return adata


def embed_file(
    source: str | Path,
    bundle: Bundle | str | Path,
    out: str | Path,
    *,
    key_added: str = "X_omics",
    pooling: str | None = None,
    layer: int | None = None,
    precision: str = "32-true",
    device: str = "auto",
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Write an `.h5ad` file with everything of a source and an embedding of every cell, streamed.

    Args:
        source: an `.h5ad` file, the folder of a store, or what `omics.data.convert` reads.
        bundle: a loaded bundle, its folder, or `hf:owner/name`.
        out: the file; replaced if it exists.
        key_added: key of obsm.
        pooling: how tokens become the row of a cell, as in `embed`.
        layer: whose hidden states these are, as in `embed`.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        device: `auto`, `cpu`, `cuda`, ...
        overwrite: replace an embedding of that key.
        **options: `batch_tokens`, `batch_size` and `on_progress` of `embed`.

    Returns:
        The record that `uns["omics"][key_added]` holds.

    Raises:
        UsageError: the key exists and may not be replaced.
        ConfigError: no such pooling or layer in this model.
        MissingPathError: no such file, store or bundle.
        InputDataError: no counts, too few genes that the model knows, or a damaged file.
    """
    from omics.data.cell_source import open_cells
    from omics.models.bundle import Bundle
    from omics.models.inference import choose_device, run_cells
    from omics.models.readout import Readout

    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    readout = Readout.of(loaded.model.model_config, pooling=pooling, layer=layer)
    chosen = str(choose_device(device))
    refuse_taken_names(source, key_added=key_added, labels=(), overwrite=overwrite)
    with (
        open_cells(source) as store,
        open_h5ad_output(
            Path(out),
            source,
            store,
            key_added=key_added,
            width=readout.width,
            labels=(),
            overwrite=overwrite,
        ) as output,
    ):
        for result in run_cells(
            loaded,
            store,
            pooling=pooling,
            layer=layer,
            precision=precision,
            device=chosen,
            **options,
        ):
            output.add(result)
        output.record = embedding_record(
            loaded,
            store,
            readout,
            device=chosen,
            precision=precision,
            counts=counts_place(source, store),
        )
        output.record["num_without_embedding"] = output.num_without
    return output.record


def embed_genes_file(
    source: str | Path,
    bundle: Bundle | str | Path,
    out: str | Path,
    *,
    layer: int | None = None,
    precision: str = "32-true",
    device: str = "auto",
    **options: Any,
) -> tuple[GeneEmbedding, str]:
    """Write a table with the mean hidden state of every gene over the cells that express it.

    Args:
        source: an `.h5ad` file, the folder of a store, or what `omics.data.convert` reads.
        bundle: a loaded bundle, its folder, or `hf:owner/name`.
        out: the table, `.parquet` or `.csv`, with the columns gene, symbol, num_cells, e0, e1, ...
        layer: whose hidden states these are, as in `embed`.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        device: `auto`, `cpu`, `cuda`, ...
        **options: `batch_tokens`, `batch_size` and `on_progress` of `embed`.

    Returns:
        The vectors, and how well the genes are known.

    Raises:
        UsageError: `out` is no name of a table.
        ConfigError: no such layer in this model.
        MissingPathError: no such file, store or bundle.
        InputDataError: no counts, too few genes that the model knows, or a damaged file.
    """
    from omics.data.cell_source import open_cells
    from omics.models.bundle import Bundle
    from omics.models.gene_embedding import embed_genes
    from omics.models.inference import bind_genes, choose_device
    from omics.models.readout import gene_layer, layer_name

    check_suffix(Path(out))
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    chosen = str(choose_device(device))
    with open_cells(source) as store:
        genes = embed_genes(
            loaded, store, layer=layer, precision=precision, device=chosen, **options
        )
        coverage = str(bind_genes(loaded, store).coverage)
        metadata = {
            "bundle_digest": loaded.digest,
            "store_digest": store.digest,
            "layer": layer_name(gene_layer(loaded.model.model_config, layer)),
        }
    write_genes(Path(out), genes, metadata)
    return genes, coverage


def counts_place(source: str | Path, store: CellStore) -> str:
    """Return where in the output of `open_h5ad_output` the counts are.

    Args:
        source: as given to `open_cells`.
        store: of the same cells.
    """
    return str(store.provenance["location"]) if is_h5ad(source) else "X"


def embedding_record(
    bundle: Bundle, store: CellStore, readout: Readout, *, device: str, precision: str, counts: str
) -> dict[str, Any]:
    """Return how an embedding comes about, for `uns["omics"]`.

    Args:
        bundle: that makes it.
        store: of the cells.
        readout: what it is.
        device: where it was computed.
        precision: in which.
        counts: where in their source the counts were.
    """
    from omics.models.inference import bind_genes

    return {
        "bundle_digest": bundle.digest,
        "bundle": "" if bundle.path is None else bundle.path.name,
        "store_digest": store.digest,
        "counts": counts,
        "genes": str(bind_genes(bundle, store).coverage),
        "num_cells": len(store),
        **readout.to_dict(),
        "device": device,
        "precision": precision,
        "versions": _versions(),
    }


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
            store, place = store_of(source, Path(scratch) / "cells.store")
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


def store_of(adata: AnnData, path: Path) -> tuple[CellStore, str]:
    """Write the counts of an AnnData object as a store; return it and where the counts were.

    Args:
        adata: with raw counts.
        path: of the new store.
    """
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
    adata: AnnData, key_added: str, *, embedding: Array, reasons: Array, record: dict[str, Any]
) -> None:
    import pandas as pd

    adata.obsm[key_added] = embedding
    adata.obs[REASON_COLUMN] = pd.Categorical.from_codes(reasons, pd.Index(REASONS))
    # A plain dict: AnnData may hand out a view of uns that is not written back.
    adata.uns["omics"] = {**dict(adata.uns.get("omics", {})), key_added: record}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("omics-eval", "omics-models", "torch")}
