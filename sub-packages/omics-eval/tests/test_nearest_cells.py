from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from sklearn.neighbors import NearestNeighbors

from omics.eval.integration import distance_blocks
from omics.eval.integration.nearest_cells import NearestCells, fuzzy_graph, nearest_cells


@pytest.mark.parametrize("entries", [1, 2000, 8_000_000])
def test_neighbours_are_those_of_scikit_learn_whatever_the_blocks(monkeypatch, entries):
    monkeypatch.setattr(distance_blocks, "_BLOCK_ENTRIES", entries)
    # Far from the origin, where products of float32 cancel if nothing is centred.
    points = (100 + np.random.default_rng(0).normal(size=(150, 7))).astype(np.float32)
    found = nearest_cells(points, 12)
    exact = NearestNeighbors(n_neighbors=12, algorithm="brute").fit(points.astype(np.float64))
    distances, indices = exact.kneighbors(None)
    assert np.array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, atol=1e-6)


def test_equal_cells_are_found_in_the_order_of_their_rows():
    found = nearest_cells(np.zeros((30, 3), np.float32), 5)
    assert found.indices[0].tolist() == [1, 2, 3, 4, 5]
    assert (found.indices[20] != 20).all()
    assert (found.distances == 0).all()


def test_few_cells_have_all_others_as_neighbours():
    found = nearest_cells(np.array([[0.0], [1.0], [3.0]]), 10)
    assert found.indices.tolist() == [[1, 2], [0, 2], [1, 0]]
    assert found.distances.tolist() == [[1, 3], [1, 2], [2, 3]]
    assert found.first(1).indices.tolist() == [[1], [0], [1]]


def test_fuzzy_graph_is_that_of_umap(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of a neural variant that needs tensorflow
        from umap import umap_
    for loop in ("smooth_knn_dist", "compute_membership_strengths"):
        # As Python: 200 cells are not worth compiling it.
        monkeypatch.setattr(umap_, loop, getattr(umap_, loop).py_func)
    points = np.random.default_rng(1).normal(size=(200, 5)).astype(np.float32)
    points[:4] = points[0]  # three neighbours at distance 0
    found = nearest_cells(points, 14)
    theirs, *_ = umap_.fuzzy_simplicial_set(
        coo_matrix((200, 200)),
        15,
        None,
        None,
        knn_indices=np.hstack([np.arange(200)[:, None], found.indices]),
        knn_dists=np.hstack([np.zeros((200, 1)), found.distances]).astype(np.float32),
    )
    ours = fuzzy_graph(found)
    assert abs(ours - theirs).max() < 1e-4
    assert abs(ours - ours.T).max() == 0


def test_fuzzy_graph_of_identical_cells_is_all_ones():
    nearest = NearestCells(np.array([[1], [0]], np.int32), np.zeros((2, 1)))
    assert fuzzy_graph(nearest).toarray().tolist() == [[0, 1], [1, 0]]
