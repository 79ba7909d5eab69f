"""Intervals and p-values of many differences at once, from the resamples that they share.

A resample of cells has some cells twice, and metrics of groups (mutual information, shares of
variance) are a little higher on it. Its spread is right all the same: so intervals here are centred on
the value of the cells as they are, with the standard deviation over resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.eval.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

Array = np.ndarray[Any, np.dtype[Any]]

_NO_SPREAD = 1e-9


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a method is from another one in a metric, on the same cells.

    Attributes:
        interval: first minus other, on the same resamples; ends are NaN where it is not tested.
        p: of a difference this far from 0 where there is none; NaN where it is not tested.
        p_holm: corrected for all differences of the table.
    """

    interval: Interval
    p: float
    p_holm: float


def normal_interval(
    value: float,
    drawn: Array,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Return value +- z times the standard deviation over resamples.

    Args:
        value: of the cells as they are.
        drawn: float [r], on resamples of them.
        level: coverage wanted, in (0, 1).
        bounds: the least and the greatest that the number can be; ends are cut to them.

    Source: Efron, B. & Tibshirani, R. (1993), An Introduction to the Bootstrap, section 12.1.
    """
    half = NormalDist().inv_cdf(0.5 + level / 2) * float(np.std(drawn, ddof=1))
    return Interval(
        value=value,
        low=max(value - half, bounds[0]),
        high=min(value + half, bounds[1]),
        level=level,
    )


def p_value(difference: float, drawn: Array) -> float:
    """Return how likely a difference this far from 0 is where there is none, both sides counted.

    Unlike a share of resamples it has no least value that a correction could make too large; and it
    is below 0.05 exactly where the interval of 95 per cent leaves 0 out.

    Args:
        difference: on the cells as they are.
        drawn: float [r], on resamples of them.

    Returns:
        The p-value; 1 for a difference that is 0 on the cells and on every resample, NaN for another
        one that no resample changes.
    """
    error = float(np.std(drawn, ddof=1))
    if error <= _NO_SPREAD:
        return 1.0 if abs(difference) <= _NO_SPREAD else float("nan")
    return 2 * NormalDist().cdf(-abs(difference) / error)


def holm(p: Array) -> Array:
    """Return p-values corrected for their number by Holm's step-down method.

    Args:
        p: float64 [n]; NaN for what was not tested.

    Returns:
        float64 [n], NaN in the same places.

    Source: Holm, S. (1979), Scandinavian Journal of Statistics 6, 65-70.
    """
    corrected = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return corrected


def differences_from_first(
    values: Mapping[str, Mapping[str, float]],
    draws: Mapping[str, Mapping[str, Array]],
    *,
    untested: Container[str] = (),
) -> dict[str, dict[str, Difference]]:
    """Return the first method minus every other one, p-values corrected for all of them.

    Args:
        values: by method and metric, on the cells as they are.
        draws: the same on resamples of the cells, float [r], the same resamples for all.
        untested: metrics whose resamples mean nothing.

    Returns:
        By other method and metric; a metric that one of the two lacks is left out.
    """
    first, *others = values
    pairs = [
        (other, metric) for other in others for metric in values[first] if metric in values[other]
    ]
    intervals, p_values = [], []
    for other, metric in pairs:
        value = values[first][metric] - values[other][metric]
        drawn = draws[first][metric] - draws[other][metric]
        tested = metric not in untested
        intervals.append(
            normal_interval(value, drawn) if tested else Interval(value, np.nan, np.nan)
        )
        p_values.append(p_value(value, drawn) if tested else np.nan)
    corrected = holm(np.array(p_values))
    found: dict[str, dict[str, Difference]] = {other: {} for other in others}
    for (other, metric), interval, p, p_holm in zip(
        pairs, intervals, p_values, corrected, strict=True
    ):
        found[other][metric] = Difference(interval, float(p), float(p_holm))
    return found


def shown_p(p: float) -> str:
    """Return such as `p = 0.031`, of a p-value corrected for many comparisons.

    Args:
        p: the p-value; NaN where there is none.
    """
    if np.isnan(p):
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def shown_interval(interval: Interval | None, *, signed: bool = False) -> str:
    """Return such as `0.814 [0.742, 0.870]`; without brackets where there is no interval.

    Args:
        interval: None for what is not defined.
        signed: write `+` before what is above 0.
    """
    if interval is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{interval.value:{sign}.3f}"
    if np.isnan(interval.low):
        return text
    return f"{text} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
