"""Label transfer: from labelled reference cells to query cells, through an embedding.

- Three methods over the same arrays: `logistic` (see `logistic_probe`), `knn` (share of the nearest
  votes), `centroid` (nearest class mean). Each also says how sure it is, per cell.
- A query cell whose embedding is NaN gets no label (None) and confidence NaN: cells are never
  dropped or reordered. A reference cell whose embedding is NaN teaches nothing.
- Confidence is the method's own probability of its answer. With `min_accuracy` it is held against
  held-out reference cells, and cells below the threshold found there are `unknown`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from omics.data.errors import InputDataError, UnknownNameError, UsageError, nearest
from omics.eval.classification import missing_labels
from omics.eval.confidence_calibration import lowest_trusted
from omics.eval.held_out_folds import held_out_folds
from omics.eval.logistic_probe import logistic_probe

if TYPE_CHECKING:
    from anndata import AnnData

Array = np.ndarray[Any, np.dtype[Any]]
Method = Literal["logistic", "knn", "centroid"]

METHODS: tuple[str, ...] = get_args(Method)
NUM_NEIGHBOURS = 15
NUM_FOLDS = 5
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Annotation:
    """Labels given to query cells.

    Attributes:
        labels: object [n], the class of each cell as str; None where there is no answer.
        confidence: float32 [n], the method's probability of its answer; NaN where there is none.
        classes: the classes of the reference, sorted.
        strength: of the logistic probe, as it was chosen; None where there is none to tell.
    """

    labels: Array
    confidence: Array
    classes: tuple[str, ...]
    strength: float | None = None


def transfer_labels(
    reference: Any,
    labels: Array,
    query: Any,
    *,
    method: str = "logistic",
    groups: Array | None = None,
    seed: int = 0,
) -> Annotation:
    """Label query cells by labelled reference cells.

    Args:
        reference: float [n, d], dense or (for `knn`) CSR.
        labels: [n], the classes of the reference cells; none missing.
        query: float [m, d], of the same kind.
        method: `logistic`, `knn` or `centroid`.
        groups: [n], such as donors, held out whole where `logistic` chooses its strength.
        seed: of that choice.

    Returns:
        A label and a confidence for every query cell, in order.

    Raises:
        UnknownNameError: no such method.
        InputDataError: fewer than two classes, infinite values, or no usable reference cell.
    """
    if method not in METHODS:
        raise UnknownNameError(
            f"There is no annotation method {method!r}.{nearest(method, METHODS)}"
        )
    if reference.shape[0] != len(labels) or reference.shape[1] != query.shape[1]:
        raise UsageError(
            f"{reference.shape[0]} reference cells of {reference.shape[1]} dimensions do not fit "
            f"{len(labels)} labels and query cells of {query.shape[1]} dimensions."
        )
    taught, asked = usable_rows(reference), usable_rows(query)
    text = np.array([str(label) for label in labels[taught]], dtype=object)
    classes, codes = np.unique(text, return_inverse=True)
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if len(classes) else "none"
        raise InputDataError(
            f"The {len(text)} usable reference cells hold {found}: at least two classes are needed "
            "to learn a label. Choose another label column or another split."
        )
    answers = np.full(query.shape[0], None, dtype=object)
    confidence = np.full(query.shape[0], np.nan, np.float32)
    strength = None
    if asked.any():
        if method == "logistic":
            held_out = None if groups is None else groups[taught]
            probabilities, strength = logistic_probe(
                reference[taught], codes, query[asked], groups=held_out, seed=seed
            )
        else:
            answer = _nearest_neighbours if method == "knn" else _centroids
            probabilities = answer(reference[taught], codes, query[asked], len(classes))
        best = probabilities.argmax(axis=1)
        answers[asked] = classes[best]
        confidence[asked] = probabilities[np.arange(len(best)), best]
    return Annotation(answers, confidence, tuple(classes.tolist()), strength)


def usable_rows(embedding: Any) -> Array:
    """Return bool [n]: the cells whose embedding is not NaN.

    Args:
        embedding: float [n, d], dense or CSR (a sparse matrix has no NaN rows by construction).

    Raises:
        InputDataError: an infinite value, which is a fault upstream and not a missing cell.
    """
    if not isinstance(embedding, np.ndarray):
        return np.ones(embedding.shape[0], bool)
    infinite = np.isinf(embedding).any(axis=1)
    if infinite.any():
        raise InputDataError(
            f"The embedding holds infinite values in {int(infinite.sum())} of {len(embedding)} "
            f"cells, first in row {int(np.flatnonzero(infinite)[0])}. Embed the cells again; a "
            "cell without an embedding must be NaN."
        )
    return np.asarray(~np.isnan(embedding).any(axis=1))


def annotate(
    adata: AnnData,
    *,
    label: str,
    reference: Array,
    use_rep: str = "X_omics",
    method: str = "logistic",
    min_accuracy: float | None = None,
    groups: str | None = None,
    seed: int = 0,
    key_added: str | None = None,
    overwrite: bool = False,
) -> AnnData:
    """Label the cells outside the reference by those in it, through an embedding in `obsm`.

    Args:
        adata: cells with `obsm[use_rep]` and `obs[label]`; changed in place.
        label: obs column with the classes; only reference cells need it.
        reference: int [n] rows, or bool [n_cells]; unlabelled ones among them teach nothing.
        use_rep: the embedding in `obsm`.
        method: `logistic`, `knn` or `centroid`.
        min_accuracy: share of the answers that is to be right: less sure cells are `unknown`, by a
            threshold found by cross-validation of the reference; None answers all.
        groups: obs column, such as the donor: wherever reference cells are held out, for the threshold
            or for the strength of `logistic`, whole groups are.
        seed: of what is held out.
        key_added: prefix of the new columns; the label column by default.
        overwrite: replace columns of these names.

    Returns:
        The same object, with `obs[KEY_pred]` (categorical; a reference cell keeps its own label)
        and `obs[KEY_confidence]` (float32; NaN for reference cells and cells without an answer).
        With `min_accuracy`, also `obs[KEY_closest]`, the answers before any became `unknown`, and
        `uns[KEY_unknown_below]`, the threshold.

    Raises:
        UnknownNameError: no such column, embedding or method.
        UsageError: a new column exists and may not be replaced; a class is called `unknown`; groups
            where nothing is held out.
        InputDataError: fewer than two classes among the reference, too few cells or groups to hold
            some out, or a reference cell without a group.
    """
    key = key_added or label
    if groups is not None and min_accuracy is None and method != "logistic":
        raise UsageError(
            f"groups say what is held out, and {method} holds nothing out without min_accuracy."
        )
    refuse_taken_columns(adata, key, unknown=min_accuracy is not None, overwrite=overwrite)
    labels = label_column(adata, label)
    embedding = embedding_of(adata, use_rep)
    in_reference = np.zeros(adata.n_obs, bool)
    in_reference[np.asarray(reference)] = True
    taught = in_reference & ~missing_labels(labels)
    donors = None if groups is None else group_column(adata, groups, np.flatnonzero(taught))
    found = transfer_labels(
        embedding[taught],
        labels[taught],
        embedding[~in_reference],
        method=method,
        groups=donors,
        seed=seed,
    )
    threshold = None
    if min_accuracy is not None:
        sure, right = held_out_answers(
            embedding[taught], labels[taught], method=method, groups=donors, seed=seed
        )
        threshold = lowest_trusted(sure, right, min_accuracy=min_accuracy)
    predicted = np.full(adata.n_obs, None, dtype=object)
    predicted[taught] = labels[taught]
    predicted[~in_reference] = found.labels
    confidence = np.full(adata.n_obs, np.nan, np.float32)
    confidence[~in_reference] = found.confidence
    write_answers(
        adata, key, Annotation(predicted, confidence, found.classes), unknown_below=threshold
    )
    return adata


def refuse_taken_columns(adata: AnnData, key: str, *, unknown: bool, overwrite: bool) -> None:
    """Refuse to write over columns of obs.

    Args:
        adata: the cells.
        key: prefix of the new columns.
        unknown: whether cells may become `unknown`.
        overwrite: whether columns may be replaced.

    Raises:
        UsageError: a column exists.
    """
    added = [f"{key}_pred", f"{key}_confidence", *([f"{key}_closest"] if unknown else [])]
    present = [name for name in added if name in adata.obs]
    if present and not overwrite:
        raise UsageError(
            f"obs already holds {present[0]!r}. Give another key_added, or allow it to be "
            "replaced (overwrite, --overwrite)."
        )


def write_answers(
    adata: AnnData,
    key: str,
    given: Annotation,
    *,
    unknown_below: float | None = None,
    thresholds: Array | None = None,
) -> None:
    """Write the answers of all cells into obs.

    Args:
        adata: the cells; changed in place.
        key: prefix of the columns.
        given: of every cell; those without a confidence never become `unknown`.
        unknown_below: the threshold of confidence, for `uns`; None answers all.
        thresholds: float64 [n_cells], where cells have thresholds of their own.

    Raises:
        UsageError: a class is called `unknown`, and cells are to be, too.
    """
    import pandas as pd

    labels, classes = given.labels, list(given.classes)
    # What an earlier threshold left says nothing of these answers.
    if adata.uns.pop(f"{key}_unknown_below", None) is not None and f"{key}_closest" in adata.obs:
        del adata.obs[f"{key}_closest"]
    if unknown_below is not None:
        if UNKNOWN in classes:
            raise UsageError(f"A class of {key!r} is called {UNKNOWN!r}. Rename it.")
        adata.obs[f"{key}_closest"] = pd.Categorical(labels, categories=classes)
        below = unknown_below if thresholds is None else thresholds
        labels = labels.copy()
        labels[given.confidence.astype(np.float64) < below] = UNKNOWN
        classes = [*classes, UNKNOWN]
        adata.uns[f"{key}_unknown_below"] = unknown_below
    adata.obs[f"{key}_pred"] = pd.Categorical(labels, categories=classes)
    adata.obs[f"{key}_confidence"] = given.confidence


def out_of_fold(
    points: Array,
    labels: Array,
    folds: Array,
    *,
    method: str = "logistic",
    groups: Array | None = None,
    seed: int = 0,
) -> Annotation:
    """Answer every cell by the cells of the other folds.

    Args:
        points: float [n, d].
        labels: object [n], none missing.
        folds: int [n].
        method: see `transfer_labels`.
        groups: [n], see `transfer_labels`.
        seed: see `transfer_labels`.

    Returns:
        An answer for every cell, in order; classes are those of all cells.

    Raises:
        InputDataError: the other folds of one hold fewer than two classes.
    """
    answers = np.full(len(points), None, dtype=object)
    confidence = np.full(len(points), np.nan, np.float32)
    for fold in np.unique(folds):
        asked = folds == fold
        given = transfer_labels(
            points[~asked],
            labels[~asked],
            points[asked],
            method=method,
            groups=None if groups is None else groups[~asked],
            seed=seed,
        )
        answers[asked], confidence[asked] = given.labels, given.confidence
    return Annotation(answers, confidence, tuple(sorted({str(label) for label in labels})))


def held_out_answers(
    reference: Array,
    labels: Array,
    *,
    method: str,
    groups: Array | None = None,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Answer reference cells by others of them.

    Args:
        reference: float [n, d].
        labels: object [n], none missing.
        method: see `transfer_labels`.
        groups: [n], such as donors, that are held out whole; None holds cells out.
        seed: of the folds.

    Returns:
        Confidence float64 [m] and whether it was right, bool [m], of the cells with an embedding.

    Raises:
        InputDataError: fewer than two groups, or two cells of two classes.
    """
    kept = usable_rows(reference)
    points, known = reference[kept], np.asarray(labels, dtype=object)[kept].astype(str)
    donors = None if groups is None else np.asarray(groups).astype(str)[kept]
    number = NUM_FOLDS
    if donors is not None:
        number = min(NUM_FOLDS, len(np.unique(donors)))
        if number < 2:
            raise InputDataError(
                f"The reference cells are of {number} group; at least two are needed to hold one "
                "out. Leave --groups out, or choose another column."
            )
    elif len(np.unique(known)) < 2 or len(known) < NUM_FOLDS:
        raise InputDataError(
            f"{len(known)} reference cells of {len(np.unique(known))} classes are too few to find "
            "a threshold of confidence. Leave --min-accuracy out."
        )
    folds = held_out_folds(known, num_folds=number, groups=donors, seed=seed)
    given = out_of_fold(points, known, folds, method=method, groups=donors, seed=seed)
    return given.confidence.astype(np.float64), np.asarray(given.labels == known, np.bool_)


