"""UMAP of an embedding: two coordinates per cell, for looking only.

- Fixed random state and one thread: the same cells give the same picture.
- Above a limit a seeded subsample is projected, and the caller is told which cells.
- `placed_cells` gives a place to every cell, NaN to those that are not projected.
- Neighbours are found exactly, in seconds for the 20,000 cells of that limit.
- Starts from principal components: no spectral step that fails on small or split-up data.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np

from omics.data.errors import MissingExtraError, UsageError
from omics.eval.annotation import usable_rows

Array = np.ndarray[Any, np.dtype[Any]]

MAX_CELLS = 20_000
MIN_CELLS = 5
NUM_NEIGHBOURS = 15
MIN_DISTANCE = 0.3


def require_umap() -> None:
    """Refuse to work towards a UMAP that cannot be made.

    Raises:
        MissingExtraError: umap-learn is not installed.
    """
    # Importing it takes seconds.
    if find_spec("umap") is None:
        raise MissingExtraError(
            "The UMAP needs umap-learn, which is not installed. Run: pip install 'omics-eval[plots]'"
        )


def placed_cells(embedding: Array, *, seed: int = 0, max_cells: int = MAX_CELLS) -> Array:
    """Return the UMAP coordinates of every cell.

    Args:
        embedding: float [n, d].
        seed: see `umap_coordinates`.
        max_cells: see `umap_coordinates`.

    Returns:
        float32 [n, 2]; NaN for a cell without an embedding, one that is not in the sample, and all
        cells where they are too few for a UMAP.
    """
    places = np.full((len(embedding), 2), np.nan, np.float32)
    if int(usable_rows(embedding).sum()) >= MIN_CELLS and embedding.shape[1] > 1:
        rows, coordinates = umap_coordinates(embedding, seed=seed, max_cells=max_cells)
        places[rows] = coordinates
    return places


def umap_coordinates(
    embedding: Array, *, seed: int = 0, max_cells: int = MAX_CELLS
) -> tuple[Array, Array]:
    """Project an embedding to the plane.

    Args:
        embedding: float [n, d]; NaN rows are left out.
        seed: of the subsample and of UMAP.
        max_cells: more are subsampled to this number.

    Returns:
        int64 [m] ascending rows that were projected, float32 [m, 2] their coordinates.

    Raises:
        UsageError: fewer than 5 usable cells, or fewer than 2 dimensions.
        MissingExtraError: umap-learn is not installed.

    Source: McInnes, L., Healy, J. & Melville, J. (2018), arXiv:1802.03426.
    """
    rows = np.flatnonzero(usable_rows(embedding))
    if len(rows) < MIN_CELLS or embedding.shape[1] < 2:
        raise UsageError(
            f"A UMAP needs at least {MIN_CELLS} cells of 2 dimensions; there are {len(rows)} "
            f"embedded cells of {embedding.shape[1]}."
        )
    if len(rows) > max_cells:
        drawn = np.random.default_rng(seed).choice(len(rows), max_cells, replace=False)
        rows = rows[np.sort(drawn)]
    return rows, _laid_out(embedding[rows], seed)


def _laid_out(points: Array, seed: int) -> Array:
    """Return the coordinates of points, float32 [n, 2]: the graph is ours, its layout is umap's.

    The first search for neighbours of umap takes a quarter of a minute, in which numba compiles it.
    """
    require_umap()
    with warnings.catch_warnings():
        # umap says on import that its neural variant, which needs tensorflow, is not there.
        warnings.simplefilter("ignore", ImportWarning)
        from umap.umap_ import find_ab_params, simplicial_set_embedding
    from omics.eval.integration.nearest_cells import fuzzy_graph, nearest_cells

    # umap counts a cell among its own neighbours.
    neighbours = min(NUM_NEIGHBOURS, len(points) - 1) - 1
    a, b = find_ab_params(spread=1.0, min_dist=MIN_DISTANCE)
    coordinates, _ = simplicial_set_embedding(
        data=points,
        graph=fuzzy_graph(nearest_cells(points, neighbours)),
        n_components=2,
        initial_alpha=1.0,
        a=a,
        b=b,
        gamma=1.0,
        negative_sample_rate=5,
        n_epochs=None,
        init="pca",
        random_state=np.random.RandomState(seed),
        metric="euclidean",
        metric_kwds={},
        densmap=False,
        densmap_kwds={},
        output_dens=False,
    )
    return np.asarray(coordinates, np.float32)
