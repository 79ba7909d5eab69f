"""A sketch of the cells for the model, and for every other cell the mean of its neighbours in it.

- The sketch covers the space of principal components of counts evenly (`omics.data.selection`), so
  that rare types are in it. It is drawn among the cells that the model sees.
- Every other cell gets a weighted mean of the embeddings of its 15 nearest cells of the sketch, in
  the same space. The weights are those of UMAP: 1 for the nearest, then falling at a scale of the
  cell's own, so that about four neighbours count and far ones of another type do not.
- What this gives is smoother than what the model gives: it holds what neighbours share, and nothing
  that sets a cell apart from them.
- A cell in which the model sees no gene has no embedding, and none is made up for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import UsageError
from omics.eval.embedding_sources import EMBEDDED, NEIGHBOURS, NONE
from omics.models.inference import InferenceBatch, reasons_of_cells

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omics.data import CellStore
    from omics.data.command_line import Show
    from omics.models.bundle import Bundle

Array = np.ndarray[Any, np.dtype[Any]]

NUM_NEIGHBOURS = 15
_BLOCK_CELLS = 2048


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Sketch:
    """The cells that a model is run on, in the place of all.

    Attributes:
        rows: int64 [m], ascending.
        points: float32 [n, d], principal components of all cells.
        reasons: int8 [n], why a cell can have no embedding; 0 where it can.
        num_tokens: int64 [n], tokens of each cell.
        seed: with which it was drawn.
    """

    rows: Array
    points: Array
    reasons: Array
    num_tokens: Array
    seed: int

    @property
    def sources(self) -> Array:
        """int8 [n], where the embedding of each cell is from, as a place in `SOURCES`."""
        found = np.full(len(self.reasons), NEIGHBOURS, np.int8)
        found[self.rows] = EMBEDDED
        found[self.reasons > 0] = NONE
        return found

    def record(self) -> dict[str, Any]:
        """Return how it was made, for `uns["omics"]`."""
        return {
            "method": "geometric-sketch",
            "num_cells": len(self.rows),
            "num_from_neighbours": int((self.sources == NEIGHBOURS).sum()),
            "num_neighbours": min(NUM_NEIGHBOURS, len(self.rows)),
            "num_components": self.points.shape[1],
            "seed": self.seed,
        }


def draw_sketch(
    bundle: Bundle,
    store: CellStore,
    max_cells: int,
    *,
    seed: int,
    pooling: str | None,
    layer: int | None,
    show: Show,
) -> Sketch | None:
    """Choose the cells that the model is run on.

    Args:
        bundle: with a tokenizer of cells.
        store: of raw counts.
        max_cells: how many.
        seed: of the sketch.
        pooling: see `embed`.
        layer: see `embed`.
        show: shows progress.

    Returns:
        The sketch; None where the model sees no more cells than that, and is run on all of them.

    Raises:
        UsageError: fewer than one cell, or a negative seed.
    """
    from omics.data.selection import geometric_sketch_rows, principal_components

    if max_cells < 1:
        raise UsageError(f"max_cells is {max_cells}; it must be at least 1.")
    if seed < 0:
        raise UsageError(f"The seed is {seed}; it must not be negative.")
    if max_cells >= len(store):
        return None
    with show("reading genes", len(store)) as advance:
        reasons, num_tokens = reasons_of_cells(
            bundle, store, pooling=pooling, layer=layer, on_progress=advance
        )
    seen = np.flatnonzero(reasons == 0)
    if max_cells >= len(seen):
        return None
    with show("components of counts", 3 * len(store)) as advance:
        points = principal_components(store, on_progress=advance)
    rows = seen[geometric_sketch_rows(points[seen], max_cells, seed=seed)]
    return Sketch(rows=rows, points=points, reasons=reasons, num_tokens=num_tokens, seed=seed)


def all_cells(sketch: Sketch, vectors: Array) -> Iterator[InferenceBatch]:
    """Give every cell an embedding, from the cells of a sketch.

    Args:
        sketch: which cells were embedded.
        vectors: float32 [m, width], of these cells.

    Yields:
        All cells in order, in blocks of consecutive ones.
    """
    from sklearn.neighbors import NearestNeighbors

    known = sketch.points[sketch.rows]
    search = NearestNeighbors(n_neighbors=min(NUM_NEIGHBOURS, len(known)), algorithm="brute").fit(
        known
    )
    sources = sketch.sources
    place = np.cumsum(sources == EMBEDDED) - 1
    for start in range(0, len(sources), _BLOCK_CELLS):
        rows = np.arange(start, min(start + _BLOCK_CELLS, len(sources)))
        values = np.full((len(rows), vectors.shape[1]), np.nan, np.float32)
        own, others = (sources[rows] == each for each in (EMBEDDED, NEIGHBOURS))
        values[own] = vectors[place[rows[own]]]
        if others.any():
            asked = sketch.points[rows[others]]
            nearest = search.kneighbors(asked, return_distance=False)
            nearest, weights = _weighed(asked, known, nearest)
            values[others] = np.einsum("nk,nkd->nd", weights, vectors[nearest])
        yield InferenceBatch(
            rows=rows,
            embeddings=values,
            logits={},
            num_tokens=sketch.num_tokens[rows],
            reasons=sketch.reasons[rows],
        )


def _weighed(points: Array, known: Array, nearest: Array) -> tuple[Array, Array]:
    """Return int64 [n, k] neighbours, the nearest first, and float32 [n, k] weights that add up to 1.

    Source: McInnes, Healy & Melville (2018), arXiv:1802.03426, section 3.1.
    """
    from omics.eval.integration.neighbour_loops import fuzzy_weights

    # Again in float64: the search rounds, and weights change steeply between near cells.
    steps = known[nearest].astype(np.float64) - points[:, None]
    distances = np.sqrt(np.square(steps).sum(axis=2))
    order = np.argsort(distances, axis=1, kind="stable")
    distances = np.take_along_axis(distances, order, axis=1)
    weights = np.empty_like(distances)
    fuzzy_weights(distances, weights)
    weights[(distances > 0) & (distances[:, :1] == 0)] = 0  # A copy gets what its original has.
    weights /= weights.sum(axis=1, keepdims=True)
    return np.take_along_axis(nearest, order, axis=1), weights.astype(np.float32)
