"""Scores of values that were hidden from a model: shares of bins, errors and correlation of numbers.

- Tokens of one cell are not independent of each other, so every interval resamples cells, with all of
  their hidden tokens: a binomial interval over tokens would be far too narrow.
- Only sums over the tokens of each cell are kept, so memory grows with cells and not with tokens.
- A figure is over the cells that have a token of its kind: the others say nothing of it.
- Resamples of tokens that are all right, or all wrong, cannot differ; such a share has the interval of
  Wilson with as many observations as cells. Of a single cell nothing is known of the spread: any other
  number has the widest interval that there is.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UnknownNameError, UsageError, nearest
from omics.eval.intervals import (
    NUM_RESAMPLES,
    CellMetric,
    Interval,
    confidence_interval,
    method_for,
    paired_difference,
    wilson_interval,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = np.ndarray[Any, np.dtype[Any]]

HIGH_BIN = 8
# What the hidden values are: bins with an order, ids without one, numbers.
KINDS = ("bins", "ids", "numbers")
EXACT, MAE = "exact", "mae"
_PCC_SUMS = ("tokens", "x", "y", "xx", "yy", "xy")


@dataclass(frozen=True, slots=True)
class HiddenFigure:
    """One number over hidden tokens.

    Attributes:
        name: of the figure, see `HiddenScores`.
        interval: the number with its interval over cells.
        num_tokens: hidden tokens that it is over.
        num_cells: cells that have such tokens.
    """

    name: str
    interval: Interval
    num_tokens: int
    num_cells: int


def bin_figures(
    truth: Array, predicted: Array, *, high_bin: int = HIGH_BIN
) -> dict[str, tuple[Array, Array]]:
    """Return what each figure of bins counts: the tokens that it is over, and those that it counts.

    - `exact`, `within_1`: of all tokens, those predicted as their own bin, or at most one beside it.
    - `zeros_as_zero`, `zeros_as_nonzero`: of the bins 0.
    - `ones_as_one`, `ones_as_zero`, `ones_as_other`: of the bins 1.
    - `nonzeros_exact`, `_within_1`, `_within_2`: of the bins above 0.
    - `high_exact`, `_within_1`, `_within_2`: of the bins above `high_bin`.

    Args:
        truth: int [K], bins as they are; 0 for a value of 0.
        predicted: int [K].
        high_bin: the highest bin that does not count as highly expressed.

    Returns:
        `{name: (bool [K], bool [K])}`; the second is only read where the first is true.
    """
    off = np.abs(truth.astype(np.int64) - predicted.astype(np.int64))
    everything = np.ones(len(truth), np.bool_)
    zeros, ones, above = truth == 0, truth == 1, truth > 0
    high = truth > high_bin
    figures = {EXACT: (everything, off == 0), "within_1": (everything, off <= 1)}
    figures["zeros_as_zero"] = zeros, predicted == 0
    figures["zeros_as_nonzero"] = zeros, predicted != 0
    figures["ones_as_one"] = ones, predicted == 1
    figures["ones_as_zero"] = ones, predicted == 0
    figures["ones_as_other"] = ones, predicted > 1
    for name, among in (("nonzeros", above), ("high", high)):
        figures[f"{name}_exact"] = among, off == 0
        figures[f"{name}_within_1"] = among, off <= 1
        figures[f"{name}_within_2"] = among, off <= 2
    return figures


@dataclass(slots=True, kw_only=True)
class HiddenScores:
    """Collects hidden tokens batch by batch; then gives figures with intervals.

    The figures of `bins` are those of `bin_figures`, that of `ids` is `exact`; those of `numbers` are
    `mae` (mean absolute error), `mae_nonzeros` (of the values that are not 0) and `pcc` (Pearson's
    correlation over all tokens, left out where it is not defined).

    Attributes:
        kind: `bins`, `ids` or `numbers`.
        high_bin: see `bin_figures`.

    Raises:
        UnknownNameError: another kind.
    """

    kind: str
    high_bin: int = HIGH_BIN
    _parts: list[dict[str, Array]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in KINDS:
            raise UnknownNameError(
                f"There is no kind of hidden values {self.kind!r}.{nearest(self.kind, KINDS)}"
            )

    def add(self, cell: Array, num_cells: int, *, truth: Array, predicted: Array) -> None:
        """Add the hidden tokens of the next cells.

        Args:
            cell: int [K], which of these cells each token belongs to, from 0.
            num_cells: of these cells; those without a hidden token count, too.
            truth: [K].
            predicted: [K].

        Raises:
            UsageError: not one truth and one prediction a token.
            InputDataError: a prediction that is not finite.
        """
        if not len(cell) == len(truth) == len(predicted):
            raise UsageError(
                f"{len(cell)} tokens come with {len(truth)} true and {len(predicted)} predicted "
                "values: give one of each for every token."
            )
        if self.kind == "numbers" and not np.isfinite(predicted).all():
            raise InputDataError(
                f"{int((~np.isfinite(predicted)).sum())} of {len(predicted)} predicted values are "
                "not finite. The weights of the model are at fault: train again, or take an earlier "
                "bundle."
            )
        sums = {
            name: np.bincount(cell, weights=values, minlength=num_cells)
            for name, values in self._columns(truth, predicted).items()
        }
        self._parts.append(sums)

    def _columns(self, truth: Array, predicted: Array) -> dict[str, Array]:
        """Return [K] numbers whose sums over the tokens of a cell are kept."""
        if self.kind == "numbers":
            x, y = predicted.astype(np.float64), truth.astype(np.float64)
            error, nonzero = np.abs(x - y), (y != 0).astype(np.float64)
            numbers = {"tokens": np.ones(len(y)), "x": x, "y": y, "xx": x * x, "yy": y * y}
            numbers |= {"xy": x * y, "among mae": np.ones(len(y)), "of mae": error}
            return numbers | {"among mae_nonzeros": nonzero, "of mae_nonzeros": error * nonzero}
        if self.kind == "ids":
            figures = {EXACT: (np.ones(len(truth), np.bool_), truth == predicted)}
        else:
            figures = bin_figures(truth, predicted, high_bin=self.high_bin)
        columns = {}
        for name, (among, counted) in figures.items():
            columns[f"among {name}"] = among.astype(np.float64)
            columns[f"of {name}"] = (among & counted).astype(np.float64)
        return columns

    def figures(
        self,
        *,
        ci_method: str | None = None,
        level: float = 0.95,
        num_resamples: int = NUM_RESAMPLES,
        seed: int = 0,
    ) -> list[HiddenFigure]:
        """Return every figure that some token is about.

        Args:
            ci_method: `bootstrap` (None, and methods for proportions of cells) or `bootstrap_t`.
            level: coverage wanted, in (0, 1).
            num_resamples: how often the cells are drawn.
            seed: of the draws.

        Raises:
            InputDataError: no token was hidden.
            UnknownNameError: there is no such method.
            UsageError: an interval that has no end; `bootstrap` has one.
        """
        sums = self._sums()
        options: dict[str, Any] = {"level": level, "num_resamples": num_resamples, "seed": seed}
        found = []
        for name in (each.removeprefix("among ") for each in sums if each.startswith("among ")):
            mean = self._mean(name, sums)
            if mean is not None:
                interval = mean.interval(ci_method, options)
                found.append(HiddenFigure(name, interval, mean.tokens, mean.metric.num_cells))
        if self.kind == "numbers":
            metric, tokens = _correlation(sums)
            # Not defined on the cells, or on some resample of them: there is no such figure.
            with contextlib.suppress(UsageError):
                interval = _resampled(metric, ci_method, options)
                found.append(HiddenFigure("pcc", interval, tokens, metric.num_cells))
        return found

    def difference(
        self,
        other: HiddenScores,
        *,
        level: float = 0.95,
        num_resamples: int = NUM_RESAMPLES,
        seed: int = 0,
    ) -> HiddenFigure:
        """Return how far the first figure (`exact` or `mae`) of two methods lies apart, first minus second.

        Args:
            other: of another method over the same tokens.
            level: coverage wanted, in (0, 1).
            num_resamples: how often the cells are drawn.
            seed: of the draws.

        Raises:
            InputDataError: no token was hidden.
            UsageError: the methods were not asked about the same cells.
        """
        name = MAE if self.kind == "numbers" else EXACT
        first, second = self._mean(name, self._sums()), other._mean(name, other._sums())
        assert first is not None
        assert second is not None
        interval = paired_difference(
            first.metric, second.metric, level=level, num_resamples=num_resamples, seed=seed
        )
        return HiddenFigure(f"{name}_difference", interval, first.tokens, first.metric.num_cells)

    def _sums(self) -> dict[str, Array]:
        """Return float64 [n], the sums of each cell by column."""
        names = self._parts[0] if self._parts else {}
        sums = {name: np.concatenate([part[name] for part in self._parts]) for name in names}
        if not sums or not next(iter(sums.values())).any():
            raise InputDataError(
                "No value was hidden in the cells to test. Raise data_module.change_ratio, or choose "
                "cells with more genes."
            )
        return sums

    def _mean(self, name: str, sums: Mapping[str, Array]) -> _Mean | None:
        """Return the mean over the tokens of a kind; None where there are none."""
        among, counted = sums[f"among {name}"], sums[f"of {name}"]
        cells = np.flatnonzero(among)
        if not len(cells):
            return None
        among, counted = among[cells], counted[cells]
        metric = CellMetric(
            name=name,
            num_cells=len(cells),
            values=lambda weights: np.asarray((weights @ counted) / (weights @ among)),
            bounds=(0.0, np.inf if self.kind == "numbers" else 1.0),
        )
        return _Mean(metric=metric, tokens=int(among.sum()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mean:
    """A mean over hidden tokens as a metric over cells, and the number of the tokens."""

    metric: CellMetric
    tokens: int

    def interval(self, ci_method: str | None, options: Mapping[str, Any]) -> Interval:
        """Return the interval over cells; see the head of this file for shares of 0 and 1."""
        metric = self.metric
        if metric.bounds[1] == 1.0 and metric.value in (0.0, 1.0):
            right = metric.num_cells if metric.value else 0
            return wilson_interval(right, metric.num_cells, level=options["level"])
        return _resampled(metric, ci_method, options)


def _resampled(metric: CellMetric, ci_method: str | None, options: Mapping[str, Any]) -> Interval:
    """Return the interval over resampled cells; of one cell the widest that there is."""
    wanted = ci_method if metric.num_cells > 1 else None
    found = confidence_interval(metric, method=method_for(metric, wanted), **options)
    if metric.num_cells > 1:
        return found
    return Interval(found.value, *metric.bounds, level=found.level)


def _correlation(sums: Mapping[str, Array]) -> tuple[CellMetric, int]:
    cells = np.flatnonzero(sums["tokens"])
    table = np.stack([sums[name][cells] for name in _PCC_SUMS], axis=1)

    def values(weights: Array) -> Array:
        total, x, y, xx, yy, xy = (weights @ table).T
        spread = (total * xx - x * x) * (total * yy - y * y)
        # What is left of a constant is rounding.
        defined = spread > 1e-12 * (total * xx) * (total * yy)
        found = np.full(len(spread), np.nan)
        np.divide(total * xy - x * y, np.sqrt(np.abs(spread)), out=found, where=defined)
        return found

    metric = CellMetric(name="pcc", num_cells=len(cells), values=values, bounds=(-1.0, 1.0))
    return metric, int(sums["tokens"].sum())
