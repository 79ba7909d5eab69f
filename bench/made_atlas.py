"""A made-up atlas of any size for timings: 20,000 genes, about 2,000 of them seen in a cell.

- Gene abundance follows a power law, cell types differ by log-normal fold changes, depth is
  log-normal, counts are negative binomial with dispersion 2, and cells lie sorted by batch as they
  do in real atlases: 70% of the counts are 1, 99.99% below 255.
- Cells are drawn in blocks by compiled loops; the same seed gives the same cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from pathlib import Path

    import anndata

    Array = np.ndarray[Any, np.dtype[Any]]

NUM_TYPES = 12
NUM_BATCHES = 8
BLOCK_CELLS = 4096


def make_atlas(
    num_cells: int, *, num_genes: int = 20_000, genes_per_cell: int = 2000, seed: int = 0
) -> anndata.AnnData:
    """Return an atlas with counts in X (CSR, float32) and obs columns cell_type and batch.

    Args:
        num_cells: rows.
        num_genes: columns.
        genes_per_cell: about how many genes a cell of median depth shows.
        seed: of everything random.
    """
    import anndata

    rng = np.random.default_rng(seed)
    abundance = (np.arange(num_genes) + 20.0) ** -1.05
    rng.shuffle(abundance)
    profiles = abundance * np.exp(rng.normal(0, 0.8, (NUM_TYPES, num_genes)))
    profiles /= profiles.sum(axis=1, keepdims=True)
    batch = np.sort(rng.integers(0, NUM_BATCHES, num_cells))
    cell_type = rng.choice(NUM_TYPES, num_cells, p=rng.dirichlet(np.ones(NUM_TYPES)))
    depth = _depth_for(genes_per_cell, profiles) * np.exp(rng.normal(0, 0.45, num_cells))
    depth *= 0.7 + 0.6 * batch / (NUM_BATCHES - 1)
    seeds = rng.integers(0, 2**31, num_cells)
    genes, counts, lengths = [], [], []
    for begin in range(0, num_cells, BLOCK_CELLS):
        block = slice(begin, begin + BLOCK_CELLS)
        drawn = _draw(profiles, cell_type[block], depth[block], seeds[block])
        seen = drawn > 0
        lengths.append(seen.sum(axis=1))
        genes.append(np.nonzero(seen)[1].astype(np.int32))
        counts.append(drawn[seen].astype(np.float32))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    matrix = csr_matrix(
        (np.concatenate(counts), np.concatenate(genes), indptr), shape=(num_cells, num_genes)
    )
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type {each}" for each in cell_type]),
            "batch": pd.Categorical([f"batch {each}" for each in batch]),
        },
        index=[f"cell{row}" for row in range(num_cells)],
    )
    ids = [f"ENSG{number:011d}" for number in range(num_genes)]
    var = pd.DataFrame({"feature_id": ids}, index=pd.Index(ids))
    return anndata.AnnData(X=matrix, obs=obs, var=var)


def write_atlas(path: Path, num_cells: int, *, compression: str | None = None) -> None:
    """Write an atlas as `.h5ad`.

    Args:
        path: of the file.
        num_cells: rows.
        compression: `gzip` or None.
    """
    make_atlas(num_cells).write_h5ad(path, compression=compression)


def _depth_for(genes_per_cell: int, profiles: Array) -> float:
    """Return the total count at which a cell shows so many genes, by bisection."""
    low, high = 1.0, 1e7
    while high / low > 1.001:
        middle = float(np.sqrt(low * high))
        seen = np.mean([(1 - (1 + middle * profile / 2) ** -2).sum() for profile in profiles])
        low, high = (middle, high) if seen < genes_per_cell else (low, middle)
    return low


@numba.njit(parallel=True)
def _draw(profiles: Array, cell_type: Array, depth: Array, seeds: Array) -> Array:
    drawn = np.zeros((cell_type.size, profiles.shape[1]), np.uint16)
    for cell in numba.prange(cell_type.size):
        np.random.seed(seeds[cell])  # noqa: NPY002, TID251 (numba has no other)
        for gene in range(profiles.shape[1]):
            # Inversion: the probabilities of a negative binomial follow from each other.
            success = 1 / (1 + depth[cell] * profiles[cell_type[cell], gene] / 2)
            probability = success * success
            rest = np.random.random() - probability  # noqa: NPY002
            count = 0
            while rest >= 0 and count < 60_000:
                probability *= (count + 2) / (count + 1) * (1 - success)
                rest -= probability
                count += 1
                if probability < 1e-14:
                    break
            drawn[cell, gene] = count
    return drawn
