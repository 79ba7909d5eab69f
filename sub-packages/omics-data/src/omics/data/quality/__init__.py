"""Quality control of a store, out of core: metrics, thresholds, doublets, variable genes, figures.

- Needs the extra `qc` (scanpy and dask); importing this package loads neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omics.data.quality.cell_metrics import QualityMetrics, measure_cells
    from omics.data.quality.doublets import DoubletScores, score_doublets
    from omics.data.quality.filtered_store import write_filtered_store
    from omics.data.quality.quality_assessment import assess_quality
    from omics.data.quality.quality_figures import draw_figures
    from omics.data.quality.quality_table import QualityTable, load_quality
    from omics.data.quality.store_blocks import dask_anndata, dask_matrix
    from omics.data.quality.thresholds import Thresholds
    from omics.data.quality.variable_genes import highly_variable_genes

__all__ = ["DoubletScores", "QualityMetrics", "QualityTable", "Thresholds", "assess_quality", "dask_anndata", "dask_matrix", "draw_figures", "highly_variable_genes", "load_quality", "measure_cells", "score_doublets", "write_filtered_store"]  # fmt: skip

_MODULES = {"DoubletScores": "doublets", "QualityMetrics": "cell_metrics", "QualityTable": "quality_table", "Thresholds": "thresholds", "assess_quality": "quality_assessment", "dask_anndata": "store_blocks", "dask_matrix": "store_blocks", "draw_figures": "quality_figures", "highly_variable_genes": "variable_genes", "load_quality": "quality_table", "measure_cells": "cell_metrics", "score_doublets": "doublets", "write_filtered_store": "filtered_store"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"omics.data.quality.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'omics.data.quality' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
