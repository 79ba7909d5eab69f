"""Leiden clusters of a graph at several resolutions, by igraph."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scipy.sparse import csr_matrix

Array = np.ndarray[Any, np.dtype[Any]]

RESOLUTIONS = tuple(round(0.2 * step, 1) for step in range(1, 11))


def require_igraph() -> None:
    """Refuse to work towards clusters that cannot be made.

    Raises:
        MissingExtraError: igraph is not installed.
    """
    try:
        import igraph  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "Clusters need igraph, which is not installed. Run: pip install "
            "'omics-eval[integration]'"
        ) from error


def leiden_clusters(
    graph: csr_matrix, *, resolutions: Sequence[float] = RESOLUTIONS, seed: int = 0
) -> Array:
    """Cluster the vertices of a weighted graph by modularity.

    Args:
        graph: CSR [n, n], symmetric.
        resolutions: higher ones give more clusters.
        seed: of the order in which vertices are visited; every resolution begins with it.

    Returns:
        int64 [r, n], the cluster of each vertex at each resolution, from 0.

    Source: Traag, V. A., Waltman, L. & van Eck, N. J. (2019), Scientific Reports 9, 5233.
    """
    require_igraph()
    import igraph
    from scipy.sparse import triu

    upper = triu(graph, k=1, format="coo")
    edges = np.stack([upper.row, upper.col], axis=1)
    network = igraph.Graph(n=graph.shape[0], edges=edges)
    weights = upper.data.tolist()
    found = np.empty((len(resolutions), graph.shape[0]), np.int64)
    try:
        for row, resolution in enumerate(resolutions):
            # igraph has one generator for the whole process.
            igraph.set_random_number_generator(random.Random(seed))
            found[row] = network.community_leiden(
                objective_function="modularity", weights=weights, resolution=resolution
            ).membership
    finally:
        igraph.set_random_number_generator(random)
    return found
