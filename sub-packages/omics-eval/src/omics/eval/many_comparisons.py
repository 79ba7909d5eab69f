"""Intervals and p-values of many differences at once, from the resamples that they share.

A resample of cells has some cells twice, and metrics of groups (mutual information, shares of
variance) are a little higher on it. Its spread is right all the same: so intervals here are centred on
the value of the cells as they are, with the standard deviation over resamples.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

from omics.eval.intervals import Interval

Array = np.ndarray[Any, np.dtype[Any]]

_NO_SPREAD = 1e-9


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