def group_column(adata: AnnData, groups: str, rows: Array) -> Array:
    """Return the groups of some cells, such as their donors.

    Args:
        adata: the cells.
        groups: column of obs.
        rows: int64 [n], cells that must have one.

    Returns:
        str [n].

    Raises:
        UnknownNameError: no such column.
        InputDataError: a cell without a group.
    """
    found = label_column(adata, groups)[rows]
    gone = np.flatnonzero(missing_labels(found))
    if len(gone):
        raise InputDataError(
            f"{len(gone)} of {len(rows)} labelled cells have no {groups!r}, first row "
            f"{int(rows[gone[0]])}: they cannot be held out with their group. Fill the column, or "
            "leave these cells or --groups out."
        )
    return np.asarray(found.astype(str))


def label_column(adata: AnnData, label: str) -> Array:
    """Return an obs column as text.

    Args:
        adata: the cells.
        label: column of obs.

    Returns:
        object [n_cells], str; None where a label is missing.

    Raises:
        UnknownNameError: no such column; the message names the nearest.
    """
    columns = [str(name) for name in adata.obs.columns]
    if label not in columns:
        raise UnknownNameError(
            f"obs has no column {label!r} among its {len(columns)}.{nearest(label, columns)}"
        )
    values = np.asarray(adata.obs[label].astype(object), dtype=object)
    missing = missing_labels(values)
    return np.array(
        [None if gone else str(value) for value, gone in zip(values, missing, strict=True)],
        dtype=object,
    )


