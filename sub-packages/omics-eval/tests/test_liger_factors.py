"""Factors of batches: the objective falls, planted factors are found, planted shifts are aligned."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from omics.eval.integration.liger_factors import (
    PENALTY,
    aligned_loadings,
    liger_factors,
    shared_factors,
)


def _planted(seed=0, *, own=0.5):
    """Two batches of three factors, and what one of them has besides in every factor."""
    random = np.random.default_rng(seed)
    shared = np.kron(np.eye(3), np.ones(10)) * random.uniform(0.5, 1.5, 30)
    shared = np.hstack([shared, np.zeros((3, 6))])
    extra = np.hstack([np.zeros((3, 30)), own * np.ones((3, 6))])
    kinds = [random.integers(0, 3, number) for number in (300, 200)]
    loadings = [np.eye(3)[kind] * random.uniform(0.5, 1.5, (len(kind), 1)) for kind in kinds]
    parts = [loadings[0] @ shared, loadings[1] @ (shared + extra)]
    return [sparse.csr_matrix(part) for part in parts], kinds, shared


def _objective(parts, found):
    total = 0.0
    for part, h, v in zip(parts, found.loadings, found.own, strict=True):
        total += np.square(part.toarray() - h @ (found.shared + v)).sum()
        total += PENALTY * np.square(h @ v).sum()
    return total


def test_the_objective_never_rises_and_is_what_it_says():
    random = np.random.default_rng(0)
    parts = [
        sparse.csr_matrix(random.poisson(0.7, (number, 40)).astype(np.float64))
        for number in (60, 45, 30)
    ]
    found = shared_factors(parts, num_factors=6, seed=1)
    assert len(found.objective) > 5
    assert (np.diff(found.objective) <= 1e-9 * found.objective[0]).all()
    assert found.objective[-1] == pytest.approx(_objective(parts, found), rel=1e-9)
    assert np.linalg.norm(found.shared, axis=1) == pytest.approx(np.ones(6))
    assert min(each.min() for each in (*found.loadings, *found.own, found.shared)) >= 0
    again = shared_factors(parts, num_factors=6, seed=1)
    assert np.array_equal(again.shared, found.shared)


def test_planted_factors_are_shared_and_the_rest_is_of_its_batch():
    parts, kinds, shared = _planted()
    found = shared_factors(parts, num_factors=3, seed=0)
    unit = shared / np.linalg.norm(shared, axis=1, keepdims=True)
    alike = unit[:, :30] @ found.shared[:, :30].T
    assert (alike.max(axis=1) > 0.99).all()
    order = alike.argmax(axis=1)
    for h, kind in zip(found.loadings, kinds, strict=True):
        assert (np.argmax(h[:, order], axis=1) == kind).mean() > 0.99
    assert found.own[1][:, 30:].sum() > 10 * found.own[0][:, 30:].sum()


def test_quantiles_become_those_of_the_largest_batch():
    random = np.random.default_rng(0)
    kinds = [random.integers(0, 2, number) for number in (400, 300)]
    loadings = [5.0 * np.eye(2)[kind] + random.uniform(0, 1, (len(kind), 2)) for kind in kinds]
    loadings[1] = loadings[1] * 3 + 1
    before = [each.copy() for each in loadings]
    first, second = aligned_loadings(loadings)
    assert np.array_equal(first, before[0])
    assert np.array_equal(loadings[1], before[1])
    for kind in range(2):
        for factor in range(2):
            theirs = np.quantile(first[kinds[0] == kind, factor], [0.1, 0.5, 0.9])
            ours = np.quantile(second[kinds[1] == kind, factor], [0.1, 0.5, 0.9])
            assert ours == pytest.approx(theirs, abs=0.1)


def test_loadings_that_are_alike_stay_alike():
    random = np.random.default_rng(0)
    first = np.stack([1 + random.random(100), random.random(100) / 10], axis=1)
    second = np.stack([1 + random.random(60), np.zeros(60)], axis=1)
    second[:20, 1] = 0.1 * random.random(20)
    # Cells of the other factor, beside which what is small here counts for little.
    others = np.tile([0.0, 5.0], (40, 1))
    parts = [np.concatenate([each, others]) for each in (first, second)]
    moved = aligned_loadings(parts)[1][:60, 1]
    # The lower two thirds of the quantiles are 0 here, and become their mean there.
    lower = np.quantile(first[:, 1], np.linspace(0, 1, 51))[:34].mean()
    assert moved[20:] == pytest.approx(np.full(40, lower), rel=1e-9)
    assert moved[:20].min() > lower


def test_a_batch_too_small_to_align_is_left_as_it_is():
    random = np.random.default_rng(0)
    loadings = [random.random((100, 2)), 7 + random.random((8, 2))]
    assert np.array_equal(aligned_loadings(loadings)[1], loadings[1])


def test_cells_keep_their_places():
    parts, kinds, _ = _planted()
    batches = np.array(["b"] * 300 + ["a"] * 200)
    order = np.random.default_rng(3).permutation(500)
    rates = sparse.csr_matrix(sparse.vstack(parts))
    found = liger_factors(rates, batches)
    shuffled = liger_factors(rates[order], batches[order])
    assert found.shape == shuffled.shape == (500, 20)
    # A cell's highest factor goes with its kind, whichever factor that is.
    kind = np.concatenate(kinds)
    for given, truth in ((found, kind), (shuffled, kind[order])):
        votes = np.zeros((20, 3))
        np.add.at(votes, (given.argmax(axis=1), truth), 1)
        assert votes.max(axis=1).sum() / 500 > 0.95
