"""Labels of cells without a split: each labelled cell answered by the cells of the other folds.

- Outer folds are those of `LabelledFolds`; what a method chooses for itself, such as the strength of the
  logistic probe, it chooses among the cells that teach: cross-validation is nested.
- A threshold for `unknown` is found for each fold on the answers to the cells of the others.
- Cells without a label are answered by all labelled ones, and are not scored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.eval.annotation import (
    Annotation,
    embedding_of,
    out_of_fold,
    transfer_labels,
    write_answers,
)
from omics.eval.confidence_calibration import lowest_trusted

if TYPE_CHECKING:
    from anndata import AnnData

    from omics.eval.comparison import LabelledFolds

Array = np.ndarray[Any, np.dtype[Any]]


def annotate_folds(
    adata: AnnData,
    cells: LabelledFolds,
    *,
    key: str,
    use_rep: str = "X_omics",
    method: str = "logistic",
    min_accuracy: float | None = None,
    seed: int = 0,
) -> None:
    """Label all cells, those with a label by the others alone.

    Args:
        adata: cells with `obsm[use_rep]`; changed in place. The columns are those of `annotate`.
        cells: the labelled ones, dealt out to folds.
        key: prefix of the columns.
        use_rep: the embedding in `obsm`.
        method: `logistic`, `knn` or `centroid`.
        min_accuracy: share of the answers that is to be right: less sure cells are `unknown`; None
            answers all.
        seed: of what a method holds out for itself.

    Raises:
        UnknownNameError: no such embedding or method.
        UsageError: a class is called `unknown`, and cells are to be, too.
        InputDataError: the cells outside a fold hold fewer than two classes.
    """
    embedding = embedding_of(adata, use_rep)
    points, donors = embedding[cells.query], cells.query_groups
    given = out_of_fold(points, cells.truth, cells.folds, method=method, groups=donors, seed=seed)
    labels = np.full(adata.n_obs, None, dtype=object)
    confidence = np.full(adata.n_obs, np.nan, np.float32)
    labels[cells.query], confidence[cells.query] = given.labels, given.confidence
    others = np.setdiff1d(np.arange(adata.n_obs), cells.query)
    if len(others):
        found = transfer_labels(
            points, cells.truth, embedding[others], method=method, groups=donors, seed=seed
        )
        labels[others], confidence[others] = found.labels, found.confidence
    overall, thresholds = None, None
    if min_accuracy is not None:
        overall, thresholds = fold_thresholds(
            cells,
            given.confidence,
            np.asarray(given.labels == cells.truth, np.bool_),
            num_cells=adata.n_obs,
            min_accuracy=min_accuracy,
        )
    write_answers(
        adata,
        key,
        Annotation(labels, confidence, cells.classes),
        unknown_below=overall,
        thresholds=thresholds,
    )


def fold_thresholds(
    cells: LabelledFolds, confidence: Array, right: Array, *, num_cells: int, min_accuracy: float
) -> tuple[float, Array]:
    """Return thresholds of confidence, for the cells of each fold by those of the others.

    Args:
        cells: dealt out to folds.
        confidence: float [m], of their answers; NaN where there is none.
        right: bool [m].
        num_cells: of the file.
        min_accuracy: share of the answers that is to be right.

    Returns:
        The threshold of all labelled cells, for those without a label; and one for every cell, float64
        [num_cells].
    """
    answered = ~np.isnan(confidence)

    def lowest(kept: Array) -> float:
        sure = confidence[kept & answered].astype(np.float64)
        return lowest_trusted(sure, right[kept & answered], min_accuracy=min_accuracy)

    overall = lowest(answered)
    thresholds = np.full(num_cells, overall)
    for fold in np.unique(cells.folds):
        asked = cells.folds == fold
        thresholds[cells.query[asked]] = lowest(~asked)
    return overall, thresholds
