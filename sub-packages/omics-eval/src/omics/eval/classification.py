"""Classification scores over arrays of labels: accuracy, macro-F1, confusion and class tables.

- Macro-F1 is the mean of F1 over the classes present in the truth, each counting alike; a class
  of the truth that is never predicted has F1 0. It equals scikit-learn's
  `f1_score(truth, prediction, labels=unique(truth), average="macro", zero_division=0)`. Classes
  that are only predicted are not averaged over: they already cost recall where they took cells.
- In a resample the classes are those present in that resample, by the same definition.
- A missing prediction (None) is a wrong one: a method that cannot answer gains nothing by it.
- Scores are functions of cell weights (see intervals), so a value and its interval cannot differ
  in definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError
from omics.eval.intervals import (
    NUM_RESAMPLES,
    CellMetric,
    Interval,
    confidence_interval,
    mean_metric,
    method_for,
    over_groups,
    paired_difference,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = np.ndarray[Any, np.dtype[Any]]

NO_PREDICTION = -1


@dataclass(frozen=True, slots=True)
class CodedLabels:
    """Truth and prediction of the same cells as integers.

    Attributes:
        classes: every class of the truth or the prediction, sorted.
        truth: int64 [n], positions in `classes`.
        prediction: int64 [n], positions in `classes`; -1 where there is none.
    """

    classes: tuple[str, ...]
    truth: Array
    prediction: Array

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.truth)

    @property
    def right(self) -> Array:
        """Whether each cell is predicted as what it is, bool [n]."""
        return np.asarray(self.truth == self.prediction)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How one class fares.

    Attributes:
        label: the class.
        num_cells: cells of this class in the truth.
        num_predicted: cells predicted as this class.
        precision: share of the predicted cells that are right; 0 where none is predicted.
        recall: share of the class's cells that are found; 0 where it has none.
        f1: harmonic mean of the two.
    """

    label: str
    num_cells: int
    num_predicted: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class ConfusionMatrix:
    """Counts of cells by true and predicted class.

    Attributes:
        classes: rows and columns, sorted.
        counts: int64 [C, C], rows the truth, columns the prediction.
        unanswered: int64 [C], cells of each true class without a prediction.
    """

    classes: tuple[str, ...]
    counts: Array
    unanswered: Array


@dataclass(frozen=True, slots=True)
class Scores:
    """The two headline scores of one method.

    Attributes:
        accuracy: share of right cells, with its interval.
        macro_f1: mean F1 over the classes present in the truth, with its interval.
        num_cells: test cells behind both.
    """

    accuracy: Interval
    macro_f1: Interval
    num_cells: int


def code_labels(truth: Array, prediction: Array) -> CodedLabels:
    """Turn two columns of labels into integers over one sorted list of classes.

    Args:
        truth: [n] labels; none may be missing.
        prediction: [n] labels; None or NaN where a method gave none.

    Returns:
        The coded pair.

    Raises:
        UsageError: the columns differ in length or hold no cell.
        InputDataError: a label of the truth is missing.
    """
    if len(truth) != len(prediction):
        raise UsageError(
            f"{len(truth)} true labels cannot be scored against {len(prediction)} predictions: "
            "give both for the same cells in the same order."
        )
    if len(truth) == 0:
        raise UsageError("There are no cells to score. Choose a split that holds labelled cells.")
    absent = missing_labels(truth)
    if absent.any():
        raise InputDataError(
            f"{int(absent.sum())} of {len(truth)} true labels are missing, first at position "
            f"{int(np.flatnonzero(absent)[0])}. Leave unlabelled cells out before scoring."
        )
    answered = ~missing_labels(prediction)
    known = np.concatenate([_as_text(truth), _as_text(prediction[answered])])
    classes, codes = np.unique(known, return_inverse=True)
    coded = np.full(len(truth), NO_PREDICTION, np.int64)
    coded[answered] = codes[len(truth) :]
    return CodedLabels(tuple(classes.tolist()), codes[: len(truth)].astype(np.int64), coded)


def missing_labels(labels: Array) -> Array:
    """Return bool [n], where a label is None, NaN or pandas' NA.

    Args:
        labels: [n] of any dtype.
    """
    if labels.dtype.kind == "f":
        return np.isnan(labels)
    if labels.dtype.kind != "O":
        return np.zeros(len(labels), bool)
    import pandas as pd

    return np.asarray(pd.isna(labels), bool)


def accuracy_metric(coded: CodedLabels) -> CellMetric:
    """Return accuracy, a proportion, as a metric over cells."""
    return mean_metric(coded.right, name="accuracy")


