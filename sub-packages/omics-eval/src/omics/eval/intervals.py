"""Intervals: how far a number measured on these test cells could be off.

- A metric is a function of weights [r, n]: how often each of n test cells was drawn in each of r
  resamples. One matrix product then scores a block of resamples; nothing is looped per resample.
- The bootstrap resamples test cells only: the interval tells what other cells of the same kind
  would give, not what other training runs would.
- A paired difference draws the same cells for both methods, so what is hard for both cancels.
- A proportion has a closed form (Wilson), which also behaves at 0 and 1 where the bootstrap
  collapses to a point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from omics.data.errors import UsageError

Array = np.ndarray[Any, np.dtype[Any]]
Metric = Callable[[Array], Array]

NUM_RESAMPLES = 2000
_BLOCK_ENTRIES = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value with its interval.

    Attributes:
        value: what was measured on the cells as they are.
        low: lower end.
        high: upper end.
        level: the share of repeats that such an interval is meant to cover, such as 0.95.
    """

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        """Return such as `0.814 [0.742, 0.870]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def wilson_interval(successes: int, total: int, *, level: float = 0.95) -> Interval:
    """Return the score interval of a proportion.

    Args:
        successes: cells that are right.
        total: cells that were asked.
        level: coverage wanted, in (0, 1).

    Returns:
        The proportion with its interval, within [0, 1].

    Raises:
        UsageError: no cells, or more successes than cells.

    Source: Wilson, E. B. (1927), J. Am. Stat. Assoc. 22, 209-212.
    """
    _check_level(level)
    if total < 1 or not 0 <= successes <= total:
        raise UsageError(
            f"{successes} of {total} cells is not a proportion: an interval needs at least one "
            "test cell, and no more right cells than cells."
        )
    from statistics import NormalDist

    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / total
    shrink = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    half = z / shrink * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(
        value=share,
        low=float(max(0.0, centre - half)) if successes else 0.0,
        high=float(min(1.0, centre + half)) if successes < total else 1.0,
        level=level,
    )


def bootstrap_interval(
    metric: Metric,
    num_cells: int,
    *,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a metric with its bootstrap percentile interval over test cells.

    Args:
        metric: from weights float64 [r, n] to values [r].
        num_cells: n, the number of test cells.
        level: coverage wanted, in (0, 1).
        num_resamples: how often n cells are drawn with replacement.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        The metric of the cells as they are, and the percentiles of its resamples.

    Raises:
        UsageError: no cells, too few resamples, or a metric that is undefined on a resample.

    Source: Efron, B. & Tibshirani, R. (1993), An Introduction to the Bootstrap, chapter 13.
    """
    _check_level(level)
    if num_cells < 1 or num_resamples < 1:
        raise UsageError(
            f"A bootstrap of {num_cells} cells in {num_resamples} resamples has nothing to draw. "
            "Give at least one test cell and one resample."
        )
    value = float(metric(np.ones((1, num_cells)))[0])
    draws = np.concatenate(
        [metric(weights) for weights in _resamples(num_cells, num_resamples, seed)]
    )
    if not (np.isfinite(value) and np.isfinite(draws).all()):
        raise UsageError(
            f"The metric is undefined on {int((~np.isfinite(draws)).sum())} of {num_resamples} "
            "resamples of the test cells, so it has no interval. Use more test cells, or a metric "
            "that is defined whichever cells are drawn."
        )
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high), level=level)


def paired_difference(
    first: Metric,
    second: Metric,
    num_cells: int,
    *,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return `first - second` on the same cells, with its bootstrap percentile interval.

    Args:
        first: metric of the method of interest, from weights [r, n] to values [r].
        second: the same metric of the method it is held against, over the same cells.
        num_cells: n, the number of test cells.
        level: coverage wanted, in (0, 1).
        num_resamples: how often n cells are drawn with replacement.
        seed: of the draws.

    Returns:
        The difference; an interval without 0 tells the two methods apart.
    """
    return bootstrap_interval(
        lambda weights: first(weights) - second(weights),
        num_cells,
        level=level,
        num_resamples=num_resamples,
        seed=seed,
    )


def _resamples(num_cells: int, num_resamples: int, seed: int) -> Iterator[Array]:
    """Yield blocks float64 [r, n]: how often each cell is drawn, n draws per row."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // num_cells)
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        drawn = generator.integers(0, num_cells, size=(rows, num_cells))
        drawn += np.arange(rows)[:, None] * num_cells
        counts = np.bincount(drawn.ravel(), minlength=rows * num_cells)
        yield counts.reshape(rows, num_cells).astype(np.float64)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(
            f"The level {level} of an interval must lie between 0 and 1, such as 0.95."
        )
