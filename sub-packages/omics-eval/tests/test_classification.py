from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from omics.data.errors import InputDataError, UsageError
from omics.eval.classification import (
    accuracy,
    accuracy_metric,
    class_table,
    code_labels,
    confusion_matrix,
    macro_f1,
    macro_f1_metric,
    score,
    score_difference,
)

pairs = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=60
)


def columns(drawn):
    truth, prediction = zip(*drawn, strict=True)
    return np.array(truth, dtype=object), np.array(prediction, dtype=object)


@given(pairs)
def test_scores_equal_scikit_learn(drawn):
    truth, prediction = columns(drawn)
    expected = metrics.f1_score(
        truth.astype(str),
        prediction.astype(str),
        labels=np.unique(truth.astype(str)),
        average="macro",
        zero_division=0,
    )
    assert macro_f1(truth, prediction) == pytest.approx(expected, abs=1e-12)
    assert accuracy(truth, prediction) == pytest.approx((truth == prediction).mean(), abs=1e-12)


@given(pairs)
def test_tables_equal_scikit_learn(drawn):
    # scikit-learn warns about a table of one class; two fixed cells keep it from being one.
    truth, prediction = columns([*drawn, ("a", "b"), ("b", "b")])
    labels = np.unique(np.concatenate([truth, prediction]).astype(str))
    expected = metrics.confusion_matrix(truth.astype(str), prediction.astype(str), labels=labels)
    confusion = confusion_matrix(truth, prediction)
    assert confusion.classes == tuple(labels)
    assert np.array_equal(confusion.counts, expected)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth.astype(str), prediction.astype(str), labels=labels, zero_division=0
    )
    rows = class_table(truth, prediction)
    assert [row.label for row in rows] == list(labels)
    assert np.allclose([row.precision for row in rows], precision)
    assert np.allclose([row.recall for row in rows], recall)
    assert np.allclose([row.f1 for row in rows], f1)
    assert [row.num_cells for row in rows] == support.tolist()


@given(pairs, st.integers(0, 100))
def test_a_weight_is_as_good_as_a_repeated_cell(drawn, seed):
    truth, prediction = columns(drawn)
    weights = np.random.default_rng(seed).integers(0, 3, len(truth))
    weights[0] = 1
    coded = code_labels(truth, prediction)
    repeated = np.repeat(truth, weights), np.repeat(prediction, weights)
    assert macro_f1_metric(coded)(weights[None].astype(float))[0] == pytest.approx(
        macro_f1(*repeated)
    )
    assert accuracy_metric(coded)(weights[None].astype(float))[0] == pytest.approx(
        accuracy(*repeated)
    )


def test_a_class_only_predicted_is_not_averaged_over_but_costs_recall():
    truth = np.array(["a", "a", "b", "b"])
    prediction = np.array(["a", "z", "b", "b"])
    assert macro_f1(truth, prediction) == pytest.approx((2 / 3 + 1) / 2)
    assert [row.label for row in class_table(truth, prediction)] == ["a", "b", "z"]


def test_a_missing_prediction_is_wrong_and_counted_apart():
    truth = np.array(["a", "a", "b"], dtype=object)
    prediction = np.array(["a", None, np.nan], dtype=object)
    assert accuracy(truth, prediction) == pytest.approx(1 / 3)
    confusion = confusion_matrix(truth, prediction)
    assert confusion.unanswered.tolist() == [1, 1]
    assert confusion.counts.tolist() == [[1, 0], [0, 0]]
    rows = class_table(truth, prediction)
    assert (rows[0].recall, rows[1].recall) == (0.5, 0.0)
    assert rows[1].num_cells == 1


def test_a_single_class_is_defined():
    truth = np.array(["a", "a"])
    assert macro_f1(truth, truth) == 1.0
    assert score(truth, truth).macro_f1.low == 1.0


def test_scores_come_with_intervals_around_them():
    generator = np.random.default_rng(0)
    truth = generator.choice(list("abc"), 200)
    prediction = np.where(generator.random(200) < 0.8, truth, "a")
    scores = score(truth, prediction)
    for interval in (scores.accuracy, scores.macro_f1):
        assert interval.low < interval.value < interval.high
    assert scores.num_cells == 200


def test_difference_has_the_sign_of_first_minus_second():
    truth = np.array(list("abab") * 20)
    worse = truth.copy()
    worse[:20] = "a"
    found = score_difference(truth, {"good": truth, "bad": worse}, first="bad", second="good")
    assert found["accuracy"].value == pytest.approx(-0.125)
    assert found["accuracy"].high < 0
    assert found["macro_f1"].value < 0


def test_missing_truth_is_refused_with_its_place():
    truth = np.array(["a", None, "b"], dtype=object)
    with pytest.raises(InputDataError, match="1 of 3 true labels are missing, first at position 1"):
        code_labels(truth, np.array(["a", "a", "a"]))


def test_columns_of_other_lengths_are_refused():
    with pytest.raises(UsageError, match="2 true labels cannot be scored against 1"):
        code_labels(np.array(["a", "b"]), np.array(["a"]))


def test_no_cells_are_refused():
    with pytest.raises(UsageError, match="no cells to score"):
        score(np.array([]), np.array([]))


def test_numbers_are_labels_too():
    assert accuracy(np.array([1, 2, 3]), np.array([1, 2, 4])) == pytest.approx(2 / 3)
