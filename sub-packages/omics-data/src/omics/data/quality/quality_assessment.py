"""`assess_quality`: metrics, rules, doublets and variable genes of a store, in one call.

- The matrix is read in blocks: once for the metrics, once more for variable genes (of the cells that
  are kept), and batch by batch for doublets if they are asked for.
- Nothing is removed: the table has every cell and says why it would be left out.
- `quality_score` orders the cells that pass: the mean, over counts, genes, mitochondrial share and
  doublet score (the latter two reversed), of a cell's rank within its batch, from 0 to 1.
- Memory: some 150 bytes per cell, one block per thread; for doublets one batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError
from omics.data.quality.block_runner import open_runner
from omics.data.quality.cell_metrics import measure_cells
from omics.data.quality.doublets import DOUBLET_MEMORY_GB, DoubletScores, score_doublets
from omics.data.quality.quality_table import QualityTable
from omics.data.quality.thresholds import (
    COUNTS,
    FAILS,
    GENES,
    MITO,
    Batches,
    RuleOutcome,
    Thresholds,
    apply_thresholds,
)
from omics.data.quality.variable_genes import highly_variable_genes

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.data.quality.block_runner import BlockRunner
    from omics.data.quality.cell_metrics import QualityMetrics
    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

WITHOUT_BATCH = "(none)"


def assess_quality(
    store: CellStore,
    *,
    thresholds: Thresholds | None = None,
    batch: str | None = None,
    doublets: bool = False,
    doublet_memory_gb: float = DOUBLET_MEMORY_GB,
    hvg: int = 0,
    hvg_flavor: str = "seurat",
    seed: int = 0,
    scheduler: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> QualityTable:
    """Measure the cells of a store and say which of them to keep.

    Args:
        store: of counts (of a store of other values only the metrics are made).
        thresholds: the rules; None sets none, and every cell is kept.
        batch: obs column of the batches, within which medians, ranks and doublets are taken.
        doublets: score doublets with Scrublet, and leave out those that it calls.
        doublet_memory_gb: what a batch may take for that, in GB.
        hvg: how many highly variable genes to find; 0 for none.
        hvg_flavor: `seurat` or `seurat_v3`.
        seed: of the simulated doublets.
        scheduler: address of a dask scheduler; None computes in threads of this process.
        on_progress: called with the number of cells just measured, and again as they are scored.

    Returns:
        The table.

    Raises:
        UnknownNameError: there is no such obs column.
        UsageError: thresholds, seed, flavour or address cannot be used.
        InputDataError: the store has no cells, or lacks what a rule needs.
        ResourceError: a batch would take too much memory, or the cluster was lost.
        MissingExtraError: scanpy or dask is not installed.
    """
    if seed < 0:
        raise UsageError(f"The seed is {seed}; it must not be negative.")
    if hvg < 0:
        raise UsageError(f"The number of highly variable genes is {hvg}; ask for some, or for 0.")
    if not len(store):
        raise InputDataError(f"{store.path} has no cells to assess.")
    limits = thresholds or Thresholds()
    batches = _batches(store, batch)
    with open_runner(store, scheduler) as runner:
        metrics = measure_cells(store, runner=runner, on_progress=on_progress)
        outcomes, remarks = apply_thresholds(metrics.cells, limits, batches)
        scores = None
        if doublets:
            scores = score_doublets(
                store,
                batches,
                seed=seed,
                max_memory_gb=doublet_memory_gb,
                runner=runner,
                on_progress=on_progress,
            )
            outcomes.append(_doublet_rule(scores))
        keep = np.ones(len(store), bool)
        for outcome in outcomes:
            keep &= ~outcome.fails
        variable = _variable(
            runner, np.flatnonzero(keep), number=hvg, flavor=hvg_flavor, batch=batch
        )
    cells = _cell_columns(metrics, batches, scores)
    cells.update({FAILS + outcome.name: outcome.fails for outcome in outcomes})
    cells["keep"] = keep
    cells["quality_score"] = _quality_score(cells, batches)
    genes = _gene_columns(store, metrics, limits.min_cells, variable)
    return QualityTable(
        names=np.asarray(store.obs.names, dtype=object),
        cells=cells,
        genes=genes,
        summary={
            **_described(store, seed, batch),
            **_counted(keep, genes["keep"], cells, outcomes),
            "thresholds": limits.to_dict(),
            "gene_sets": metrics.gene_sets,
            "doublets": None if scores is None else {"batches": list(scores.batches)},
            "highly_variable": _variable_record(variable, hvg_flavor),
            "remarks": [*metrics.remarks, *remarks, *(scores.remarks if scores else ())],
        },
    )


def _batches(store: CellStore, column: str | None) -> Batches:
    if column is None:
        return Batches(column=None, names=("all",), codes=np.zeros(len(store), np.int64))
    from omics.data.obs_groups import group_codes

    codes, names = group_codes(store, column)
    if (codes < 0).any():  # Cells without a batch are a batch of their own.
        codes, names = np.where(codes < 0, len(names), codes), (*names, WITHOUT_BATCH)
    return Batches(column=column, names=names, codes=codes)


def _doublet_rule(scores: DoubletScores) -> RuleOutcome:
    bounds = tuple(
        {"batch": each["batch"], "low": None, "high": each["threshold"]} for each in scores.batches
    )
    return RuleOutcome(name="doublet", column="doublet_score", fails=scores.called, bounds=bounds)


def _variable(
    runner: BlockRunner, rows: Array, *, number: int, flavor: str, batch: str | None
) -> dict[str, Array] | None:
    if not number:
        return None
    return highly_variable_genes(
        runner.store, number, rows=rows, flavor=flavor, batch=batch, runner=runner
    )


def _cell_columns(
    metrics: QualityMetrics, batches: Batches, scores: DoubletScores | None
) -> dict[str, Array]:
    cells = dict(metrics.cells)
    if batches.column is not None:
        cells["batch"] = np.array(batches.names, dtype=object)[batches.codes]
    if scores is not None:
        cells["doublet_score"] = scores.scores
    return cells


def _quality_score(cells: dict[str, Array], batches: Batches) -> Array:
    """Return float64 [n], the mean rank within the batch over all measures that exist."""
    from scipy.stats import rankdata

    measures = {COUNTS: 1.0, GENES: 1.0, MITO: -1.0, "doublet_score": -1.0}
    present = {name: sign for name, sign in measures.items() if name in cells}
    score = np.zeros(len(batches.codes))
    for rows in batches.members():
        for name, sign in present.items():
            # An unknown share or score counts as the worst.
            values = np.nan_to_num(sign * cells[name][rows].astype(np.float64), nan=-np.inf)
            score[rows] += (rankdata(values) - 0.5) / max(len(rows), 1)
    return score / len(present)


def _gene_columns(
    store: CellStore,
    metrics: QualityMetrics,
    min_cells: int | None,
    variable: dict[str, Array] | None,
) -> dict[str, Array]:
    columns: dict[str, Array] = {
        "gene": store.genes.ids.astype(object),
        "symbol": store.genes.symbols.astype(object),
        **metrics.genes,
    }
    columns["keep"] = columns["n_cells_by_counts"] >= (min_cells or 0)
    return {**columns, **(variable or {})}


def _described(store: CellStore, seed: int, batch: str | None) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "store": store.path.name,
        "store_digest": store.digest,
        "gene_digest": store.genes.digest,
        "seed": seed,
        "batch": batch,
        "versions": {name: version(name) for name in ("omics-data", "scanpy", "dask")},
    }


def _counted(
    keep: Array, genes_keep: Array, cells: dict[str, Array], outcomes: list[RuleOutcome]
) -> dict[str, Any]:
    reasons = np.zeros(len(keep), np.int64)
    for outcome in outcomes:
        reasons += outcome.fails
    shown = (GENES, COUNTS, MITO, "pct_counts_ribo", "pct_counts_hb", "doublet_score")
    medians = {}
    for name in shown:
        finite = cells[name][np.isfinite(cells[name])] if name in cells else np.empty(0)
        if len(finite):
            medians[name] = float(np.median(finite))
    return {
        "cells": len(keep),
        "cells_kept": int(keep.sum()),
        "cells_removed": int((~keep).sum()),
        "genes": len(genes_keep),
        "genes_kept": int(genes_keep.sum()),
        "medians": medians,
        "rules": [
            {
                "name": outcome.name,
                "column": outcome.column,
                "failed": int(outcome.fails.sum()),
                "failed_by_this_alone": int((outcome.fails & (reasons == 1)).sum()),
                "bounds": list(outcome.bounds),
            }
            for outcome in outcomes
        ],
    }


def _variable_record(variable: dict[str, Array] | None, flavor: str) -> dict[str, Any] | None:
    if variable is None:
        return None
    return {"flavor": flavor, "genes": int(variable["highly_variable"].sum())}
