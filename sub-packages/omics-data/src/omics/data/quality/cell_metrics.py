"""Per-cell and per-gene quality metrics of a store, in one pass over blocks of cells.

- The numbers are those of `scanpy.pp.calculate_qc_metrics`, which runs on every block: what it says
  of a cell depends on that cell alone, and sums over blocks give what it says of a gene. On the
  whole matrix as a dask array it gives the same, in eight passes over the store.
- scanpy's compiled loops are parallel inside and not safe in concurrent threads where numba has no
  thread-safe layer, so one block at a time is measured in a process, while others are being read.
- Memory: one block per thread, about 120 bytes per cell and 50 per gene for the results.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.quality.block_runner import open_runner
from omics.data.quality.gene_sets import find_gene_sets, gene_set_remarks
from omics.data.quality.qc_extra import import_extra
from omics.data.quality.store_blocks import cut_rows, read_block

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.data.quality.block_runner import BlockRunner
    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

TOP_GENES = (50, 100, 200, 500)

SCANPY_LOOPS = threading.Lock()


@dataclass(frozen=True, eq=False, kw_only=True)
class QualityMetrics:
    """What was measured of every cell and gene, under scanpy's names.

    Attributes:
        cells: [n] each: `n_genes_by_counts`, `total_counts`, `pct_counts_in_top_50_genes` (100, 200,
            500, as far as there are so many genes), and of every gene set that was found
            `total_counts_mt` and `pct_counts_mt` (percent of the cell's counts; NaN for an empty
            cell), likewise `_ribo` and `_hb`.
        genes: [g] each: `n_cells_by_counts`, `mean_counts`, `pct_dropout_by_counts`, `total_counts`.
        gene_sets: the number of genes in each set.
        remarks: sentences about what could not be measured.
    """

    cells: dict[str, Array]
    genes: dict[str, Array]
    gene_sets: dict[str, int]
    remarks: tuple[str, ...]


def measure_cells(
    store: CellStore,
    *,
    runner: BlockRunner | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> QualityMetrics:
    """Measure every cell and gene of a store.

    Args:
        store: the store.
        runner: where to compute; None computes in threads of this process.
        on_progress: called with the number of cells just measured.

    Returns:
        The metrics, equal to those of `scanpy.pp.calculate_qc_metrics` on the matrix in memory.

    Raises:
        MissingExtraError: scanpy or dask is not installed.
        CorruptStoreError: the store is damaged.
    """
    import_extra("scanpy")
    if runner is None:
        with open_runner(store) as own:
            return measure_cells(store, runner=own, on_progress=on_progress)
    num_cells, num_genes = store.shape
    found = find_gene_sets(store.genes)
    sets = {name: positions for name, positions in found.items() if len(positions)}
    tops = [top for top in TOP_GENES if top <= num_genes]
    cells: dict[str, Array] = {}
    detected = np.zeros(num_genes, np.int64)
    totals = np.zeros(num_genes, np.float64)
    cuts = cut_rows(store)
    blocks = [
        (a, b, sets, tops) for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
    ]
    measured = runner.map(measure_block, blocks)
    for (begin, end, _, _), (columns, n_cells, total) in zip(blocks, measured, strict=True):
        for name, values in columns.items():
            if name not in cells:
                cells[name] = np.empty(num_cells, values.dtype)
            cells[name][begin:end] = values
        detected += n_cells
        totals += total
        if on_progress is not None:
            on_progress(end - begin)
    return QualityMetrics(
        cells=cells or measure_block(store, (0, 0, sets, tops))[0],
        genes=_of_genes(detected, totals, num_cells),
        gene_sets={name: len(positions) for name, positions in found.items()},
        remarks=tuple(gene_set_remarks(store.genes, found)),
    )


def measure_block(
    store: CellStore, block: tuple[int, int, dict[str, Array], list[int]]
) -> tuple[dict[str, Array], Array, Array]:
    """Measure a range of cells; runs in a task.

    Args:
        store: the store.
        block: first row, the row after the last, positions of gene sets, ranks of top genes.

    Returns:
        Columns per cell, int64 [g] cells with each gene, float64 [g] counts of each gene.
    """
    import anndata
    import pandas as pd

    scanpy = import_extra("scanpy")
    begin, end, sets, tops = block
    matrix = read_block(store, np.arange(begin, end))
    genes = pd.DataFrame(index=[str(gene) for gene in range(matrix.shape[1])])
    for name, positions in sets.items():
        genes[name] = np.isin(np.arange(matrix.shape[1]), positions)
    names = [str(row) for row in range(begin, end)]
    adata = anndata.AnnData(matrix, obs=pd.DataFrame(index=names), var=genes)
    with SCANPY_LOOPS:
        of_cells, of_genes = scanpy.pp.calculate_qc_metrics(
            adata, qc_vars=list(sets), percent_top=tops or None, log1p=False
        )
    return (
        {str(name): of_cells[name].to_numpy() for name in of_cells.columns},
        of_genes["n_cells_by_counts"].to_numpy(np.int64),
        of_genes["total_counts"].to_numpy(np.float64),
    )


def _of_genes(detected: Array, totals: Array, num_cells: int) -> dict[str, Array]:
    cells = max(num_cells, 1)
    return {
        "n_cells_by_counts": detected,
        "mean_counts": totals / cells,
        "pct_dropout_by_counts": (1 - detected / cells) * 100,
        "total_counts": totals,
    }
