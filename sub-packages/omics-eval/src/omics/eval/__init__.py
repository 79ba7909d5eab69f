"""Embeddings, annotation, integration, attribution, baselines, intervals and one-page reports.

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
    "DatasetScores": "benchmarking.dataset_scores",
    "Difference": "many_comparisons",
    "Estimate": "embedding_time",
    "EvalResult": "results",
    "HiddenFigure": "hidden_values",
    "HiddenScores": "hidden_values",
    "Integration": "integration.integration_table",
    "Interval": "intervals",
    "MeasuredScreen": "perturbation_inputs",
    "PerturbationComparison": "perturbation_comparison",
    "PerturbationTruth": "perturbation_scores",
    "PredictedScreen": "perturbation_inputs",
    "Pseudobulks": "pseudobulk",
    "ReportData": "report",
    "ScreenColumns": "perturbation_inputs",
    "TrainingEffects": "perturbation_baselines",
    "annotate": "annotation",
    "attribute": "attribution",
    "attribute_files": "attribution",
    "benchmark": "benchmarking.dataset_scores",
    "bin_figures": "hidden_values",
    "bootstrap_interval": "intervals",
    "bootstrap_t_interval": "intervals",
    "calibration": "confidence_calibration",
    "class_table": "classification",
    "clopper_pearson_interval": "intervals",
    "compare_perturbations": "perturbation_comparison",
    "confidence_interval": "intervals",
    "confusion_matrix": "classification",
    "copies_of": "benchmarking.dataset_scores",
    "differential_genes": "perturbation_scores",
    "embed": "embedding",
    "embed_and_report": "embedding_report",
    "embed_file": "embedding",
    "embed_genes_file": "embedding",
    "highly_variable_genes": "highly_variable",
    "holm": "many_comparisons",
    "integrate": "integration.integration_scores",
    "mean_metric": "intervals",
    "method_for": "intervals",
    "paired_difference": "intervals",
    "plot_umap": "umap_plot",
    "pseudobulk_of_counts": "pseudobulk",
    "pseudobulk_of_values": "pseudobulk",
    "read_measured": "perturbation_inputs",
    "read_predicted": "perturbation_inputs",
    "read_results": "results",
    "render_report": "report",
    "run_baselines": "baselines",
    "score": "classification",
    "score_embeddings": "integration.integration_scores",
    "transfer_labels": "annotation",
    "umap": "umap_plot",
    "wilson_interval": "intervals",
    "write_results": "results",
}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