def macro_f1_metric(coded: CodedLabels) -> CellMetric:
    """Return macro-F1 as a metric over cells."""
    # F1 = 2 TP / (cells of the class + cells predicted as it): two columns per class suffice.
    num_classes = len(coded.classes)
    cells = np.arange(len(coded))
    is_true = np.zeros((len(coded), num_classes))
    is_true[cells, coded.truth] = 1
    is_predicted = np.zeros((len(coded), num_classes))
    answered = coded.prediction != NO_PREDICTION
    is_predicted[cells[answered], coded.prediction[answered]] = 1
    right = is_true * is_predicted
    in_truth = np.unique(coded.truth)
    is_true, is_predicted, right = (
        columns[:, in_truth] for columns in (is_true, is_predicted, right)
    )

    def metric(weights: Array) -> Array:
        support = weights @ is_true
        present = support > 0
        denominator = np.where(present, support + weights @ is_predicted, 1.0)
        f1 = np.where(present, 2 * (weights @ right) / denominator, 0.0)
        return np.asarray(f1.sum(axis=1) / present.sum(axis=1))

    return CellMetric(name="macro-F1", num_cells=len(coded), values=metric, bounds=(0.0, 1.0))


def accuracy(truth: Array, prediction: Array) -> float:
    """Return the share of cells predicted as what they are.

    Args:
        truth: [n] labels.
        prediction: [n] labels; a missing one is wrong.
    """
    return float(code_labels(truth, prediction).right.mean())


def macro_f1(truth: Array, prediction: Array) -> float:
    """Return the mean F1 over the classes present in the truth.

    Args:
        truth: [n] labels.
        prediction: [n] labels; a missing one is wrong.
    """
    return macro_f1_metric(code_labels(truth, prediction)).value


def score(
    truth: Array,
    prediction: Array,
    *,
    groups: Array | None = None,
    ci_method: str | None = None,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Return accuracy and macro-F1 of one method, with their intervals.

    Args:
        truth: [n] labels.
        prediction: [n] labels; a missing one is wrong.
        groups: [n], such as donors, that resamples draw whole; None draws cells.
        ci_method: a name of `omics.eval.intervals.METHODS`; macro-F1 is no proportion, and keeps
            the bootstrap under a method for proportions. None for Wilson and the bootstrap; with
            groups both are bootstrapped.
        level: coverage wanted of the intervals.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    coded = code_labels(truth, prediction)
    accuracy_interval, macro_f1_interval = (
        confidence_interval(
            metric,
            method=method_for(metric, ci_method),
            level=level,
            num_resamples=num_resamples,
            seed=seed,
        )
        for metric in (
            over_groups(accuracy_metric(coded), groups),
            over_groups(macro_f1_metric(coded), groups),
        )
    )
    return Scores(accuracy_interval, macro_f1_interval, num_cells=len(coded))


def score_difference(
    truth: Array,
    predictions: Mapping[str, Array],
    *,
    first: str,
    second: str,
    groups: Array | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Return how much better one method is than another on the same cells.

    Args:
        truth: [n] labels.
        predictions: by method, [n] labels each.
        first: the method of interest.
        second: the method it is held against.
        groups: [n], such as donors, that resamples draw whole; None draws cells.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `accuracy` and `macro_f1`: first minus second, with 95 % bootstrap intervals.
    """
    coded = [code_labels(truth, predictions[name]) for name in (first, second)]
    return {
        name: paired_difference(
            over_groups(metric(coded[0]), groups),
            over_groups(metric(coded[1]), groups),
            num_resamples=num_resamples,
            seed=seed,
        )
        for name, metric in (("accuracy", accuracy_metric), ("macro_f1", macro_f1_metric))
    }


def confusion_matrix(truth: Array, prediction: Array) -> ConfusionMatrix:
    """Count cells by true and predicted class.

    Args:
        truth: [n] labels.
        prediction: [n] labels; missing ones are counted apart.
    """
    coded = code_labels(truth, prediction)
    num_classes = len(coded.classes)
    answered = coded.prediction != NO_PREDICTION
    pairs = coded.truth[answered] * num_classes + coded.prediction[answered]
    counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    unanswered = np.bincount(coded.truth[~answered], minlength=num_classes)
    return ConfusionMatrix(coded.classes, counts, unanswered)


def class_table(truth: Array, prediction: Array) -> list[ClassScore]:
    """Return precision, recall and F1 of every class of the truth or the prediction.

    Args:
        truth: [n] labels.
        prediction: [n] labels; a missing one is wrong.
    """
    confusion = confusion_matrix(truth, prediction)
    right = np.diag(confusion.counts)
    support = confusion.counts.sum(axis=1) + confusion.unanswered
    predicted = confusion.counts.sum(axis=0)
    return [
        ClassScore(
            label=label,
            num_cells=int(support[i]),
            num_predicted=int(predicted[i]),
            precision=float(right[i] / max(predicted[i], 1)),
            recall=float(right[i] / max(support[i], 1)),
            f1=float(2 * right[i] / max(support[i] + predicted[i], 1)),
        )
        for i, label in enumerate(confusion.classes)
    ]


def _as_text(labels: Array) -> Array:
    # An object array sorts by code point like any str, without the padding of a `U` array.
    return np.array([str(label) for label in labels], dtype=object)
