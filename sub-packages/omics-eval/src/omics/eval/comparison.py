"""Methods side by side on the same labelled cells of one split.

- `LabelledSplit` says once which cells teach and which are asked; every method gets the same.
- Only labelled cells teach or are scored; how many were not is kept and reported.
- A class that no training cell has cannot be predicted: its cells count as wrong for every
  method, and are named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError
from omics.eval.annotation import embedding_of, label_column, transfer_labels
from omics.eval.baselines import PCA_LOGISTIC, counts_of, run_baselines
from omics.eval.classification import (
    Scores,
    accuracy_metric,
    code_labels,
    macro_f1_metric,
    missing_labels,
    score,
    score_difference,
)
from omics.eval.confidence_calibration import calibration_error_metric
from omics.eval.intervals import confidence_interval, joint_draws, wilson_interval
from omics.eval.many_comparisons import differences_from_first
from omics.eval.results import EvalResult, rows_of_scores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from omics.data.splits import SplitTable
    from omics.eval.many_comparisons import Difference

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class LabelledSplit:
    """Which cells teach and which are asked.

    Attributes:
        labels: object [n_cells], None where missing.
        classes: of the labelled cells of the whole file, sorted.
        train: int64 rows of labelled training cells.
        query: int64 rows of labelled cells to score.
        query_name: the split that `query` comes from.
        unlabelled: cells of the training and query splits that have no label.
    """

    labels: Array
    classes: tuple[str, ...]
    train: Array
    query: Array
    query_name: str
    unlabelled: int

    @property
    def truth(self) -> Array:
        """Labels of the query cells, object [m]."""
        return np.asarray(self.labels[self.query])

    @property
    def untaught(self) -> list[str]:
        """Classes of query cells that no training cell has, sorted."""
        return sorted(set(self.truth) - set(self.labels[self.train]))


def labelled_split(
    adata: AnnData, split: SplitTable, *, label: str, query: str = "test"
) -> LabelledSplit:
    """Match a split and a label column to the cells of a file.

    Args:
        adata: the cells.
        split: of exactly these cells in this order.
        label: column of obs.
        query: the split to score.

    Raises:
        UnknownNameError: no such column or split; the message names the nearest.
        UsageError: the split to score is the one that teaches.
        InputDataError: the split is of other cells, or leaves nothing to learn from or to score.
    """
    if query == "train":
        raise UsageError(
            "The training cells teach every method here, so scores on them would mean nothing. "
            "Score validation or test cells."
        )
    labels = label_column(adata, label)
    check_cells(adata, split)
    labelled = ~missing_labels(labels)
    train, asked = split.rows("train"), split.rows(query)
    chosen = LabelledSplit(
        labels=labels,
        classes=tuple(sorted(set(labels[labelled]))),
        train=train[labelled[train]],
        query=asked[labelled[asked]],
        query_name=query,
        unlabelled=int((~labelled[train]).sum() + (~labelled[asked]).sum()),
    )
    for name, rows in (("train", chosen.train), (query, chosen.query)):
        if len(rows) == 0:
            raise InputDataError(
                f"No cell of the split {name!r} has a label in obs[{label!r}] "
                f"({int(labelled.sum())} of {len(labels)} cells have one). Make a split with "
                f"`omics-data split --stratify {label}`, or choose another label column."
            )
    return chosen


def check_cells(adata: AnnData, split: SplitTable) -> None:
    """Refuse a split that is not of these cells.

    Args:
        adata: the cells.
        split: with the names of its cells.

    Raises:
        InputDataError: the number or the names of the cells differ.
    """
    names = np.asarray(adata.obs_names.astype(str), dtype=object)
    theirs = np.asarray(split.cells, dtype=object)
    if len(names) == len(theirs):
        other = np.flatnonzero(names != theirs)
        if len(other) == 0:
            return
        found = (
            f"{len(other)} of {len(names)} cells have another name, first row {int(other[0])}: "
            f"{names[other[0]]!r} here, {theirs[other[0]]!r} in the split"
        )
    else:
        found = f"it lists {len(theirs)} cells and the file has {len(names)}"
    raise InputDataError(
        f"The split belongs to another dataset: {found}. Use the split that was made of the store "
        "behind this file, with the cells in the same order."
    )


def embedding_predictions(
    adata: AnnData, cells: LabelledSplit, *, use_rep: str, method: str = "logistic"
) -> Array:
    """Label the query cells from an embedding, taught by the training cells.

    Args:
        adata: with `obsm[use_rep]`.
        cells: which teach and which are asked.
        use_rep: key of obsm.
        method: `logistic`, `knn` or `centroid`.

    Returns:
        object [m] labels; None for a cell without an embedding.
    """
    embedding = embedding_of(adata, use_rep)
    taught = cells.labels[cells.train]
    return transfer_labels(
        embedding[cells.train], taught, embedding[cells.query], method=method
    ).labels


def baseline_predictions(
    adata: AnnData, cells: LabelledSplit, *, seed: int = 0
) -> tuple[dict[str, Array], str]:
    """Label the query cells by every baseline.

    Args:
        adata: with counts in X, layers or raw.
        cells: which teach and which are asked.
        seed: of the baselines.

    Returns:
        By method, object [m] labels; and where the counts were found.
    """
    counts, place = counts_of(adata)
    given = run_baselines(counts, cells.labels, train=cells.train, test=cells.query, seed=seed)
    return {name: annotation.labels for name, annotation in given.items()}, place


def score_methods(
    truth: Array, predictions: Mapping[str, Array], *, seed: int = 0
) -> dict[str, Scores]:
    """Return the scores of every method on the same cells and the same resamples of them.

    Args:
        truth: object [m].
        predictions: by method, object [m].
        seed: of the bootstrap.
    """
    return {name: score(truth, given, seed=seed) for name, given in predictions.items()}


def result_rows(
    cells: LabelledSplit,
    predictions: Mapping[str, Array],
    *,
    task: str,
    dataset: str,
    bundles: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[EvalResult]:
    """Return the scores of every method, and what sets the first one apart from PCA.

    Args:
        cells: the query cells.
        predictions: by method, object [m]; the first is the model, PCA is among the others.
        task: what was asked.
        dataset: a name for the cells.
        bundles: digest of the bundle behind a method, by its name.
        seed: of the bootstrap.

    Returns:
        Two rows a method (`accuracy`, `macro_f1`), then `accuracy_difference` and
        `macro_f1_difference` of the first minus PCA with logistic regression.
    """
    digests = bundles or {}
    rows = []
    for name, scores in score_methods(cells.truth, predictions, seed=seed).items():
        bundle = digests.get(name, "")
        rows += rows_of_scores(
            scores, task=task, dataset=dataset, method=name, seed=seed, bundle=bundle
        )
    model = next(iter(predictions))
    differences = score_difference(
        cells.truth, predictions, first=model, second=PCA_LOGISTIC, seed=seed
    )
    for metric, interval in differences.items():
        rows.append(
            EvalResult.of(
                interval,
                task=task,
                dataset=dataset,
                method=f"{model} minus {PCA_LOGISTIC}",
                metric=f"{metric}_difference",
                n=len(cells.query),
                seed=seed,
                bundle=digests.get(model, ""),
            )
        )
    return rows


def confidence_rows(
    truth: Array,
    given: Array,
    confidence: Array,
    *,
    unknown_below: float | None,
    task: str,
    dataset: str,
    method: str,
    bundle: str = "",
    seed: int = 0,
) -> list[EvalResult]:
    """Return what confidences are worth on query cells.

    Args:
        truth: object [m].
        given: object [m], the answers; None for a cell without one.
        confidence: float [m].
        unknown_below: the threshold of trust; None where there is none.
        task: see `EvalResult`.
        dataset: see `EvalResult`.
        method: see `EvalResult`.
        bundle: see `EvalResult`.
        seed: of the bootstrap.

    Returns:
        `calibration_error` of the answered cells; with a threshold also `answered`, the share of
        cells at or above it, and `accuracy_of_answered`. Nothing where no cell is answered.
    """
    answered = ~np.isnan(confidence)
    if not answered.any():
        return []
    right = (given == truth) & answered
    found = [
        (
            "calibration_error",
            confidence_interval(
                calibration_error_metric(confidence[answered], right[answered]), seed=seed
            ),
            int(answered.sum()),
        )
    ]
    if unknown_below is not None:
        trusted = answered & (np.nan_to_num(confidence, nan=-1.0) >= unknown_below)
        number = int(trusted.sum())
        found.append(("answered", wilson_interval(number, len(truth)), len(truth)))
        if number:
            kept = wilson_interval(int(right[trusted].sum()), number)
            found.append(("accuracy_of_answered", kept, number))
    return [
        EvalResult.of(
            interval,
            task=task,
            dataset=dataset,
            method=method,
            metric=metric,
            n=n,
            seed=seed,
            bundle=bundle,
        )
        for metric, interval, n in found
    ]


def compared_with_all(
    truth: Array, predictions: Mapping[str, Array], *, seed: int = 0
) -> dict[str, dict[str, Difference]]:
    """Return how far the first method is from every other one, corrected for their number.

    Args:
        truth: object [m].
        predictions: by method, object [m]; the first is the model.
        seed: of the bootstrap.

    Returns:
        By other method, `accuracy` and `macro_f1`: the first minus that one.
    """
    metrics = {
        (method, name): metric(code_labels(truth, given))
        for method, given in predictions.items()
        for name, metric in (("accuracy", accuracy_metric), ("macro_f1", macro_f1_metric))
    }
    drawn = joint_draws(list(metrics.values()), seed=seed)
    values: dict[str, dict[str, float]] = {method: {} for method in predictions}
    draws: dict[str, dict[str, Array]] = {method: {} for method in predictions}
    for ((method, name), metric), row in zip(metrics.items(), drawn, strict=True):
        values[method][name], draws[method][name] = metric.value, row
    return differences_from_first(values, draws)
