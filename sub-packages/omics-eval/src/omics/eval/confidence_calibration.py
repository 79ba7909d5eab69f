"""How far confidences can be trusted: their calibration, and below which to say `unknown`.

- Calibration is judged on cells whose labels the method has not seen.
- A threshold is found on cells that are not scored: the lowest confidence from which on held-out answers
  are right as often as wanted, with some certainty. Where donors are given, whole donors are held out,
  as a new donor is what query cells come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError
from omics.eval.intervals import CellMetric, Interval, wilson_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, np.dtype[Any]]

NUM_BINS = 10
SHOWN_THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence beside how often it was right, in bins of equal width.

    Attributes:
        number: int64 [b], cells of each bin.
        confidence: float64 [b], their mean confidence; NaN in an empty bin.
        accuracy: float64 [b], the share of them that was right; NaN in an empty bin.
        low: float64 [b], the lower end of Wilson's interval of it.
        high: float64 [b], the upper end.
    """

    number: Array
    confidence: Array
    accuracy: Array
    low: Array
    high: Array

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |confidence - accuracy| over cells."""
        gaps = np.abs(np.nan_to_num(self.confidence) - np.nan_to_num(self.accuracy))
        return float((gaps * self.number).sum() / self.number.sum())


def calibration(confidence: Array, right: Array, *, num_bins: int = NUM_BINS) -> Calibration:
    """Return how confidence and accuracy go together.

    Args:
        confidence: float [n] in [0, 1].
        right: bool [n].
        num_bins: of equal width.

    Raises:
        InputDataError: no cell.
    """
    if not len(confidence):
        raise InputDataError("There is no answered cell to judge confidences by.")
    bins = _bins(confidence, num_bins)
    number = np.bincount(bins, minlength=num_bins)
    safe = np.where(number > 0, number, np.nan)
    successes = np.bincount(bins, weights=right, minlength=num_bins)
    low, high = np.full(num_bins, np.nan), np.full(num_bins, np.nan)
    for place in np.flatnonzero(number):
        interval = wilson_interval(int(successes[place]), int(number[place]))
        low[place], high[place] = interval.low, interval.high
    return Calibration(
        number=number,
        confidence=np.bincount(bins, weights=confidence, minlength=num_bins) / safe,
        accuracy=successes / safe,
        low=low,
        high=high,
    )


@dataclass(frozen=True, slots=True)
class TrustLevel:
    """What a threshold of confidence leaves.

    Attributes:
        threshold: cells at or above it are answered.
        answered: share of all cells.
        accuracy: of the answered ones; None where there are none.
        number: of answered cells.
    """

    threshold: float
    answered: Interval
    accuracy: Interval | None
    number: int


def answered_by_threshold(
    confidence: Array, right: Array, *, thresholds: Sequence[float] = SHOWN_THRESHOLDS
) -> list[TrustLevel]:
    """Return how many cells are answered at thresholds of confidence, and how many of these are right.

    Args:
        confidence: float [n]; NaN for a cell without an answer, which no threshold trusts.
        right: bool [n].
        thresholds: of confidence.
    """
    levels = []
    for threshold in thresholds:
        kept = np.nan_to_num(confidence, nan=-1.0) >= threshold
        number = int(kept.sum())
        levels.append(
            TrustLevel(
                threshold=threshold,
                answered=wilson_interval(number, len(confidence)),
                accuracy=wilson_interval(int(right[kept].sum()), number) if number else None,
                number=number,
            )
        )
    return levels


def calibration_error_metric(
    confidence: Array, right: Array, *, num_bins: int = NUM_BINS
) -> CellMetric:
    """Return the expected calibration error as a function of how often each cell counts.

    It is a little too high on few cells, where accuracies of bins are noise.

    Args:
        confidence: float [n] in [0, 1].
        right: bool [n].
        num_bins: of equal width.

    Source: Naeini, M. P. et al. (2015), AAAI 29, 2901-2907.
    """
    gaps = np.zeros((len(confidence), num_bins))
    gaps[np.arange(len(confidence)), _bins(confidence, num_bins)] = confidence - right

    def of(weights: Array) -> Array:
        return np.asarray(np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1))

    return CellMetric("calibration_error", len(confidence), of)


def lowest_trusted(
    confidence: Array, right: Array, *, min_accuracy: float, certainty: float = 0.95
) -> float:
    """Return the lowest confidence from which on answers are right often enough.

    Often enough is not by luck alone: the lower end of the one-sided Wilson interval of the accuracy
    counts, so few cells promise little (as Geifman & El-Yaniv 2017, NeurIPS 30, with another bound).

    Args:
        confidence: float [n] of held-out cells.
        right: bool [n].
        min_accuracy: wanted of the cells at or above it, in (0, 1].
        certainty: of the interval; 0.5 takes the accuracy as it is.

    Returns:
        The threshold; infinity where no confidence is high enough.

    Raises:
        UsageError: `min_accuracy` is no such share.
    """
    if not 0 < min_accuracy <= 1:
        raise UsageError(f"min_accuracy is {min_accuracy}; it must be above 0 and at most 1.")
    order = np.argsort(-confidence, kind="stable")
    descending = confidence[order]
    number = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(right[order]) / number
    z = NormalDist().inv_cdf(certainty)
    half = z * np.sqrt(accuracy * (1 - accuracy) / number + (z / (2 * number)) ** 2)
    promised = (accuracy + z**2 / (2 * number) - half) / (1 + z**2 / number)
    # Cells of the same confidence are above or below it together.
    is_last = np.append(descending[1:] != descending[:-1], True)
    enough = np.flatnonzero(is_last & (promised >= min_accuracy))
    return float(descending[enough[-1]]) if len(enough) else float("inf")


def _bins(confidence: Array, num_bins: int) -> Array:
    return np.minimum((np.asarray(confidence) * num_bins).astype(np.int64), num_bins - 1)
