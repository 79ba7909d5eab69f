"""Plain methods every model is held against, on the same training and test cells.

- All start from log1p(counts per 10,000), as a careful analyst would without any model.
- `PCA + logistic regression` (up to 50 components), `HVG + kNN` (2,000 highly variable genes, 15
  neighbours) and `majority class`. The logistic regression is the one used on embeddings too, with
  its strength chosen in the same way, so the two differ in nothing but the features.
- Everything is fitted on the training cells alone: components, genes, scaling, labels.
- Counts stay sparse: PCA centres implicitly (ARPACK), neighbours are searched on CSR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError
from omics.eval.annotation import Annotation, transfer_labels
from omics.eval.highly_variable import highly_variable_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    SparseMatrix = csr_matrix

Array = np.ndarray[Any, np.dtype[Any]]

PCA_LOGISTIC = "PCA + logistic regression"
HVG_KNN = "HVG + kNN"
MAJORITY = "majority class"

NUM_COMPONENTS = 50
NUM_VARIABLE_GENES = 2000
TARGET_SUM = 1e4


def log_normalise(counts: SparseMatrix, *, target_sum: float = TARGET_SUM) -> SparseMatrix:
    """Return log1p of counts scaled to the same total per cell.

    Args:
        counts: CSR [n, g], not negative.
        target_sum: counts per cell after scaling; an empty cell stays empty.

    Returns:
        CSR float32 [n, g] with the same sparsity.
    """
    totals = np.asarray(counts.sum(axis=1), np.float64).ravel()
    scale = target_sum / np.where(totals > 0, totals, 1.0)
    scaled = counts.astype(np.float32)
    scaled.data = np.log1p(counts.data * np.repeat(scale, np.diff(counts.indptr))).astype(
        np.float32
    )
    return scaled


def principal_components(
    train: SparseMatrix, test: SparseMatrix, *, num_components: int = NUM_COMPONENTS, seed: int = 0
) -> tuple[Array, Array]:
    """Return train and test cells on the principal components of the train cells.

    Args:
        train: CSR [n, g].
        test: CSR [m, g].
        num_components: fewer are taken where cells or genes do not allow as many.
        seed: of ARPACK's first vector.

    Returns:
        float32 [n, k] and float32 [m, k].
    """
    from sklearn.decomposition import PCA

    components = min(num_components, min(train.shape) - 1)
    if components < 1:
        raise UsageError(
            f"A principal component needs two cells and two genes; the training cells hold "
            f"{train.shape[0]} and {train.shape[1]}."
        )
    pca = PCA(components, svd_solver="arpack", random_state=seed).fit(train)
    return pca.transform(train).astype(np.float32), pca.transform(test).astype(np.float32)


def pca_logistic(
    train: SparseMatrix,
    labels: Array,
    test: SparseMatrix,
    *,
    groups: Array | None = None,
    seed: int = 0,
) -> Annotation:
    """Label test cells by logistic regression on principal components.

    Args:
        train: CSR [n, g], log-normalised.
        labels: [n] classes.
        test: CSR [m, g], log-normalised.
        groups: [n], such as donors, held out whole where the strength is chosen.
        seed: of the PCA and of that choice.
    """
    reference, query = principal_components(train, test, seed=seed)
    return transfer_labels(reference, labels, query, groups=groups, seed=seed)


def hvg_knn(train: SparseMatrix, labels: Array, test: SparseMatrix) -> Annotation:
    """Label test cells by the votes of their neighbours over highly variable genes.

    Args:
        train: CSR [n, g], log-normalised.
        labels: [n] classes.
        test: CSR [m, g], log-normalised.
    """
    genes = highly_variable_genes(train, NUM_VARIABLE_GENES)
    return transfer_labels(train[:, genes], labels, test[:, genes], method="knn")


def majority_class(labels: Array, num_cells: int) -> Annotation:
    """Give every cell the commonest class; ties go to the first in order.

    Args:
        labels: [n] classes of the training cells.
        num_cells: how many cells to label.
    """
    classes, sizes = np.unique([str(label) for label in labels], return_counts=True)
    most = int(sizes.argmax())
    return Annotation(
        labels=np.full(num_cells, str(classes[most]), dtype=object),
        confidence=np.full(num_cells, sizes[most] / sizes.sum(), np.float32),
        classes=tuple(classes.tolist()),
    )


def run_baselines(
    counts: SparseMatrix,
    labels: Array,
    *,
    train: Array,
    test: Array,
    groups: Array | None = None,
    seed: int = 0,
) -> dict[str, Annotation]:
    """Label the test cells by every baseline.

    Args:
        counts: CSR [n, g] of all cells.
        labels: [n] classes; needed of the train cells only.
        train: int rows to learn from.
        test: int rows to label.
        groups: [n], such as donors, needed of the train cells only: held out whole where the
            regression chooses its strength; None holds out cells.
        seed: of the PCA and of that choice.

    Returns:
        By name, the labels of the test cells in the order of `test`.

    Raises:
        UsageError: no train or no test cell, or a cell in both.
        InputDataError: fewer than two classes among the train cells.
    """
    if len(train) == 0 or len(test) == 0:
        raise UsageError(
            f"{len(train)} labelled training and {len(test)} labelled test cells: the baselines "
            "need both. Check that the split and the label column belong to these cells."
        )
    shared = np.intersect1d(train, test)
    if len(shared):
        raise UsageError(
            f"{len(shared)} cells are in training and in test, first row {int(shared[0])}: scores "
            "on them would mean nothing. Make the split again."
        )
    reference, query = log_normalise(counts[train]), log_normalise(counts[test])
    taught = labels[train]
    donors = None if groups is None else groups[train]
    return {
        PCA_LOGISTIC: pca_logistic(reference, taught, query, groups=donors, seed=seed),
        HVG_KNN: hvg_knn(reference, taught, query),
        MAJORITY: majority_class(taught, len(test)),
    }


def counts_of(adata: AnnData) -> tuple[SparseMatrix, str]:
    """Find the counts in an AnnData object.

    Args:
        adata: cells with counts in `X`, in `layers` or in `raw.X`.

    Returns:
        CSR [n_cells, g] and where it was found, in the order X, layers["counts"], other layers,
        raw.X.

    Raises:
        InputDataError: none of them holds whole, non-negative numbers.
    """
    from scipy import sparse

    places: dict[str, Any] = {} if adata.X is None else {"X": adata.X}
    layers = sorted(adata.layers, key=lambda name: (name != "counts", name))
    places |= {f"layers/{name}": adata.layers[name] for name in layers}
    if adata.raw is not None:
        places["raw.X"] = adata.raw.X
    # A matrix without a single value holds counts too, but any other place goes before it.
    for place, matrix in sorted(places.items(), key=lambda item: _stored(item[1]).size == 0):
        if are_counts(_stored(matrix)):
            return sparse.csr_matrix(matrix), place
    looked = ", ".join(places) or "nothing"
    raise InputDataError(
        f"Counts are needed, and none of {looked} holds whole non-negative numbers. Give a file with "
        "raw counts in X (`omics-eval embed` of a store writes one), or put them into "
        'layers["counts"].'
    )


def _stored(matrix: Any) -> Array:
    return matrix if isinstance(matrix, np.ndarray) else np.asarray(matrix.data)


def are_counts(values: Array) -> bool:
    """Return whether numbers are whole, finite and not negative.

    Args:
        values: of any shape and type.
    """
    if values.size == 0 or values.dtype.kind == "u":
        return True
    if values.dtype.kind == "i":
        return bool(values.min() >= 0)
    if values.dtype.kind != "f":
        return False
    return bool(
        np.isfinite(values).all() and values.min() >= 0 and (values == np.rint(values)).all()
    )
