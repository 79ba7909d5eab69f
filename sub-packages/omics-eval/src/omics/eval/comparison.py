"""Methods side by side on the same labelled cells of one split, or of folds.

- `LabelledSplit` says once which cells teach and which are asked; every method gets the same.
  `LabelledFolds` does so for cross-validation: all labelled cells are asked, each taught by the others.
- Whole groups, such as donors, are held out where the cells have them, and intervals are over groups.
- Only labelled cells teach or are scored; how many were not is kept and reported.
- A class that no training cell has cannot be predicted: its cells count as wrong for every
  method, and are named.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from omics.data.errors import InputDataError, UsageError
from omics.eval.annotation import (
    Annotation,
    embedding_of,
    group_column,
    label_column,
    transfer_labels,
)
from omics.eval.baselines import PCA_LOGISTIC, run_baselines
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
from omics.eval.held_out_folds import held_out_folds
from omics.eval.intervals import confidence_interval, joint_draws, mean_metric, over_groups
from omics.eval.many_comparisons import differences_from_first
from omics.eval.results import EvalResult, rows_of_scores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from omics.data.splits import SplitTable
    from omics.eval.baselines import SparseMatrix
    from omics.eval.many_comparisons import Difference

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCells:
    """Which cells are asked.

    Attributes:
        labels: object [n_cells], None where missing.
        classes: of the labelled cells of the whole file, sorted.
        query: int64 [m], rows of labelled cells to score.
        query_name: what they are, such as the split that `query` comes from.
        unlabelled: cells that would teach or be asked and have no label.
        groups: object [n_cells], such as donors; None where cells stand for themselves.
    """

    labels: Array
    classes: tuple[str, ...]
    query: Array
    query_name: str
    unlabelled: int
    groups: Array | None = None

    @property
    def truth(self) -> Array:
        """Labels of the query cells, object [m]."""
        return np.asarray(self.labels[self.query])

    @property
    def query_groups(self) -> Array | None:
        """Groups of the query cells, str [m]."""
        return None if self.groups is None else self.groups[self.query].astype(str)

    @property
    def untaught(self) -> list[str]:
        """Classes of query cells that no cell teaches, sorted."""
        return []

    def asking(self, kept: Array) -> Self:
        """Return the same with some of the query cells left out.

        Args:
            kept: bool [m].
        """
        return replace(self, query=self.query[kept])


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSplit(LabelledCells):
    """Which cells teach and which are asked.

    Attributes:
        train: int64 rows of labelled training cells.
    """

    train: Array

    @property
    def untaught(self) -> list[str]:
        """Classes of query cells that no training cell has, sorted."""
        return sorted(set(self.truth) - set(self.labels[self.train]))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledFolds(LabelledCells):
    """Labelled cells that are all asked, each taught by those of the other folds.

    Attributes:
        folds: int64 [m], the fold of each.
    """

    folds: Array

    @property
    def untaught(self) -> list[str]:
        """Classes that lie in a single fold, so that no cell of another one teaches them, sorted."""
        pairs = set(zip(self.truth.tolist(), self.folds.tolist(), strict=True))
        number = Counter(label for label, _ in pairs)
        return sorted(label for label, times in number.items() if times == 1)

    def asking(self, kept: Array) -> Self:
        """Return the same with some of the query cells left out.

        Args:
            kept: bool [m].
        """
        return replace(self, query=self.query[kept], folds=self.folds[kept])


def labelled_split(
    adata: AnnData,
    split: SplitTable,
    *,
    label: str,
    query: str = "test",
    groups: str | None = None,
) -> LabelledSplit:
    """Match a split and a label column to the cells of a file.

    Args:
        adata: the cells.
        split: of exactly these cells in this order.
        label: column of obs.
        query: the split to score.
        groups: column of obs, such as the donor.

    Raises:
        UnknownNameError: no such column or split; the message names the nearest.
        UsageError: the split to score is the one that teaches.
        InputDataError: the split is of other cells, or leaves nothing to learn from or to score; a
            labelled cell has no group.
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
    asked_or_taught = np.concatenate([chosen.train, chosen.query])
    return replace(chosen, groups=_groups(adata, groups, asked_or_taught))


