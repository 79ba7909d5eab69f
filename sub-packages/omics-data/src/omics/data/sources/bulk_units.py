"""What the values of a bulk matrix are (counts, TPM, their logarithm, ...), and TPM from counts.

- Transcripts per million of a sample add up to a million, so a sum says more here than in single
  cells, and one sample is enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import UsageError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Array = np.ndarray[Any, np.dtype[Any]]

MILLION = 1e6
_TOLERANCE = 0.01
_BASES = (("log2(TPM + 1)", np.log(2.0)), ("ln(TPM + 1)", 1.0), ("log10(TPM + 1)", np.log(10.0)))
# Expected counts are whole for most genes, normalised values for hardly any.
_MANY_WHOLE = 0.3
_MAX_LOG = 25.0


def bulk_unit(values: Array, indptr: Array | None = None) -> str:
    """Name the unit of the values of a bulk matrix.

    Args:
        values: [m] values of some samples without zeros.
        indptr: int64 [k + 1] if they are all the values of k samples, else None.

    Returns:
        `counts`, `TPM or CPM`, `log2(TPM + 1)` (or `ln`, `log10`), `expected counts`, `logarithms`,
        `scaled values`, `FPKM or another unit`, or `unknown` for no values.
    """
    values = np.asarray(values, np.float64)
    if not len(values) or not np.isfinite(values).all():
        return "unknown"
    if values.min() < 0:
        return "scaled values"
    whole = float(np.mean(values == np.floor(values)))
    if whole == 1.0:
        return "counts"
    per_million = _per_million(values, indptr)
    if per_million is not None:
        return per_million
    if whole >= _MANY_WHOLE:
        return "expected counts"
    return "logarithms" if values.max() < _MAX_LOG else "FPKM or another unit"


def _per_million(values: Array, indptr: Array | None) -> str | None:
    if _sums_to_million(values, indptr):
        return "TPM or CPM"
    if values.max() < _MAX_LOG:
        for name, factor in _BASES:
            # A large value is no logarithm in a small base: its power is far above a million.
            with np.errstate(over="ignore"):
                if _sums_to_million(np.expm1(values * factor), indptr):
                    return name
    return None


def _sums_to_million(values: Array, indptr: Array | None) -> bool:
    if indptr is None:
        return False
    starts = indptr[:-1][np.diff(indptr) > 0]
    sums = np.add.reduceat(values, starts)
    return bool(np.all(np.abs(sums / MILLION - 1) < _TOLERANCE))


def transcripts_per_million(
    counts: Array | csr_matrix[Any], gene_lengths_bp: Array
) -> Array | csr_matrix[Any]:
    """Return transcripts per million: counts per base of their gene, scaled to a million a sample.

    Args:
        counts: [samples, genes], an array or a CSR matrix, not negative.
        gene_lengths_bp: [genes] effective or exonic lengths in base pairs, above 0.

    Returns:
        float64 [samples, genes] of the same kind; a sample without counts stays zero.

    Raises:
        UsageError: the lengths do not fit the genes, or one is not above 0.

    Source:
        Li et al. 2010, "RNA-Seq gene expression estimation with read mapping uncertainty".
    """
    from scipy import sparse

    lengths = np.asarray(gene_lengths_bp, np.float64)
    if lengths.shape != (counts.shape[1],):
        raise UsageError(f"{lengths.size:,} gene lengths for {counts.shape[1]:,} genes.")
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        raise UsageError(
            f"The length of gene {wrong[0]} is {lengths[wrong[0]]}; it must be above 0."
        )
    rates = sparse.csr_matrix(counts, dtype=np.float64) @ sparse.diags_array(1.0 / lengths)
    totals = np.asarray(rates.sum(axis=1)).ravel()
    scale = np.divide(MILLION, totals, out=np.zeros_like(totals), where=totals > 0)
    scaled = sparse.csr_matrix(sparse.diags_array(scale) @ rates)
    return scaled if sparse.issparse(counts) else scaled.toarray()
