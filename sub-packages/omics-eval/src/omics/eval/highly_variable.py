"""Highly variable genes by normalised dispersion, the `seurat` flavour.

- Takes log1p-normalised expression and undoes the log1p, as the method is defined on rates.
- Works on a sparse matrix as it is: two sums per gene, nothing is densified.
- Genes are binned by mean; a gene's dispersion is compared with those of its bin.
- Choose on training cells only; a gene picked by its variance among test cells is a leak.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import UsageError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    SparseMatrix = csr_matrix

Array = np.ndarray[Any, np.dtype[Any]]


def normalised_dispersion(expression: SparseMatrix, *, num_bins: int = 20) -> Array:
    """Return how much more each gene varies than genes of a similar mean.

    Args:
        expression: CSR [n, g], log1p of normalised counts (natural logarithm).
        num_bins: of equal width over the log1p mean.

    Returns:
        float64 [g]; NaN for a gene that does not vary. A gene alone in its bin has 1.

    Source: Satija, R. et al. (2015), Nature Biotechnology 33, 495-502; the numbers are those of
    scanpy's `highly_variable_genes(flavor="seurat")`.
    """
    num_cells = expression.shape[0]
    if num_cells < 2:
        raise UsageError(f"{num_cells} cell has no variance: give at least two training cells.")
    rates = expression.astype(np.float64)
    rates.data = np.expm1(rates.data)
    mean = np.asarray(rates.mean(axis=0)).ravel()
    rates.data **= 2
    mean_square = np.asarray(rates.mean(axis=0)).ravel()
    variance = np.maximum(mean_square - mean**2, 0) * num_cells / (num_cells - 1)
    # The same tiny mean for silent genes puts them in the lowest bin without dividing by 0.
    mean[mean == 0] = 1e-12
    dispersion = variance / mean
    dispersion[dispersion == 0] = np.nan
    return _against_bin(np.log(dispersion), np.log1p(mean), num_bins)


def _against_bin(dispersion: Array, mean: Array, num_bins: int) -> Array:
    """Return (dispersion - mean of its bin) / standard deviation of its bin, [g]."""
    low, high = float(mean.min()), float(mean.max())
    margin = 0.001 * (high - low if high > low else abs(low))
    edges = np.linspace(low, high, num_bins + 1)
    edges[0] -= margin
    # Bins are closed on the right; the margin brings the smallest mean into the first.
    bins = np.clip(np.searchsorted(edges, mean, side="left") - 1, 0, num_bins - 1)
    varies = ~np.isnan(dispersion)
    size = np.bincount(bins[varies], minlength=num_bins)
    total = np.bincount(bins[varies], dispersion[varies], minlength=num_bins)
    average = total / np.maximum(size, 1)
    squares = np.bincount(bins[varies], (dispersion - average[bins])[varies] ** 2, num_bins)
    deviation = np.sqrt(squares / np.maximum(size - 1, 1))
    alone = size == 1
    deviation[alone], average[alone] = average[alone], 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((dispersion - average[bins]) / deviation[bins])


def highly_variable_genes(expression: SparseMatrix, num_genes: int) -> Array:
    """Return the positions of the genes with the highest normalised dispersion.

    Args:
        expression: CSR [n, g], log1p of normalised counts.
        num_genes: how many to take; all that vary when there are fewer.

    Returns:
        int64, ascending; ties go to the lower position.

    Raises:
        UsageError: no gene varies, or `num_genes` is below 1.
    """
    if num_genes < 1:
        raise UsageError(f"num_genes = {num_genes} takes no gene; give at least 1.")
    score = normalised_dispersion(expression)
    usable = np.flatnonzero(~np.isnan(score))
    if len(usable) == 0:
        raise UsageError(
            f"None of {expression.shape[1]} genes varies among {expression.shape[0]} cells, so none "
            "can be chosen. Check that the matrix holds different cells."
        )
    order = np.argsort(-score[usable], kind="stable")[:num_genes]
    return np.sort(usable[order])
