"""`embed`: cells of an AnnData object, an `.h5ad` file or a store to vectors in `obsm`.

- Runs the one inference loop of omics.models with the bundle's own preprocessing, so the numbers
  are those of `omics-train predict`.
- Cells are never dropped or reordered. A cell without an expressed gene that the model knows has
  a row of NaN and its reason in `obs["omics_reason"]`.
- With `max_cells` the model is run on a sketch of the cells, and the others get a mean of their
  neighbours in it; `obs["KEY_source"]` says which.
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

from omics.eval.baselines import counts_of
from omics.eval.cell_files import read_cells
from omics.eval.embedding_run import EmbeddingOptions, EmbeddingRun
from omics.eval.embedding_sources import SOURCES, source_column
from omics.eval.h5ad_output import (
    REASON_COLUMN,
    is_h5ad,
    open_h5ad_output,
    refuse_taken,
    refuse_taken_names,
)
from omics.eval.table_files import check_suffix, write_genes
from omics.models.inference import REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

    from omics.data.command_line import Show
    from omics.data.storage.store import CellStore
    from omics.eval.embedding_time import Estimate
    from omics.eval.h5ad_output import H5adOutput
    from omics.eval.sketched_embedding import Sketch
    from omics.models.bundle import Bundle
    from omics.models.gene_embedding import GeneEmbedding

Array = np.ndarray[Any, np.dtype[Any]]

_BLOCK_CELLS = 4096


def embed(
    source: AnnData | CellStore | str | Path,
    model: Bundle | str | Path,
    *,
    key_added: str = "X_omics",
    pooling: str | None = None,
    layer: int | None = None,
    max_cells: int | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    precision: str = "32-true",
    device: str = "auto",
    overwrite: bool = False,
    on_estimate: Callable[[Estimate], None] | None = None,
    show: Show | None = None,
) -> AnnData:
    """Add an embedding of every cell.

    Args:
        source: an AnnData object (changed in place), an `.h5ad` file, a store or its folder.
        model: a loaded bundle, its folder, `hf:owner/name`, a name that `omics-models list` shows,
            or a published checkpoint; see `omics.models.open_model`.
        key_added: key of obsm.
        pooling: how tokens become the row of a cell (`mean`, `first_token`, `token:1`,
            `mean+pooler`, ...); None for what the bundle says.
        layer: whose hidden states these are: 0 for the inputs, -1 for the last block, ...; None
            for what the bundle says.
        max_cells: run the model on a sketch of so many cells, and give the others a mean of their
            neighbours in it; None runs it on all.
        seed: of the sketch.
        batch_tokens: tokens at once; None for what suits the device.
        batch_size: cells at once, at most; None for no limit but that of the tokens.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        device: `auto` (cuda, then mps, then cpu), `cpu`, `cuda`, ...
        overwrite: replace an embedding of that key.
        on_estimate: told how long it will take, as soon as a sample of the cells is done.
        show: shows progress, as `omics.data.command_line.progress` does; None shows nothing.

    Returns:
        The cells in their order, with `obsm[key_added]` float32 [n, d], `obs["omics_reason"]`
        (empty for an embedded cell) and provenance in `uns["omics"][key_added]`. With `max_cells`
        also `obs["KEY_source"]`: `embedded`, `neighbours` or `none`, unless the model sees no more
        cells than that. A store becomes an AnnData object with its counts in X.

    Raises:
        UsageError: the key exists and may not be replaced, or a number is out of range.
        ConfigError: no such pooling or layer in this model.
        MissingPathError: no such file, store or model.
        InputDataError: no counts, too few genes that the model knows, or a damaged file.
    """
    options = EmbeddingOptions(
        pooling=pooling,
        layer=layer,
        max_cells=max_cells,
        seed=seed,
        batch_tokens=batch_tokens,
        batch_size=batch_size,
        precision=precision,
        device=device,
        on_estimate=on_estimate,
        show=show,
    )
    run = EmbeddingRun.of(model, options)
    wanted = [("obsm", key_added), *run.columns(key_added)]
    with _cells_and_store(source, [] if overwrite else wanted) as (adata, store, place):
        embedding = np.full((len(store), run.readout.width), np.nan, np.float32)
        reasons = np.zeros(len(store), np.int8)
        sketch = run.sketch(store)
        for result in run.results(store, sketch):
            embedding[result.rows] = result.embeddings
            reasons[result.rows] = result.reasons
        record = run.record(store, sketch, counts=place)
        record["num_without_embedding"] = int((reasons > 0).sum())
    _write(adata, key_added, embedding=embedding, reasons=reasons, sketch=sketch, record=record)
    return adata


def embed_file(
    source: str | Path,
    model: Bundle | str | Path,
    out: str | Path,
    *,
    key_added: str = "X_omics",
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Write an `.h5ad` file with everything of a source and an embedding of every cell, streamed.

    Args:
        source: an `.h5ad` file, the folder of a store, or what `omics.data.convert` reads.
        model: a loaded bundle, its folder, or a name, as in `embed`.
        out: the file; replaced if it exists.
        key_added: key of obsm.
        overwrite: replace an embedding of that key.
        **options: the others of `embed`.

    Returns:
        The record that `uns["omics"][key_added]` holds.

    Raises:
        UsageError: the key exists and may not be replaced, or a number is out of range.
        ConfigError: no such pooling or layer in this model.
        MissingPathError: no such file, store or model.
        InputDataError: no counts, too few genes that the model knows, or a damaged file.
    """
    from omics.data.cell_source import open_cells

    refuse_taken_names(source, key_added=key_added, labels=(), overwrite=overwrite)
    run = EmbeddingRun.of(model, EmbeddingOptions(**options))
    with open_cells(source) as store:
        return embed_opened(source, store, run, Path(out), key_added=key_added, overwrite=overwrite)


