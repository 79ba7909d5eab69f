"""Embeddings, annotation, attribution, baselines, intervals and one-page reports.

Names load on first use: scikit-learn, matplotlib and torch are imported when they are needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "Annotation": "annotation",
    "Attribution": "attribution",
    "AttributionOptions": "explained_cells",
    "CellMetric": "intervals",
    "EvalResult": "results",
    "HiddenFigure": "hidden_values",
    "HiddenScores": "hidden_values",
    "Interval": "intervals",
    "ReportData": "report",
    "annotate": "annotation",
    "attribute": "attribution",
    "attribute_files": "attribution",
    "bin_figures": "hidden_values",
    "bootstrap_interval": "intervals",
    "bootstrap_t_interval": "intervals",
    "class_table": "classification",
    "clopper_pearson_interval": "intervals",
    "confidence_interval": "intervals",
    "confusion_matrix": "classification",
    "embed": "embedding",
    "embed_file": "embedding",
    "embed_genes_file": "embedding",
    "highly_variable_genes": "highly_variable",
    "mean_metric": "intervals",
    "method_for": "intervals",
    "paired_difference": "intervals",
    "read_results": "results",
    "render_report": "report",
    "run_baselines": "baselines",
    "score": "classification",
    "transfer_labels": "annotation",
    "wilson_interval": "intervals",
    "write_results": "results",
}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