def labelled_cells(
    adata: AnnData, *, label: str, groups: str | None = None, name: str = "labelled"
) -> LabelledCells:
    """Return the labelled cells of a file, for a method that none of them teaches.

    Args:
        adata: the cells.
        label: column of obs.
        groups: column of obs, such as the donor.
        name: what to call the cells.

    Raises:
        UnknownNameError: no such column; the message names the nearest.
        InputDataError: no cell has a label, or a labelled one no group.
    """
    labels = label_column(adata, label)
    rows = np.flatnonzero(~missing_labels(labels))
    if len(rows) == 0:
        raise InputDataError(
            f"None of the {len(labels)} cells has a label in obs[{label!r}]. Choose another label "
            "column."
        )
    return LabelledCells(
        labels=labels,
        classes=tuple(sorted(set(labels[rows]))),
        query=rows,
        query_name=name,
        unlabelled=len(labels) - len(rows),
        groups=_groups(adata, groups, rows),
    )


def labelled_folds(
    adata: AnnData, *, label: str, num_folds: int, groups: str | None = None, seed: int = 0
) -> LabelledFolds:
    """Deal the labelled cells of a file out to folds.

    Args:
        adata: the cells.
        label: column of obs.
        num_folds: at least 2.
        groups: column of obs, such as the donor, of which whole groups are held out.
        seed: of the folds.

    Raises:
        UnknownNameError: no such column; the message names the nearest.
        InputDataError: fewer labelled cells, or groups, than folds; fewer than two classes; a labelled
            cell without a group.
    """
    cells = labelled_cells(adata, label=label, groups=groups, name="held-out")
    if len(cells.classes) < 2:
        raise InputDataError(
            f"The {len(cells.query)} labelled cells hold only {cells.classes[0]!r}: at least two "
            "classes are needed to learn a label. Choose another label column."
        )
    folds = held_out_folds(
        cells.truth.astype(str), num_folds=num_folds, groups=cells.query_groups, seed=seed
    )
    given = {field.name: getattr(cells, field.name) for field in fields(cells)}
    return LabelledFolds(**given, folds=folds)


def _groups(adata: AnnData, column: str | None, rows: Array) -> Array | None:
    """Return the groups of all cells, object [n_cells]; of the rows given none may be missing."""
    if column is None:
        return None
    group_column(adata, column, rows)
    return label_column(adata, column)


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
    adata: AnnData, cells: LabelledSplit, *, use_rep: str, method: str = "logistic", seed: int = 0
) -> Annotation:
    """Label the query cells from an embedding, taught by the training cells.

    Args:
        adata: with `obsm[use_rep]`.
        cells: which teach and which are asked.
        use_rep: key of obsm.
        method: `logistic`, `knn` or `centroid`.
        seed: of what `logistic` holds out to choose its strength.

    Returns:
        Of the query cells; no answer for a cell without an embedding.
    """
    embedding = embedding_of(adata, use_rep)
    return transfer_labels(
        embedding[cells.train],
        cells.labels[cells.train],
        embedding[cells.query],
        method=method,
        groups=None if cells.groups is None else cells.groups[cells.train],
        seed=seed,
    )


def baseline_predictions(
    counts: SparseMatrix, cells: LabelledSplit | LabelledFolds, *, seed: int = 0
) -> dict[str, Annotation]:
    """Label the query cells by every baseline.

    Args:
        counts: CSR [n_cells, g], see `counts_of`.
        cells: which teach and which are asked.
        seed: of the baselines.

    Returns:
        By method, the answers for the query cells.
    """
    if isinstance(cells, LabelledSplit):
        turns = [(cells.train, np.arange(len(cells.query)))]
    else:
        turns = [
            (cells.query[cells.folds != fold], np.flatnonzero(cells.folds == fold))
            for fold in np.unique(cells.folds)
        ]
    found: dict[str, Annotation] = {}
    for train, asked in turns:
        given = run_baselines(
            counts,
            cells.labels,
            train=train,
            test=cells.query[asked],
            groups=cells.groups,
            seed=seed,
        )
        for name, answers in given.items():
            if name not in found:
                found[name] = Annotation(
                    np.full(len(cells.query), None, dtype=object),
                    np.full(len(cells.query), np.nan, np.float32),
                    cells.classes,
                )
            found[name].labels[asked] = answers.labels
            found[name].confidence[asked] = answers.confidence
    return found