def embed_opened(
    source: str | Path,
    store: CellStore,
    run: EmbeddingRun,
    out: Path,
    *,
    key_added: str,
    overwrite: bool,
    more: Sequence[tuple[str, str]] = (),
    finish: Callable[[H5adOutput], None] | None = None,
) -> dict[str, Any]:
    """Do what `embed_file` does with a source that is open already.

    Args:
        source: as given to `open_cells`.
        store: of the same cells.
        run: the model and what is asked of it.
        out: the file; replaced if it exists.
        key_added: key of obsm.
        overwrite: replace what is there under the names that are written.
        more: what `finish` writes, such as `("obsm", "X_umap")`.
        finish: called with the file when all embeddings are in it, before it appears.

    Returns:
        The record that `uns["omics"][key_added]` holds.
    """
    with open_h5ad_output(
        out,
        source,
        store,
        key_added=key_added,
        width=run.readout.width,
        labels=(),
        overwrite=overwrite,
        more=[*run.columns(key_added), *more],
    ) as output:
        sketch = run.sketch(store)
        for result in run.results(store, sketch):
            output.add(result)
        output.sources = None if sketch is None else sketch.sources
        output.record = run.record(store, sketch, counts=counts_place(source, store))
        output.record["num_without_embedding"] = output.num_without
        if finish is not None:
            finish(output)
    return output.record


def embed_genes_file(
    source: str | Path,
    model: Bundle | str | Path,
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
        model: a loaded bundle, its folder, or a name, as in `embed`.
        out: the table, `.parquet` or `.csv`, with the columns gene, symbol, num_cells, e0, e1, ...
        layer: whose hidden states these are, as in `embed`.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        device: `auto`, `cpu`, `cuda`, ...
        **options: `batch_tokens`, `batch_size` and `show` of `embed`.

    Returns:
        The vectors, and how well the genes are known.

    Raises:
        UsageError: `out` is no name of a table.
        ConfigError: no such layer in this model.
        MissingPathError: no such file, store or bundle.
        InputDataError: no counts, too few genes that the model knows, or a damaged file.
    """
    from omics.data.cell_source import open_cells
    from omics.models.gene_embedding import embed_genes
    from omics.models.inference import bind_genes
    from omics.models.readout import gene_layer, layer_name

    check_suffix(Path(out))
    given = EmbeddingOptions(layer=layer, precision=precision, device=device, **options)
    loaded, chosen, show = given.opened(model)
    with open_cells(source) as store, show("embedding", len(store)) as advance:
        genes = embed_genes(
            loaded,
            store,
            layer=layer,
            batch_tokens=given.batch_tokens,
            batch_size=given.batch_size,
            precision=precision,
            device=chosen,
            on_progress=advance,
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


@contextlib.contextmanager
def _cells_and_store(
    source: AnnData | CellStore | str | Path, wanted: Sequence[tuple[str, str]]
) -> Iterator[tuple[AnnData, CellStore, str]]:
    """Yield the cells to write to, a store of their counts, and where the counts were."""
    from anndata import AnnData

    from omics.data.cell_source import open_cells
    from omics.data.storage.store import CellStore

    if isinstance(source, CellStore):
        yield source.to_anndata(), source, "X"
    elif isinstance(source, AnnData):
        _refuse(wanted, source)
        with tempfile.TemporaryDirectory(prefix="omics-") as scratch:
            store, place = store_of(source, Path(scratch) / "cells.store")
            yield source, store, place
    elif Path(source).is_file():
        adata = read_cells(source)
        _refuse(wanted, adata)
        with open_cells(source) as store:
            yield adata, store, str(store.provenance["location"])
    else:
        with open_cells(source) as store:
            yield store.to_anndata(), store, "X"


def _refuse(wanted: Sequence[tuple[str, str]], adata: AnnData) -> None:
    refuse_taken(wanted, {"obsm": set(adata.obsm), "obs": set(adata.obs.columns)})


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
    adata: AnnData,
    key_added: str,
    *,
    embedding: Array,
    reasons: Array,
    sketch: Sketch | None,
    record: dict[str, Any],
) -> None:
    import pandas as pd

    records = dict(adata.uns.get("omics", {}))
    adata.obsm[key_added] = embedding
    adata.obs[REASON_COLUMN] = pd.Categorical.from_codes(reasons, pd.Index(REASONS))
    column = source_column(key_added)
    if sketch is not None:
        adata.obs[column] = pd.Categorical.from_codes(sketch.sources, pd.Index(SOURCES))
    elif "sketch" in records.get(key_added, {}):  # Of the embedding that was replaced.
        adata.obs.drop(columns=column, errors="ignore", inplace=True)
    # A plain dict: AnnData may hand out a view of uns that is not written back.
    adata.uns["omics"] = {**records, key_added: record}
