"""Scores in a tiny ontology, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import InputDataError
from omics.eval.annotating.ontology_scores import TermScores, ontology_rows
from omics.eval.baselines import PCA_LOGISTIC
from omics.tokenizers.ontology_labels import Ontology

#        cell            spot
#       /    \
#   lympho   mono
#    /  \
#   T    B
#  /  \
# CD4  CD8
ONTOLOGY = Ontology(
    names={
        "C:0": "cell",
        "C:1": "lympho",
        "C:2": "mono",
        "C:3": "T",
        "C:4": "B",
        "C:5": "CD4",
        "C:6": "CD8",
        "S:0": "spot",
    },
    parents={
        "C:0": [],
        "C:1": ["C:0"],
        "C:2": ["C:0"],
        "C:3": ["C:1"],
        "C:4": ["C:1"],
        "C:5": ["C:3"],
        "C:6": ["C:3"],
        "S:0": [],
    },
    synonyms={"T cell": "C:3"},
)
TRUTH = ["CD4", "CD4", "CD4", "CD4", "T", "B", "mono", "CD8"]
GIVEN = ["CD4", "T", "CD8", "mono", "CD4", "T cell", None, "green"]
# Terms above, without roots: CD4 3 (CD4 T lympho), CD8 3, T 2, B 2, lympho 1, mono 1.
SAME = [1, 0, 0, 0, 0, 0, 0, 0]
LINEAGE = [1, 1, 0, 0, 1, 0, 0, 0]
# No answer is the top above all roots: mono-cell-top 2, CD8-T-lympho-cell-top 4.
STEPS = [0, 1, 2, 4, 1, 2, 2, 4]
SHARED = [3, 2, 2, 0, 2, 1, 0, 0]
SIZE_TRUTH = [3, 3, 3, 3, 2, 2, 1, 3]
SIZE_GIVEN = [3, 2, 3, 1, 3, 2, 0, 0]


def _objects(labels):
    return np.array(labels, dtype=object)


def test_scores_are_those_counted_by_hand():
    scores = TermScores(ONTOLOGY, set(TRUTH), {label for label in GIVEN if label})
    found = scores.metrics(_objects(TRUTH), _objects(GIVEN))
    assert {name: metric.value for name, metric in found.items()} == pytest.approx(
        {
            "exact_term": np.mean(SAME),
            "lineage_accuracy": np.mean(LINEAGE),
            "ontology_distance": np.mean(STEPS),
            "hierarchical_precision": sum(SHARED) / sum(SIZE_GIVEN),
            "hierarchical_recall": sum(SHARED) / sum(SIZE_TRUTH),
            "hierarchical_f1": 2 * sum(SHARED) / (sum(SIZE_GIVEN) + sum(SIZE_TRUTH)),
        }
    )
    assert scores.unknown == ["green"]
    assert len(scores.notes) == 1
    assert scores.notes[0].startswith("'green' is no term of the ontology. Known: 'cell'")


def test_a_cell_that_counts_twice_is_two_cells():
    scores = TermScores(ONTOLOGY, set(TRUTH))
    times = np.array([2, 0, 1, 3, 1, 0, 1, 1])
    once = scores.metrics(_objects(TRUTH), _objects(GIVEN))
    twice = scores.metrics(np.repeat(_objects(TRUTH), times), np.repeat(_objects(GIVEN), times))
    for name, metric in once.items():
        assert metric(times[None].astype(float))[0] == pytest.approx(twice[name].value)


def test_terms_of_two_roots_are_steps_apart_over_the_top():
    scores = TermScores(ONTOLOGY, {"spot", "mono"}, {"cell"})
    metrics = scores.metrics(_objects(["mono", "spot"]), _objects(["spot", "cell"]))
    assert metrics["ontology_distance"].value == (3 + 2) / 2
    # Roots have no terms above them, so there is nothing to share, and nothing divides by zero.
    assert metrics["hierarchical_precision"].value == 0.0


def test_rows_leave_out_cells_that_are_no_terms_and_hold_the_difference():
    truth = _objects([*TRUTH, "green"])
    predictions = {
        "model": _objects([*TRUTH, "green"]),
        PCA_LOGISTIC: _objects([*GIVEN, "green"]),
        "other": _objects([None] * 9),
    }
    scores = TermScores(ONTOLOGY, set(truth), {"T cell"})
    rows = ontology_rows(
        scores, truth, predictions, task="t", dataset="d", bundles={"model": "abc"}
    )
    assert len(rows) == 3 * 6 + 3
    assert {row.n for row in rows} == {8}
    found = {(row.method, row.metric): row for row in rows}
    assert found["model", "lineage_accuracy"].value == 1.0
    assert found["model", "lineage_accuracy"].low == pytest.approx(8 / (8 + 1.959964**2))
    assert found["other", "hierarchical_f1"].value == 0.0
    assert found["model", "ontology_distance"].value == 0.0
    difference = found["model minus PCA + logistic regression", "ontology_distance_difference"]
    assert difference.value == -np.mean(STEPS)
    assert difference.low <= difference.value <= difference.high < 0
    assert [row.bundle for row in rows[:7]] == ["abc"] * 6 + [""]
    assert difference.bundle == "abc"
    groups = np.array(["d1"] * 4 + ["d2"] * 5)
    grouped = ontology_rows(scores, truth, predictions, task="t", dataset="d", groups=groups)
    by_donor = {(row.method, row.metric): row for row in grouped}
    shares = [np.mean(LINEAGE[:4]), np.mean(LINEAGE[4:])]
    row = by_donor[PCA_LOGISTIC, "lineage_accuracy"]
    assert (row.low, row.high) == (min(shares), max(shares))


def test_labels_that_match_nothing_are_refused():
    with pytest.raises(
        InputDataError, match=r"None of the 2 labels, such as 'CD5', is an id.*Did you mean 'CD"
    ):
        TermScores(ONTOLOGY, {"red", "CD5"}, {"T"})
