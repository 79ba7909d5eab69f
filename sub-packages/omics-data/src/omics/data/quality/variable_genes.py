"""Highly variable genes of a store, out of core, in two flavours.

- `seurat` (Satija et al. 2015): scanpy's own `highly_variable_genes` on log-normalised counts as a
  dask array; scanpy forms the moments block by block.
- `seurat_v3` (Stuart et al. 2019) on raw counts: scanpy's function needs the matrix in memory, so
  the two passes it makes (moments of each gene; sums of counts clipped at a fitted spread) are made
  here over blocks. The curve is fitted by the same library, scikit-misc, and genes are ranked alike.
- With batches each is looked at by itself, and the tables are brought together as scanpy does.
- Memory: one block per thread and a few numbers per gene and batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError, nearest
from omics.data.quality.block_runner import open_runner
from omics.data.quality.qc_extra import import_extra
from omics.data.quality.store_blocks import cut_rows, dask_anndata

if TYPE_CHECKING:
    import pandas as pd

    from omics.data.quality.block_runner import BlockRunner
    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

FLAVOURS = ("seurat", "seurat_v3")
TARGET_SUM = 1e4
_SPAN = 0.3
_SEURAT = ("highly_variable", "means", "dispersions", "dispersions_norm")


def highly_variable_genes(
    store: CellStore,
    num_genes: int,
    *,
    rows: Array | None = None,
    flavor: str = "seurat",
    batch: str | None = None,
    runner: BlockRunner | None = None,
) -> dict[str, Array]:
    """Find the genes that vary most between cells, beyond what their mean explains.

    Args:
        store: of counts.
        num_genes: how many to find.
        rows: int64 [n], the cells to look at, ascending; None takes all.
        flavor: `seurat` or `seurat_v3`.
        batch: an obs column: genes are ranked within each batch, and those that many batches agree
            on come first.
        runner: where to compute; None computes here.

    Returns:
        [g] each: `highly_variable` (bool) and what the flavour measured, under scanpy's names:
        `means`, `dispersions`, `dispersions_norm`; or `means`, `variances`, `variances_norm`,
        `highly_variable_rank` (NaN for genes that are not among the first). With a batch column
        `highly_variable_nbatches` too.

    Raises:
        UsageError: an unknown flavour, or no genes asked for.
        UnknownNameError: there is no such obs column.
        InputDataError: the store holds no counts, no cells, or batches are unnamed.
        MissingExtraError: scanpy, dask or (for seurat_v3) scikit-misc is not installed.
    """
    if flavor not in FLAVOURS:
        raise UsageError(f"There is no flavour {flavor!r}.{nearest(flavor, FLAVOURS)}")
    if num_genes < 1:
        raise UsageError(f"The number of highly variable genes is {num_genes}; ask for some.")
    if store.value_kind != "counts":
        raise InputDataError(f"{store.path} holds no raw counts, from which variable genes follow.")
    chosen = np.arange(len(store)) if rows is None else np.asarray(rows, np.int64)
    if len(chosen) < 2:
        raise InputDataError(f"{len(chosen)} cells are too few to see genes vary.")
    parts = [chosen] if batch is None else _rows_by_batch(store, chosen, batch)
    by_batch = batch is not None
    if runner is None:
        with open_runner(store) as own:
            return _found(own, flavor, parts, num_genes=num_genes, by_batch=by_batch)
    return _found(runner, flavor, parts, num_genes=num_genes, by_batch=by_batch)


def _found(
    runner: BlockRunner, flavor: str, parts: list[Array], *, num_genes: int, by_batch: bool
) -> dict[str, Array]:
    if flavor == "seurat_v3":
        return _seurat_v3(runner, parts, num_genes=num_genes, by_batch=by_batch)
    number = min(num_genes, runner.store.shape[1])
    if by_batch:
        return _seurat_by_batch(runner.store, parts, number)
    table = _seurat(runner.store, parts[0], number, expressed_only=False)
    return {name: table[name].to_numpy() for name in _SEURAT}


def _rows_by_batch(store: CellStore, chosen: Array, column: str) -> list[Array]:
    from omics.data.obs_groups import group_codes

    codes, _ = group_codes(store, column)
    mine = codes[chosen]
    if (mine < 0).any():
        raise InputDataError(
            f"{int((mine < 0).sum()):,} cells have no value in the obs column {column!r}, so it is "
            "unknown within which batch their genes vary. Leave them or the batch column out."
        )
    parts = [chosen[mine == code] for code in np.unique(mine)]
    if min(len(part) for part in parts) < 2:
        raise InputDataError(f"A batch of {column!r} has a single cell, in which no gene can vary.")
    return parts


def _seurat(store: CellStore, rows: Array, num_genes: int, *, expressed_only: bool) -> pd.DataFrame:
    """Return scanpy's table of the genes, computed out of core."""
    scanpy = import_extra("scanpy")
    adata = dask_anndata(store, rows)
    if expressed_only:
        scanpy.pp.filter_genes(adata, min_cells=1)
    scanpy.pp.normalize_total(adata, target_sum=TARGET_SUM)
    scanpy.pp.log1p(adata)
    return scanpy.pp.highly_variable_genes(
        adata, n_top_genes=min(num_genes, adata.n_vars), inplace=False
    )


