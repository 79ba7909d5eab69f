from __future__ import annotations

import numpy as np
import pytest
from integration_cells import planted_groups
from sklearn.metrics import silhouette_samples

from omics.eval.integration import distance_blocks
from omics.eval.integration.silhouettes import silhouettes


@pytest.mark.parametrize("entries", [1, 3000, 8_000_000])
def test_both_silhouettes_are_those_of_scikit_learn(monkeypatch, entries):
    monkeypatch.setattr(distance_blocks, "_BLOCK_ENTRIES", entries)
    points, _, labels, batches = planted_groups()
    by_label, by_batch = silhouettes(points, labels, batches)
    wide = points.astype(np.float64)
    np.testing.assert_allclose(by_label, silhouette_samples(wide, labels), atol=1e-6)
    assert by_label[0] == 0  # the only cell of its label
    for label in range(3):
        inside = labels == label
        expected = silhouette_samples(wide[inside], batches[inside])
        np.testing.assert_allclose(by_batch[inside], expected, atol=1e-6)
    assert np.isnan(by_batch[labels == 3]).all()  # of one batch


def test_one_label_has_no_silhouette():
    by_label, by_batch = silhouettes(np.eye(4), np.zeros(4, int), np.array([0, 0, 1, 1]))
    assert np.isnan(by_label).all()
    np.testing.assert_allclose(by_batch, 0, atol=1e-6)  # all are equally far


def test_identical_cells_have_silhouette_zero():
    by_label, _ = silhouettes(np.zeros((4, 2)), np.array([0, 0, 1, 1]), np.zeros(4, int))
    assert by_label.tolist() == [0, 0, 0, 0]
