"""Doublet scores by scanpy's Scrublet, batch by batch.

- Doublets form within a batch (one loading of the instrument), so each batch is scored alone and is
  in memory while it is: the one part of quality control that is not out of core.
- What a batch will take is estimated before it is read; one that would take more than the limit is
  an error that names the option, not a machine that stops.
- A batch's simulated doublets depend on the seed and the batch's cells, not on the other batches.
- Method: Wolock, Lopez and Klein 2019 (Cell Systems 8:281), in scanpy's implementation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, ResourceError, UsageError
from omics.data.quality.block_runner import open_runner
from omics.data.quality.cell_metrics import SCANPY_LOOPS
from omics.data.quality.qc_extra import import_extra
from omics.data.quality.store_blocks import read_block

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.data.quality.block_runner import BlockRunner
    from omics.data.quality.thresholds import Batches
    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

DOUBLET_MEMORY_GB = 8.0
MIN_BATCH_CELLS = 50
HISTOGRAM_BINS = 50
_COMPONENTS = 30
_MIN_GENES = 3
# Copies of the counts, and dense copies of the variable genes of cells and simulated doublets.
_BYTES_PER_ENTRY = 80
_BYTES_PER_VALUE = 40
_VARIABLE_SHARE = 0.15


@dataclass(frozen=True, eq=False, kw_only=True)
class DoubletScores:
    """How much each cell looks like two.

    Attributes:
        scores: float64 [n], from 0 to 1; NaN where a cell could not be scored.
        called: bool [n], above the threshold that Scrublet found for its batch.
        batches: per batch `batch`, `cells`, `threshold` (None if none was found), `called`, and the
            histograms `observed` and `simulated` over 50 equal bins from 0 to 1.
        remarks: sentences about batches without scores or threshold.
    """

    scores: Array
    called: Array
    batches: tuple[dict[str, Any], ...]
    remarks: tuple[str, ...]


def score_doublets(
    store: CellStore,
    batches: Batches,
    *,
    seed: int = 0,
    max_memory_gb: float = DOUBLET_MEMORY_GB,
    runner: BlockRunner | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> DoubletScores:
    """Score every cell of a store, one batch at a time.

    Args:
        store: of counts.
        batches: which cells were measured together.
        seed: of the simulated doublets.
        max_memory_gb: what the largest batch may take, in GB (10^9 bytes).
        runner: where to compute; None computes here. On a cluster each worker holds one batch.
        on_progress: called with the number of cells just scored.

    Returns:
        The scores. Batches of fewer than 50 cells, and cells with fewer than 3 genes, have none.

    Raises:
        InputDataError: the store holds no counts, or a batch has too few variable genes.
        ResourceError: a batch would take more memory than allowed.
        MissingExtraError: scanpy is not installed.
    """
    import_extra("scanpy")
    import_extra("skimage.filters")
    if runner is None:
        with open_runner(store) as own:
            return score_doublets(
                store,
                batches,
                seed=seed,
                max_memory_gb=max_memory_gb,
                runner=own,
                on_progress=on_progress,
            )
    if store.value_kind != "counts":
        raise InputDataError(f"{store.path} holds no raw counts, which doublet scores are made of.")
    if seed >= 2**32:
        raise UsageError(f"The seed is {seed}; Scrublet takes seeds below 2**32.")
    members = batches.members()
    _require_memory(store, batches, members, max_memory_gb)
    scores = np.full(len(store), np.nan)
    called = np.zeros(len(store), bool)
    said: list[dict[str, Any]] = []
    remarks: list[str] = []
    large = [each for each, rows in enumerate(members) if len(rows) >= MIN_BATCH_CELLS]
    small = sum(0 < len(rows) < MIN_BATCH_CELLS for rows in members)
    if small:
        remarks.append(
            f"{small} batch(es) have fewer than {MIN_BATCH_CELLS} cells: too few for doublet scores"
        )
    tasks = [(members[each], batches.names[each], seed) for each in large]
    for (rows, name, _), found in zip(
        tasks, runner.map(score_batch, tasks, wide=False), strict=True
    ):
        scores[rows], called[rows], record = found
        said.append({"batch": None if batches.column is None else name, **record})
        if record["threshold"] is None:
            remarks.append(
                f"Scrublet found no doublet threshold for batch {name!r}: none of its cells is called"
            )
        if on_progress is not None:
            on_progress(len(rows))
    return DoubletScores(scores=scores, called=called, batches=tuple(said), remarks=tuple(remarks))


def estimate_bytes(num_cells: int, num_entries: int, num_genes: int) -> int:
    """Return about how much memory Scrublet takes for a batch.

    Args:
        num_cells: of the batch.
        num_entries: expressed genes of all its cells together.
        num_genes: of the store.
    """
    variable = min(num_genes, max(2000, int(_VARIABLE_SHARE * num_genes)))
    return num_entries * _BYTES_PER_ENTRY + 3 * num_cells * variable * _BYTES_PER_VALUE


def _require_memory(
    store: CellStore, batches: Batches, members: list[Array], max_memory_gb: float
) -> None:
    lengths = store.lengths
    for name, rows in zip(batches.names, members, strict=True):
        needed = estimate_bytes(len(rows), int(lengths[rows].sum()), store.shape[1]) / 1e9
        if needed > max_memory_gb:
            what = "The cells" if batches.column is None else f"Batch {name!r} of {batches.column}"
            advice = (
                "Give the column of the batches with --batch"
                if batches.column is None
                else "Choose a column with smaller batches"
            )
            raise ResourceError(
                f"{what} ({len(rows):,} cells) would take about {needed:.1f} GB for doublet "
                f"scores, more than the {max_memory_gb:g} GB allowed. {advice}, or raise "
                f"--doublet-memory."
            )


def score_batch(
    store: CellStore, batch: tuple[Array, str, int]
) -> tuple[Array, Array, dict[str, Any]]:
    """Score the cells of one batch; runs in a task.

    Args:
        store: the store.
        batch: its rows [n], its name, the seed.

    Returns:
        Scores float64 [n], calls bool [n], and the batch's record (see `DoubletScores`).

    Raises:
        InputDataError: the batch has too few variable genes.
    """
    import anndata
    import pandas as pd

    scanpy = import_extra("scanpy")
    rows, name, seed = batch
    names = [str(row) for row in rows.tolist()]
    components = min(_COMPONENTS, int((store.lengths[rows] >= _MIN_GENES).sum()) - 1)
    with SCANPY_LOOPS:  # One batch at a time in a process: it may fill the memory.
        matrix = read_block(store, rows).astype(np.float32)
        adata = anndata.AnnData(matrix, obs=pd.DataFrame(index=names))
        try:
            with warnings.catch_warnings():
                # Of simulated doublets without counts in the variable genes, which are harmless.
                warnings.simplefilter("ignore", UserWarning)
                scanpy.pp.scrublet(
                    adata, random_state=seed, n_prin_comps=max(components, 1), verbose=False
                )
        except ValueError as error:
            raise InputDataError(
                f"Scrublet cannot score batch {name!r} of {store.path} ({len(rows):,} cells): "
                f"{error}. Its cells may be too few or too alike; leave doublet scores out, or "
                "choose larger batches."
            ) from error
    scores = adata.obs["doublet_score"].to_numpy(np.float64)
    called = adata.obs["predicted_doublet"].eq(True).to_numpy(bool)
    threshold = adata.uns["scrublet"].get("threshold")
    simulated = np.asarray(adata.uns["scrublet"]["doublet_scores_sim"])
    return (
        scores,
        called,
        {
            "cells": len(rows),
            "threshold": None if threshold is None else float(threshold),
            "called": int(called.sum()),
            "observed": _histogram(scores[np.isfinite(scores)]),
            "simulated": _histogram(simulated),
        },
    )


def _histogram(scores: Array) -> list[int]:
    found, _ = np.histogram(np.clip(scores, 0, 1), bins=HISTOGRAM_BINS, range=(0, 1))
    return [int(count) for count in found]
