from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from omics.data.errors import MissingExtraError
from omics.eval.integration.leiden_clusters import leiden_clusters


@pytest.fixture
def cliques():
    """Three cliques of six vertices, in a ring of weak edges."""
    graph = np.kron(np.eye(3), np.ones((6, 6))) - np.eye(18)
    for a, b in ((5, 6), (11, 12), (17, 0)):
        graph[a, b] = graph[b, a] = 0.1
    return csr_matrix(graph)


def test_cliques_are_found_and_resolutions_split_or_join_them(cliques):
    found = leiden_clusters(cliques, resolutions=(0.001, 1.0, 30.0), seed=3)
    assert [len(set(row)) for row in found] == [1, 3, 18]
    assert len(set(found[1][:6])) == len(set(found[1][6:12])) == 1


def test_the_same_seed_gives_the_same_clusters_and_leaves_pythons_generator(cliques):
    random.seed(5)
    before = random.getstate()
    first, second = leiden_clusters(cliques, seed=1), leiden_clusters(cliques, seed=1)
    assert random.getstate() == before
    assert np.array_equal(first, second)


def test_without_igraph_the_extra_is_named(cliques, monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'omics-eval\[integration\]'"):
        leiden_clusters(cliques)