def _seurat_by_batch(store: CellStore, parts: list[Array], num_genes: int) -> dict[str, Array]:
    """Bring the tables of batches together as scanpy does.

    Its own way of doing so hands the cells of all batches to the task of each, and computes inside
    of tasks; here only the cells of a batch are looked at for it.
    """
    import pandas as pd

    tables = []
    for rows in parts:
        table = _seurat(store, rows, num_genes, expressed_only=True)
        table = table[list(_SEURAT)].astype({"highly_variable": np.int64})
        tables.append(table.reindex(store.genes.ids, fill_value=0))
    joined = pd.concat(tables)
    genes = joined.groupby(joined.index, observed=True).agg(
        {name: "sum" if name == "highly_variable" else "mean" for name in _SEURAT}
    )
    genes = genes.rename(columns={"highly_variable": "highly_variable_nbatches"}).sort_values(
        ["highly_variable_nbatches", "dispersions_norm"], ascending=False, na_position="last"
    )
    genes["highly_variable"] = np.arange(len(genes)) < num_genes
    genes = genes.loc[store.genes.ids]
    return {name: genes[name].to_numpy() for name in (*_SEURAT, "highly_variable_nbatches")}


def _seurat_v3(
    runner: BlockRunner, parts: list[Array], *, num_genes: int, by_batch: bool
) -> dict[str, Array]:
    import pandas as pd

    import_extra("skmisc.loess")
    total_genes = runner.store.shape[1]
    num_cells = sum(len(part) for part in parts)
    whole = np.zeros((2, total_genes))
    spreads = []
    for part in parts:
        sums, squares = _summed(runner, gene_moments, part)
        whole += (sums, squares)
        mean, variance = _mean_variance(sums, squares, len(part))
        spread = _fitted_spread(mean, variance)
        clip = spread * np.sqrt(len(part)) + mean
        clipped, clipped_squares = _summed(runner, clipped_moments, part, clip)
        raised = len(part) * mean**2 + clipped_squares - 2 * clipped * mean
        spreads.append(raised / ((len(part) - 1) * spread**2))
    normalised = np.stack(spreads)
    ranks = np.argsort(np.argsort(-normalised, axis=1), axis=1).astype(np.float64)
    agreeing = (ranks < num_genes).sum(axis=0)
    ranks[ranks >= num_genes] = np.nan
    rank = np.full(total_genes, np.nan)
    rank[agreeing > 0] = np.nanmedian(ranks[:, agreeing > 0], axis=0)
    # The library sorts by rank, then by the number of agreeing batches; the frame keeps its ties.
    order = pd.DataFrame({"rank": rank, "agreeing": agreeing}).sort_values(
        ["rank", "agreeing"], ascending=[True, False], na_position="last"
    )
    chosen = np.zeros(total_genes, bool)
    chosen[order.index[:num_genes]] = True
    mean, variance = _mean_variance(whole[0], whole[1], num_cells)
    found = {
        "highly_variable": chosen,
        "means": mean,
        "variances": variance,
        "variances_norm": normalised.mean(axis=0),
        "highly_variable_rank": rank,
    }
    return {**found, "highly_variable_nbatches": agreeing} if by_batch else found


def _summed(
    runner: BlockRunner, function: Any, rows: Array, clip: Array | None = None
) -> tuple[Array, Array]:
    cuts = cut_rows(runner.store, rows)
    blocks = [(rows[a:b], clip) for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)]
    total = np.zeros((2, runner.store.shape[1]))
    for block in runner.map(function, blocks):
        total += block
    return total[0], total[1]


def gene_moments(store: CellStore, block: tuple[Array, Array | None]) -> Array:
    """Return float64 [2, g], sum and sum of squares of each gene over some cells; runs in a task.

    Args:
        store: the store.
        block: rows [n], None.
    """
    batch = store.take(block[0])
    counts = batch.counts.astype(np.float64)
    return _sums_of_genes(batch.genes, counts, batch.num_genes)


def clipped_moments(store: CellStore, block: tuple[Array, Array | None]) -> Array:
    """Return float64 [2, g], the same sums of counts cut off at a limit for each gene.

    Args:
        store: the store.
        block: rows [n], limits [g].
    """
    batch = store.take(block[0])
    assert block[1] is not None
    counts = np.minimum(batch.counts.astype(np.float64), block[1][batch.genes])
    return _sums_of_genes(batch.genes, counts, batch.num_genes)


def _sums_of_genes(genes: Array, counts: Array, num_genes: int) -> Array:
    positions = genes.astype(np.int64)
    sums = np.bincount(positions, weights=counts, minlength=num_genes)
    return np.stack([sums, np.bincount(positions, weights=counts * counts, minlength=num_genes)])


def _mean_variance(sums: Array, squares: Array, num_cells: int) -> tuple[Array, Array]:
    """Return mean and unbiased variance; a gene with equal counts everywhere has exactly none."""
    spread = num_cells * squares - sums * sums
    return sums / num_cells, np.maximum(spread, 0) / (num_cells * (num_cells - 1.0))


def _fitted_spread(mean: Array, variance: Array) -> Array:
    """Return float64 [g], the standard deviation that a gene's mean lets one expect."""
    fit = import_extra("skmisc.loess").loess
    varies = variance > 0
    fitted = np.zeros(len(mean))
    try:
        model = fit(np.log10(mean[varies]), np.log10(variance[varies]), span=_SPAN, degree=2)
        model.fit()
    except ValueError as error:
        raise InputDataError(
            f"The {int(varies.sum()):,} genes that vary do not allow a curve of variance against "
            f"mean ({error}). Use the flavour seurat, or more cells."
        ) from error
    fitted[varies] = model.outputs.fitted_values
    return np.sqrt(10**fitted)
