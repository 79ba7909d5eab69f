"""Label transfer: from labelled reference cells to query cells, through an embedding.

- Three methods over the same arrays: `logistic` (standardised, multinomial), `knn` (share of the
  nearest votes), `centroid` (nearest class mean). Each also says how sure it is, per cell.
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

if TYPE_CHECKING:
    from anndata import AnnData

Array = np.ndarray[Any, np.dtype[Any]]
Method = Literal["logistic", "knn", "centroid"]

METHODS: tuple[str, ...] = get_args(Method)
NUM_NEIGHBOURS = 15
MAX_ITERATIONS = 5000
NUM_FOLDS = 5
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Annotation:
    """Labels given to query cells.

    Attributes:
        labels: object [n], the class of each cell as str; None where there is no answer.
        confidence: float32 [n], the method's probability of its answer; NaN where there is none.
        classes: the classes of the reference, sorted.
    """

    labels: Array
    confidence: Array
    classes: tuple[str, ...]


def transfer_labels(
    reference: Any, labels: Array, query: Any, *, method: str = "logistic"
) -> Annotation:
    """Label query cells by labelled reference cells.

    Args:
        reference: float [n, d], dense or (for `knn`) CSR.
        labels: [n], the classes of the reference cells; none missing.
        query: float [m, d], of the same kind.
        method: `logistic`, `knn` or `centroid`.

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
    if asked.any():
        probabilities = _PROBABILITIES[method](reference[taught], codes, query[asked], len(classes))
        best = probabilities.argmax(axis=1)
        answers[asked] = classes[best]
        confidence[asked] = probabilities[np.arange(len(best)), best]
    return Annotation(answers, confidence, tuple(classes.tolist()))


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
        groups: obs column, such as the donor, of which whole groups are held out for that.
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
            without `min_accuracy`.
        InputDataError: fewer than two classes among the reference, or too few cells or groups to
            hold some out.
    """
    import pandas as pd

    key = key_added or label
    added = [f"{key}_pred", f"{key}_confidence"]
    if min_accuracy is not None:
        added.append(f"{key}_closest")
    present = [name for name in added if name in adata.obs]
    if groups is not None and min_accuracy is None:
        raise UsageError("groups say what is held out to find min_accuracy: give it, too.")
    if present and not overwrite:
        raise UsageError(
            f"obs already holds {present[0]!r}. Give another key_added, or allow it to be "
            "replaced (overwrite, --overwrite)."
        )
    labels = label_column(adata, label)
    embedding = embedding_of(adata, use_rep)
    in_reference = np.zeros(adata.n_obs, bool)
    in_reference[np.asarray(reference)] = True
    taught = in_reference & ~missing_labels(labels)
    given = transfer_labels(
        embedding[taught], labels[taught], embedding[~in_reference], method=method
    )
    predicted = np.full(adata.n_obs, None, dtype=object)
    predicted[taught] = labels[taught]
    predicted[~in_reference] = given.labels
    confidence = np.full(adata.n_obs, np.nan, np.float32)
    confidence[~in_reference] = given.confidence
    classes = list(given.classes)
    if min_accuracy is not None:
        if UNKNOWN in classes:
            raise UsageError(f"A class of {label!r} is called {UNKNOWN!r}. Rename it.")
        donors = None if groups is None else label_column(adata, groups)[taught]
        sure, right = held_out_answers(
            embedding[taught], labels[taught], method=method, groups=donors, seed=seed
        )
        threshold = lowest_trusted(sure, right, min_accuracy=min_accuracy)
        adata.obs[f"{key}_closest"] = pd.Categorical(predicted, categories=classes)
        unsure = np.zeros(adata.n_obs, bool)
        unsure[~in_reference] = given.confidence < threshold
        predicted = predicted.copy()
        predicted[unsure] = UNKNOWN
        classes = [*classes, UNKNOWN]
        adata.uns[f"{key}_unknown_below"] = threshold
    adata.obs[f"{key}_pred"] = pd.Categorical(predicted, categories=classes)
    adata.obs[f"{key}_confidence"] = confidence
    return adata


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
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

    kept = usable_rows(reference)
    points, known = reference[kept], np.asarray(labels, dtype=object)[kept]
    sizes = np.unique(known.astype(str), return_counts=True)[1]
    folds: Any
    if groups is not None:
        donors = np.asarray(groups).astype(str)[kept]
        number = len(np.unique(donors))
        if number < 2:
            raise InputDataError(
                f"The reference cells are of {number} group; at least two are needed to hold one "
                "out. Leave --groups out, or choose another column."
            )
        folds = GroupKFold(min(NUM_FOLDS, number)).split(points, groups=donors)
    elif len(sizes) < 2 or len(known) < NUM_FOLDS:
        raise InputDataError(
            f"{len(known)} reference cells of {len(sizes)} classes are too few to find a "
            "threshold of confidence. Leave --min-accuracy out."
        )
    elif sizes.min() < NUM_FOLDS:
        folds = KFold(NUM_FOLDS, shuffle=True, random_state=seed).split(points)
    else:
        folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed).split(
            points, known.astype(str)
        )
    confidence, right = np.full(len(known), np.nan), np.zeros(len(known), np.bool_)
    for taught, asked in folds:
        given = transfer_labels(points[taught], known[taught], points[asked], method=method)
        confidence[asked] = given.confidence
        right[asked] = given.labels == known[asked]
    return confidence, right


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


def _logistic(reference: Array, codes: Array, query: Array, _num_classes: int) -> Array:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    classifier.fit(reference.astype(np.float64), codes)
    return np.asarray(classifier.predict_proba(query.astype(np.float64)))


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


_PROBABILITIES = {
    "logistic": _logistic,
    "knn": _nearest_neighbours,
    "centroid": _centroids,
}