def labels_of(answers: Mapping[str, Annotation]) -> dict[str, Array]:
    """Return the labels of every method, object [m].

    Args:
        answers: by method.
    """
    return {name: given.labels for name, given in answers.items()}


def score_methods(
    truth: Array, predictions: Mapping[str, Array], *, groups: Array | None = None, seed: int = 0
) -> dict[str, Scores]:
    """Return the scores of every method on the same cells and the same resamples of them.

    Args:
        truth: object [m].
        predictions: by method, object [m].
        groups: [m], such as donors, that resamples draw whole; None draws cells.
        seed: of the bootstrap.
    """
    return {
        name: score(truth, given, groups=groups, seed=seed) for name, given in predictions.items()
    }


def result_rows(
    truth: Array,
    predictions: Mapping[str, Array],
    *,
    task: str,
    dataset: str,
    bundles: Mapping[str, str] | None = None,
    groups: Array | None = None,
    seed: int = 0,
) -> list[EvalResult]:
    """Return the scores of every method, and what sets the first one apart from PCA.

    Args:
        truth: object [m], the labels of the query cells.
        predictions: by method, object [m]; the first is the model.
        task: what was asked.
        dataset: a name for the cells.
        bundles: digest of the bundle behind a method, by its name.
        groups: [m], such as donors, that resamples draw whole; None draws cells.
        seed: of the bootstrap.

    Returns:
        Two rows a method (`accuracy`, `macro_f1`); where PCA with logistic regression is among them,
        then `accuracy_difference` and `macro_f1_difference` of the first minus it.
    """
    digests = bundles or {}
    rows = []
    for name, scores in score_methods(truth, predictions, groups=groups, seed=seed).items():
        bundle = digests.get(name, "")
        rows += rows_of_scores(
            scores, task=task, dataset=dataset, method=name, seed=seed, bundle=bundle
        )
    if PCA_LOGISTIC not in predictions:
        return rows
    model = next(iter(predictions))
    differences = score_difference(
        truth, predictions, first=model, second=PCA_LOGISTIC, groups=groups, seed=seed
    )
    for metric, interval in differences.items():
        rows.append(
            EvalResult.of(
                interval,
                task=task,
                dataset=dataset,
                method=f"{model} minus {PCA_LOGISTIC}",
                metric=f"{metric}_difference",
                n=len(truth),
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
    trusted: Array | None,
    task: str,
    dataset: str,
    method: str,
    bundle: str = "",
    groups: Array | None = None,
    seed: int = 0,
) -> list[EvalResult]:
    """Return what confidences are worth on query cells.

    Args:
        truth: object [m].
        given: object [m], the answers; None for a cell without one.
        confidence: float [m].
        trusted: bool [m], cells that are at or above the threshold of trust; None where there is none.
        task: see `EvalResult`.
        dataset: see `EvalResult`.
        method: see `EvalResult`.
        bundle: see `EvalResult`.
        groups: [m], such as donors, that resamples draw whole; None draws cells.
        seed: of the bootstrap.

    Returns:
        `calibration_error` of the answered cells; with a threshold also `answered`, the share of
        cells at or above it, and `accuracy_of_answered`. Nothing where no cell is answered.
    """
    answered = ~np.isnan(confidence)
    if not answered.any():
        return []
    right = np.asarray((given == truth) & answered, np.bool_)
    error = calibration_error_metric(confidence[answered], right[answered])
    wanted = [("calibration_error", error, answered)]
    if trusted is not None:
        everywhere = np.ones(len(truth), np.bool_)
        wanted.append(("answered", mean_metric(trusted), everywhere))
        if trusted.any():
            wanted.append(("accuracy_of_answered", mean_metric(right[trusted]), trusted))
    rows = []
    for name, metric, kept in wanted:
        grouped = over_groups(metric, None if groups is None else groups[kept])
        rows.append(
            EvalResult.of(
                confidence_interval(grouped, seed=seed),
                task=task,
                dataset=dataset,
                method=method,
                metric=name,
                n=int(kept.sum()),
                seed=seed,
                bundle=bundle,
            )
        )
    return rows


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
