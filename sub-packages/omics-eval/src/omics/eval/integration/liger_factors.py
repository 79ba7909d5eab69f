"""LIGER: integrative non-negative factors of batches, then quantiles of cells that are alike aligned.

- Batch i is X_i ~ H_i (W + V_i): factors W that all batches share and V_i of its own, all non-negative,
  that minimise sum_i |X_i - H_i (W + V_i)|^2 + penalty |H_i V_i|^2.
- Factors are updated one after the other, each to its exact minimum given the others (HALS), so the
  objective never rises. X stays sparse.
- Sources: Welch, J. D. et al. (2019), Cell 177, 1873-1887 (the model, 20 factors, penalty 5, quantile
  alignment); Gao, C. et al. (2021), Nature Biotechnology 39, 1000-1007 (the updates).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scipy.sparse import csr_matrix

Array = np.ndarray[Any, np.dtype[Any]]

NUM_FACTORS = 20
PENALTY = 5.0
MAX_ROUNDS = 200
TOLERANCE = 1e-5
NUM_QUANTILES = 50
NUM_NEIGHBOURS = 20
MIN_CELLS = 20
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class SharedFactors:
    """A factorisation of several batches.

    Attributes:
        loadings: H_i, float64 [n_i, k] of each batch.
        shared: W, float64 [k, g]; each row has length 1, which fixes the scale of the loadings.
        own: V_i, float64 [k, g] of each batch.
        objective: after each round.
    """

    loadings: list[Array]
    shared: Array
    own: list[Array]
    objective: list[float]


def liger_factors(rates: csr_matrix, batches: Array, *, seed: int = 0) -> Array:
    """Return the aligned loadings of cells, float64 [n, k].

    Args:
        rates: CSR [n, g], counts of each cell divided by its total, of the genes to use.
        batches: str [n].
        seed: of the first factors.
    """
    members = [np.flatnonzero(batches == batch) for batch in np.unique(batches)]
    parts = [_scaled(rates[rows].astype(np.float64)) for rows in members]
    found = shared_factors(parts, seed=seed)
    aligned = np.empty((len(batches), found.shared.shape[0]))
    for rows, loadings in zip(members, aligned_loadings(found.loadings), strict=True):
        aligned[rows] = loadings
    return aligned


def shared_factors(
    parts: Sequence[csr_matrix],
    *,
    num_factors: int = NUM_FACTORS,
    penalty: float = PENALTY,
    max_rounds: int = MAX_ROUNDS,
    seed: int = 0,
) -> SharedFactors:
    """Factorise batches together.

    Args:
        parts: CSR float64 [n_i, g] of each batch, not negative.
        num_factors: k.
        penalty: of what a batch has of its own.
        max_rounds: at most; it ends before where the objective falls by less than 1e-5 of itself.
        seed: of the first factors.
    """
    random = np.random.default_rng(seed)
    genes = parts[0].shape[1]
    shared = random.random((num_factors, genes))
    own = [0.1 * random.random((num_factors, genes)) for _ in parts]
    loadings = [random.random((part.shape[0], num_factors)) for part in parts]
    squares = sum(float(part.multiply(part).sum()) for part in parts)
    objective: list[float] = []
    for _ in range(max_rounds):
        inner, crossed = [], []
        for part, h, v in zip(parts, loadings, own, strict=True):
            both = shared + v
            gram, target = both @ both.T + penalty * v @ v.T, part @ both.T
            for j in range(num_factors):
                step = (target[:, j] - h @ gram[:, j]) / max(gram[j, j], _TINY)
                h[:, j] = np.maximum(h[:, j] + step, 0)
            c, d = h.T @ h, np.asarray((part.T @ h).T)
            for j in range(num_factors):
                step = d[j] - c[j] @ (shared + (1 + penalty) * v)
                v[j] = np.maximum(v[j] + step / max((1 + penalty) * c[j, j], _TINY), 0)
            inner.append(c)
            crossed.append(d)
        for j in range(num_factors):
            step = sum(
                d[j] - c[j] @ (shared + v) for c, d, v in zip(inner, crossed, own, strict=True)
            )
            shared[j] = np.maximum(shared[j] + step / max(sum(c[j, j] for c in inner), _TINY), 0)
        error = squares
        for c, d, v in zip(inner, crossed, own, strict=True):
            both = shared + v
            error += float((c * (both @ both.T + penalty * v @ v.T)).sum() - 2 * (d * both).sum())
        objective.append(error)
        if len(objective) > 1 and objective[-2] - error < TOLERANCE * objective[-2]:
            break
    length = np.maximum(np.linalg.norm(shared, axis=1), _TINY)
    return SharedFactors(
        loadings=[h * length for h in loadings],
        shared=shared / length[:, None],
        own=[v / length[:, None] for v in own],
        objective=objective,
    )


def aligned_loadings(loadings: Sequence[Array]) -> list[Array]:
    """Return loadings with the quantiles of the largest batch, cluster by cluster.

    A cell belongs to the factor that most of its 20 neighbours in its batch load highest, each factor
    scaled to the same spread within a batch. Of each cluster with 20 cells in a batch and in the largest
    one, each loading is moved to the quantile of the latter.

    Args:
        loadings: float64 [n_i, k] of each batch.
    """
    clusters = [_clusters(h) for h in loadings]
    largest = int(np.argmax([len(h) for h in loadings]))
    levels = np.linspace(0, 1, NUM_QUANTILES + 1)
    aligned = [h.copy() for h in loadings]
    for batch, (h, cluster) in enumerate(zip(aligned, clusters, strict=True)):
        for factor in np.unique(cluster) if batch != largest else ():
            here = cluster == factor
            there = loadings[largest][clusters[largest] == factor]
            if here.sum() < MIN_CELLS or len(there) < MIN_CELLS:
                continue
            theirs = np.quantile(there, levels, axis=0)
            ours = np.quantile(h[here], levels, axis=0)
            for j in range(h.shape[1]):
                # Many loadings are 0: what has several quantiles gets the mean of theirs.
                values, place = np.unique(ours[:, j], return_inverse=True)
                instead = np.bincount(place, theirs[:, j]) / np.bincount(place)
                h[here, j] = np.interp(h[here, j], values, instead)
    return aligned


def _clusters(loadings: Array) -> Array:
    """Return int64 [n], the factor that most neighbours of a cell load highest."""
    from sklearn.neighbors import NearestNeighbors

    spread = np.sqrt(np.square(loadings).mean(axis=0))
    scaled = loadings / np.maximum(spread, _TINY)
    highest = scaled.argmax(axis=1)
    # Asked with the cells themselves, so that each is among its own neighbours.
    search = NearestNeighbors(n_neighbors=min(NUM_NEIGHBOURS, len(scaled))).fit(scaled)
    near = search.kneighbors(scaled, return_distance=False)
    votes = np.zeros(loadings.shape)
    np.add.at(votes, (np.arange(len(loadings))[:, None], highest[near]), 1)
    return np.asarray(votes.argmax(axis=1))


def _scaled(part: csr_matrix) -> csr_matrix:
    """Return the rates of a batch, each gene divided by its root mean square; 0 stays 0."""
    from scipy import sparse

    spread = np.sqrt(np.asarray(part.multiply(part).mean(axis=0)).ravel())
    return sparse.csr_matrix(part @ sparse.diags(1 / np.where(spread > 0, spread, 1.0)))
