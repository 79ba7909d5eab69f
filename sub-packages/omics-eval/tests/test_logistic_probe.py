"""The strength of the probe: chosen without the query cells, and rightly where truth is planted."""

from __future__ import annotations

import numpy as np
import pytest

from omics.eval.annotation import transfer_labels
from omics.eval.logistic_probe import STRENGTHS, UNCHOSEN, chosen_strength, logistic_probe


def _cells(number, *, signal, width=30, seed=0):
    random = np.random.default_rng(seed)
    codes = random.integers(0, 2, number)
    points = random.normal(size=(number, width))
    points[:, 0] += signal * codes
    return points, codes


def test_noise_is_shrunk_and_signal_is_not():
    assert chosen_strength(*_cells(200, signal=0.0)) == STRENGTHS[0]
    assert chosen_strength(*_cells(200, signal=20.0)) == STRENGTHS[-1]


def test_the_choice_is_the_least_loss_on_held_out_cells():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from omics.eval.held_out_folds import held_out_folds

    points, codes = _cells(150, signal=1.5)
    folds = held_out_folds(codes, num_folds=3)
    losses = []
    for strength in STRENGTHS:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-8))
        parts = [
            log_loss(
                codes[folds == fold],
                probe.fit(points[folds != fold], codes[folds != fold]).predict_proba(
                    points[folds == fold]
                ),
                normalize=False,
            )
            for fold in range(3)
        ]
        losses.append(sum(parts))
    assert chosen_strength(points, codes) == STRENGTHS[int(np.argmin(losses))]


def test_a_shift_of_donors_is_noticed_where_donors_are_held_out():
    # Within a donor one dimension tells the classes apart; for a new donor it says the opposite as
    # often, so trust in it does not carry over.
    random = np.random.default_rng(0)
    donors = np.repeat(np.arange(6), 50)
    codes = random.integers(0, 2, 300)
    points = random.normal(size=(300, 12))
    for donor in range(6):
        inside = donors == donor
        points[inside, 2 * donor] += 6.0 * (codes[inside] - 0.5)
        points[inside, 2 * donor + 1] += 3.0
    points[:, 0] += 0.3 * codes
    assert chosen_strength(points, codes) > chosen_strength(points, codes, groups=donors)


def test_query_cells_have_no_say_in_each_others_answers():
    points, codes = _cells(120, signal=3.0)
    alone, strength = logistic_probe(points[:80], codes[:80], points[80:90])
    beside = np.concatenate([points[80:90], 1e6 * points[90:]])
    together, same = logistic_probe(points[:80], codes[:80], beside)
    assert strength == same
    assert np.abs(alone - together[:10]).max() < 1e-12


def test_a_class_of_one_cell_and_a_single_donor_are_lived_with():
    points, codes = _cells(60, signal=4.0)
    codes[0] = 2
    probabilities, strength = logistic_probe(points, codes, points[:5])
    assert probabilities.shape == (5, 3)
    assert strength in STRENGTHS
    assert chosen_strength(points, codes, groups=np.zeros(60)) == UNCHOSEN
    # Each donor has a class of its own: no class is both taught and asked.
    assert chosen_strength(points, codes, groups=codes) == UNCHOSEN


def test_the_choice_of_many_cells_is_made_on_a_sample(monkeypatch):
    points, codes = _cells(400, signal=2.0)
    monkeypatch.setattr("omics.eval.logistic_probe.MAX_CELLS", 120)
    seen = []
    monkeypatch.setattr(
        "omics.eval.logistic_probe.held_out_folds",
        lambda codes, **_: seen.append(len(codes)) or np.arange(len(codes)) % 3,
    )
    assert chosen_strength(points, codes, groups=np.arange(400) % 7) in STRENGTHS
    assert seen == [120]


@pytest.mark.parametrize("method", ["knn", "centroid"])
def test_only_the_probe_has_a_strength(clouds, method):
    points, labels = clouds()
    assert transfer_labels(points, labels, points, method=method).strength is None
    assert transfer_labels(points, labels, points).strength in STRENGTHS
