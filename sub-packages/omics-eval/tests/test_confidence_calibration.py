"""Confidence against how often it is right: closed forms, and a method that knows itself."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import InputDataError, UsageError
from omics.eval.confidence_calibration import (
    answered_by_threshold,
    calibration,
    calibration_error_metric,
    lowest_trusted,
)


def test_bins_and_error_are_those_counted_by_hand():
    confidence = np.array([0.91, 0.93, 0.55, 0.51, 1.0])
    right = np.array([True, False, True, True, True])
    found = calibration(confidence, right)
    assert found.number.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert found.confidence[[5, 9]].tolist() == pytest.approx([0.53, 2.84 / 3])
    assert found.accuracy[[5, 9]].tolist() == pytest.approx([1.0, 2 / 3])
    assert np.isnan(found.accuracy[0])
    # Wilson of 2 of 2: from n / (n + z^2) to 1.
    assert found.low[5] == pytest.approx(2 / (2 + 1.959964**2))
    assert found.high[5] == 1.0
    assert np.isnan(found.low[0])
    expected = (2 * (1 - 0.53) + 3 * (2.84 / 3 - 2 / 3)) / 5
    assert found.error == pytest.approx(expected)
    metric = calibration_error_metric(confidence, right)
    assert metric(np.ones((1, 5)))[0] == pytest.approx(expected)


def test_a_cell_that_counts_twice_is_two_cells():
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(size=30), rng.random(30) < 0.5
    times = rng.integers(0, 3, 30)
    metric = calibration_error_metric(confidence, right)
    repeated = calibration(np.repeat(confidence, times), np.repeat(right, times))
    assert metric(times[None].astype(float))[0] == pytest.approx(repeated.error)


def test_who_is_right_as_often_as_it_says_has_no_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=200_000)
    assert calibration(confidence, rng.random(200_000) < confidence).error < 0.01
    assert calibration(confidence, rng.random(200_000) < confidence**2).error > 0.1


def test_a_threshold_leaves_cells_at_or_above_it():
    confidence = np.array([0.5, 0.9, 0.4, np.nan])
    right = np.array([True, True, False, False])
    half, most, all_ = answered_by_threshold(confidence, right, thresholds=(0.5, 0.95, 0.0))
    assert (half.number, half.answered.value, half.accuracy.value) == (2, 0.5, 1.0)
    assert (most.number, most.accuracy) == (0, None)
    assert (all_.number, all_.accuracy.value) == (3, pytest.approx(2 / 3))
    single = np.full(2, 0.9, np.float32)
    assert answered_by_threshold(single, right[:2], thresholds=(0.9,))[0].number == 2


def test_no_answer_cannot_be_judged():
    with pytest.raises(InputDataError, match="no answered cell"):
        calibration(np.zeros(0), np.zeros(0, bool))


def test_the_threshold_is_the_lowest_that_is_right_often_enough():
    confidence = np.array([0.9, 0.8, 0.8, 0.7, 0.6, 0.5])
    right = np.array([True, True, False, True, True, False])

    def found(accuracy, given=right):
        return lowest_trusted(confidence, given, min_accuracy=accuracy, certainty=0.5)

    assert [found(0.8), found(0.81), found(0.5)] == [0.6, 0.9, 0.5]
    assert found(0.9, ~right) == np.inf
    # Equal confidences stand or fall together.
    confidence, right = np.array([0.8, 0.8]), np.array([True, False])
    assert found(0.9, right) == np.inf


def test_few_cells_promise_little():
    # All right: the lower end of Wilson's one-sided interval is n / (n + z^2), z = 1.645.
    for number, promised in ((20, 0.8808), (51, 0.9496), (52, 0.9505)):
        confidence, right = np.ones(number), np.ones(number, bool)
        known = lowest_trusted(confidence, right, min_accuracy=promised - 1e-4)
        assert (known, number) == (1.0, number)
        assert lowest_trusted(confidence, right, min_accuracy=promised + 1e-4) == np.inf


@pytest.mark.parametrize("share", [0.0, 1.01, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        lowest_trusted(np.ones(2), np.ones(2, bool), min_accuracy=share)