def embedding_of(adata: AnnData, use_rep: str) -> Array:
    """Return an embedding of `obsm` as float32 [n_cells, d].

    Args:
        adata: the cells.
        use_rep: key of obsm.

    Raises:
        UnknownNameError: no such key; the message says how to make one.
    """
    keys = [str(key) for key in adata.obsm]
    if use_rep not in keys:
        raise UnknownNameError(
            f"obsm has no embedding {use_rep!r}.{nearest(use_rep, keys)} Write one with "
            "`omics-eval embed`, or name another by --use-rep."
        )
    return np.asarray(adata.obsm[use_rep], np.float32)


def _nearest_neighbours(reference: Any, codes: Array, query: Any, _num_classes: int) -> Array:
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = min(NUM_NEIGHBOURS, reference.shape[0])
    return np.asarray(KNeighborsClassifier(neighbours).fit(reference, codes).predict_proba(query))


def _centroids(reference: Array, codes: Array, query: Array, num_classes: int) -> Array:
    """Return the posterior of equally likely classes that spread alike around their means."""
    from scipy.special import softmax

    values = reference.astype(np.float64)
    size = np.bincount(codes, minlength=num_classes)
    centroids = np.zeros((num_classes, values.shape[1]))
    np.add.at(centroids, codes, values)
    centroids /= size[:, None]
    spread = np.square(values - centroids[codes]).mean()
    points = query.astype(np.float64)
    # |q|^2 is the same for all classes and drops out of the softmax.
    distance = np.square(centroids).sum(axis=1) - 2 * points @ centroids.T
    return np.asarray(softmax(-distance / (2 * max(spread, np.finfo(np.float64).tiny)), axis=1))
