"""Made-up cells with known types, for tests, tutorials and benchmarks without a download.

- Counts are negative binomial (Poisson around a gamma): gene means fall as a power of their rank,
  each type multiplies its marker genes, each batch shifts all genes a little, and the depth of
  cells is log-normal. So types can be found again, and batches have to be seen through.
- Cells are drawn in blocks, so that memory holds the sparse result and one dense block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import UsageError

if TYPE_CHECKING:
    import anndata

    Array = np.ndarray[Any, np.dtype[Any]]

DISPERSION = 2.0
MARKER_SHARE = 0.05
DEPTH_SIGMA = 0.35
_BLOCK_VALUES = 8_000_000


def synthesize(
    num_cells: int,
    num_genes: int,
    *,
    num_types: int = 5,
    num_batches: int = 2,
    num_donors: int = 4,
    mean_genes: int | None = None,
    marker_fold: float = 12.0,
    batch_effect: float = 0.15,
    seed: int = 0,
) -> anndata.AnnData:
    """Make up an experiment.

    Args:
        num_cells: rows.
        num_genes: columns.
        num_types: planted cell types, in decreasing frequency.
        num_batches: each cell belongs to one.
        num_donors: each belongs to one batch (donor d to batch d modulo num_batches).
        mean_genes: about how many genes a cell expresses; None takes a quarter of the genes, at
            most 1,000.
        marker_fold: how many times as much a type expresses its markers: 1 hides the types.
        batch_effect: standard deviation of the logarithm of each batch's factor for each gene.
        seed: same seed, same experiment.

    Returns:
        X (CSR, float32 holding counts, as most files do); obs `cell_type`, `batch`, `donor`
        (categories); var index of Ensembl-like ids, `gene_symbol` and `marker_of` (the type, or
        none).

    Raises:
        UsageError: a number out of range.
    """
    target = min(1000, max(1, num_genes // 4)) if mean_genes is None else mean_genes
    if not (marker_fold >= 1 and 0 <= batch_effect < 10):
        raise UsageError(
            f"marker_fold is {marker_fold} and batch_effect {batch_effect}; they must be at least 1, "
            "and between 0 and 10."
        )
    _check(
        num_cells=num_cells,
        num_genes=num_genes,
        num_types=num_types,
        num_batches=num_batches,
        num_donors=num_donors,
        mean_genes=target,
        seed=seed,
    )
    rng = np.random.default_rng(seed)
    types = rng.choice(num_types, num_cells, p=_falling_shares(num_types))
    donors = rng.integers(0, num_donors, num_cells)
    batches = donors % num_batches
    markers = _choose_markers(rng, num_types, num_genes)
    profiles = rng.permutation((np.arange(num_genes) + 1.0) ** -0.8)[None, :] * np.where(
        markers[None, :] == np.arange(num_types)[:, None], marker_fold, 1.0
    )
    profiles *= _depth_for(profiles, min(target, 0.9 * num_genes))
    shifts = np.exp(rng.normal(0, batch_effect, (num_batches, num_genes)))
    depths = np.exp(rng.normal(0, DEPTH_SIGMA, num_cells))
    blocks = []
    step = max(1, _BLOCK_VALUES // num_genes)
    for begin in range(0, num_cells, step):
        cells = slice(begin, begin + step)
        means = profiles[types[cells]] * shifts[batches[cells]] * depths[cells, None]
        blocks.append(_draw(rng, means))
    return _assemble(blocks, types, batches, donors, markers)


def _check(
    *,
    num_cells: int,
    num_genes: int,
    num_types: int,
    num_batches: int,
    num_donors: int,
    mean_genes: int,
    seed: int,
) -> None:
    if num_cells < 0 or num_genes < 1 or seed < 0:
        raise UsageError("num_cells and seed must not be negative, num_genes must be at least 1.")
    if num_types < 1 or num_batches < 1 or num_donors < num_batches:
        raise UsageError(
            f"num_types is {num_types}, num_batches {num_batches} and num_donors {num_donors}; "
            "they must be at least 1, and every batch needs a donor."
        )
    if not 1 <= mean_genes <= max(1, int(0.9 * num_genes)):
        raise UsageError(
            f"mean_genes is {mean_genes}; with {num_genes} genes it must be between 1 and "
            f"{max(1, int(0.9 * num_genes))}."
        )


def _falling_shares(num_types: int) -> Array:
    """Return how frequent each type is: each next one somewhat rarer."""
    shares = 0.75 ** np.arange(num_types)
    return np.asarray(shares / shares.sum())


def _choose_markers(rng: np.random.Generator, num_types: int, num_genes: int) -> Array:
    """Return int64 [g], the type that each gene marks, -1 for none; every type gets some."""
    markers = np.full(num_genes, -1, np.int64)
    per_type = max(1, int(MARKER_SHARE * num_genes))
    chosen = rng.permutation(num_genes)[: per_type * num_types]
    markers[chosen] = np.arange(len(chosen)) % num_types
    return markers


def _depth_for(profiles: Array, mean_genes: float) -> float:
    """Return the factor at which cells express `mean_genes` genes on average (by bisection)."""
    low, high = -20.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        silent = (1 + profiles * np.exp(middle) / DISPERSION) ** -DISPERSION
        if float((1 - silent).sum(axis=1).mean()) < mean_genes:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))


def _draw(rng: np.random.Generator, means: Array) -> Any:
    """Return negative binomial counts of these means as a CSR matrix of float32."""
    from scipy.sparse import csr_matrix

    rates = rng.gamma(DISPERSION, means / DISPERSION)
    return csr_matrix(rng.poisson(rates).astype(np.float32))


def _assemble(
    blocks: list[Any], types: Array, batches: Array, donors: Array, markers: Array
) -> anndata.AnnData:
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix, vstack

    num_genes = len(markers)
    obs = pd.DataFrame(
        {
            "cell_type": _named("type", types),
            "batch": _named("batch", batches),
            "donor": _named("donor", donors),
        },
        index=[f"cell{position:07d}" for position in range(len(types))],
    )
    var = pd.DataFrame(
        {
            "gene_symbol": [f"GENE{position}" for position in range(num_genes)],
            "marker_of": pd.Categorical([f"type{m}" if m >= 0 else "none" for m in markers]),
        },
        index=[f"ENSG{position:011d}" for position in range(num_genes)],
    )
    empty = csr_matrix(np.zeros((0, num_genes), np.float32))
    return anndata.AnnData(X=vstack(blocks or [empty], format="csr"), obs=obs, var=var)


def _named(prefix: str, codes: Array) -> Any:
    import pandas as pd

    return pd.Categorical([f"{prefix}{code}" for code in codes])
