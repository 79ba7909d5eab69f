"""Intervals: how far a number measured on these test cells could be off.

- A metric is a function of weights [r, n]: how often each of n test cells was drawn in each of r
  resamples. One matrix product then scores a block of resamples; nothing is looped per resample,
  and no model runs again: predictions are resampled, never inference.
- The bootstrap resamples test cells only: the interval tells what other cells of the same kind
  would give, not what other training runs would.
- A paired difference draws the same cells for both methods, so what is hard for both cancels.
- A proportion has closed forms (Wilson, Clopper-Pearson), which also behave at 0 and 1 where the
  bootstrap collapses to a point.
- Cells of a donor are alike: `over_groups` makes a metric one over donors, which are then drawn whole.
- `METHODS` is the table of methods by name, and `method_for` says which one serves a metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import UnknownNameError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Array = np.ndarray[Any, np.dtype[Any]]

NUM_RESAMPLES = 2000
NUM_JACKKNIFE_GROUPS = 20
_BLOCK_ENTRIES = 4_000_000
# A resample whose standard error is this small beside that of the cells has no spread: what is
# left is rounding.
_NO_SPREAD = 1e-6


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


@dataclass(frozen=True, slots=True, eq=False)
class CellMetric:
    """A number over n test cells, as a function of how often each of them counts.

    Attributes:
        name: of the number, for messages.
        num_cells: n.
        values: from weights float64 [r, n] to values [r].
        of_each: [n], where the number is the mean of one number per cell; bool makes it a
            proportion. None for everything else.
        bounds: the least and the greatest that the number can be.
    """

    name: str
    num_cells: int
    values: Callable[[Array], Array]
    of_each: Array | None = None
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def __call__(self, weights: Array) -> Array:
        """Return the values [r] of weights [r, n]."""
        return self.values(weights)

    def __sub__(self, other: CellMetric) -> CellMetric:
        """Return the difference of two metrics over the same cells."""
        if self.num_cells != other.num_cells:
            raise UsageError(
                f"{self.name} of {self.num_cells} cells and {other.name} of {other.num_cells} are "
                "not over the same cells. Compare two methods on one list of cells."
            )
        of_each = None
        if self.of_each is not None and other.of_each is not None:
            of_each = self.of_each.astype(np.float64) - other.of_each.astype(np.float64)
        low, high = self.bounds[0] - other.bounds[1], self.bounds[1] - other.bounds[0]
        return CellMetric(
            name=f"{self.name} difference",
            num_cells=self.num_cells,
            values=lambda weights: self.values(weights) - other.values(weights),
            of_each=of_each,
            bounds=(low, high),
        )

    @property
    def value(self) -> float:
        """The number of the cells as they are."""
        return float(self.values(np.ones((1, self.num_cells)))[0])

    @property
    def is_proportion(self) -> bool:
        """Whether it is the share of cells that are right."""
        return self.of_each is not None and self.of_each.dtype == bool


def mean_metric(
    of_each: Array, *, name: str = "mean", bounds: tuple[float, float] = (-np.inf, np.inf)
) -> CellMetric:
    """Return the mean of one number per cell as a metric; of bools it is a proportion.

    Args:
        of_each: [n] numbers, or bool [n]: whether each cell is right.
        name: of the metric.
        bounds: the least and the greatest that the mean can be; (0, 1) for a proportion.
    """
    given = np.asarray(of_each)
    numbers = given.astype(np.float64)
    return CellMetric(
        name=name,
        num_cells=len(given),
        values=lambda weights: np.asarray(weights @ numbers / weights.sum(axis=1)),
        of_each=given if given.dtype == bool else numbers,
        bounds=(0.0, 1.0) if given.dtype == bool else bounds,
    )


def over_groups(metric: CellMetric, groups: Array | None) -> CellMetric:
    """Return a metric over groups of cells, such as donors: its resamples draw groups whole.

    Its value is that of the cells as they are, and its interval says what other groups would give. With
    few groups it is too narrow, as every bootstrap is.

    Args:
        metric: over n cells.
        groups: [n]; None, or a single group, leaves the metric as it is.

    Returns:
        A metric whose cells are the groups, in sorted order.

    Raises:
        UsageError: groups of another number of cells.

    Source: Davison, A. C. & Hinkley, D. V. (1997), Bootstrap Methods and their Application, section 3.8.
    """
    if groups is None:
        return metric
    if len(groups) != metric.num_cells:
        raise UsageError(
            f"{len(groups)} groups do not fit {metric.num_cells} cells of {metric.name}: give one "
            "for every cell."
        )
    names, members = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return metric
    block = max(1, _BLOCK_ENTRIES // metric.num_cells)

    def values(weights: Array) -> Array:
        parts = [
            metric(weights[start : start + block, members])
            for start in range(0, len(weights), block)
        ]
        return np.concatenate(parts)

    return CellMetric(metric.name, len(names), values, bounds=metric.bounds)


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
    _check_proportion(successes, total, level)
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


def clopper_pearson_interval(successes: int, total: int, *, level: float = 0.95) -> Interval:
    """Return the exact interval of a proportion: never below its level, often above.

    The ends are the proportions under which a count this high, or this low, has probability
    (1 - level) / 2; they are quantiles of Beta distributions.

    Args:
        successes: cells that are right.
        total: cells that were asked.
        level: coverage promised, in (0, 1).

    Returns:
        The proportion with its interval, within [0, 1].

    Raises:
        UsageError: no cells, or more successes than cells.

    Source: Clopper, C. J. & Pearson, E. S. (1934), Biometrika 26, 404-413.
    """
    _check_proportion(successes, total, level)
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    wrong = total - successes
    return Interval(
        value=successes / total,
        low=float(betaincinv(successes, wrong + 1, tail)) if successes else 0.0,
        high=float(betaincinv(successes + 1, wrong, 1 - tail)) if wrong else 1.0,
        level=level,
    )


def bootstrap_interval(
    metric: CellMetric,
    *,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a metric with its bootstrap percentile interval over test cells.

    Args:
        metric: over the test cells.
        level: coverage wanted, in (0, 1).
        num_resamples: how often n cells are drawn with replacement.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        The metric of the cells as they are, and the percentiles of its resamples.

    Raises:
        UsageError: no cells, too few resamples, or a metric that is undefined on a resample.

    Source: Efron, B. & Tibshirani, R. (1993), An Introduction to the Bootstrap, chapter 13.
    """
    _check_bootstrap(metric, level, num_resamples)
    value = metric.value
    drawn = joint_draws([metric], num_resamples=num_resamples, seed=seed)[0]
    _check_defined(metric, value, drawn)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high), level=level)


def bootstrap_t_interval(
    metric: CellMetric,
    *,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a metric with its bootstrap-t (studentised) interval over test cells.

    Each resample is measured in standard errors of its own, t* = (v* - v) / se*, and the ends are
    v - t*[high] se and v - t*[low] se. For means of skewed numbers this covers far better than
    percentiles. The standard error is, in all resamples at once,

    - of a mean of one number per cell: the closed form, sqrt(sum w (x - v)^2 / (n (n - 1)));
    - of any other metric: the jackknife that deletes one of 20 groups of draws at a time,
      sqrt((g - 1) / g * sum (v_without_group - their mean)^2).

    Ends are cut to what the metric can be. A share close to 0 or 1 has resamples without any
    spread, and may get an end of 0 or 1: prefer Wilson or Clopper-Pearson for a share.

    Args:
        metric: over the test cells.
        level: coverage wanted, in (0, 1).
        num_resamples: how often n cells are drawn with replacement.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        The metric of the cells as they are, with its interval.

    Raises:
        UsageError: fewer than two cells, or a metric that is undefined on a resample or without
            spread in too many of them.

    Source: Efron, B. & Tibshirani, R. (1993), An Introduction to the Bootstrap, chapter 12; the
    grouped jackknife: Shao, J. & Tu, D. (1995), The Jackknife and Bootstrap, section 2.3.
    """
    _check_bootstrap(metric, level, num_resamples)
    size = metric.num_cells
    if size < 2:
        raise UsageError(
            f"The bootstrap-t interval of {metric.name} needs a standard error, and one test cell "
            "has none. Use more test cells, or `wilson` for a proportion."
        )
    value = metric.value
    # The cells as they are, shuffled: a file in the order of its classes must not make the groups.
    as_they_are = np.random.default_rng([seed, 1]).permutation(size)[None]
    error = float(_standard_errors(metric, as_they_are)[0])
    scores, errors = [], []
    for draws in _draws(size, num_resamples, seed):
        scores.append(metric(_times_drawn(draws, size)))
        errors.append(_standard_errors(metric, draws))
    drawn, spread = np.concatenate(scores), np.concatenate(errors)
    _check_defined(metric, value, drawn)
    _check_defined(metric, error, spread)
    flat = spread <= _NO_SPREAD * error
    steps = drawn - value
    t = np.where(flat, np.copysign(np.inf, steps), steps / np.where(flat, 1.0, spread))
    t[np.isclose(steps, 0.0, rtol=0, atol=_NO_SPREAD * error)] = 0.0
    # Whole draws, not points between two of them: one of the two may be infinite.
    t_low = float(np.quantile(t, (1 - level) / 2, method="lower"))
    t_high = float(np.quantile(t, (1 + level) / 2, method="higher"))
    if error == 0.0:
        t_low = t_high = 0.0  # every cell says the same, and so does every resample
    low = max(value - t_high * error, metric.bounds[0])
    high = min(value - t_low * error, metric.bounds[1])
    if not np.isfinite([low, high]).all():
        raise UsageError(
            f"{int(flat.sum())} of {num_resamples} resamples drew cells without any spread in "
            f"{metric.name}, so its bootstrap-t interval has no end. Use more test cells, or the "
            "method `bootstrap`."
        )
    return Interval(value=value, low=low, high=high, level=level)


@dataclass(frozen=True, slots=True)
class IntervalMethod:
    """One way to make an interval.

    Attributes:
        summary: what it is, in a line.
        of_share: from (successes, total) to an interval, where it is for proportions only.
        of_metric: from a metric to an interval, where it serves every metric.
    """

    summary: str
    of_share: Callable[..., Interval] | None = None
    of_metric: Callable[..., Interval] | None = None


METHODS: dict[str, IntervalMethod] = {
    "wilson": IntervalMethod(
        "score interval of a proportion; on average the coverage it says",
        of_share=wilson_interval,
    ),
    "clopper_pearson": IntervalMethod(
        "exact interval of a proportion; never covers less than it says",
        of_share=clopper_pearson_interval,
    ),
    "bootstrap": IntervalMethod(
        "percentiles over resampled test cells; any metric",
        of_metric=bootstrap_interval,
    ),
    "bootstrap_t": IntervalMethod(
        "resampled test cells in standard errors; any metric, best for skewed means",
        of_metric=bootstrap_t_interval,
    ),
}


def method_for(metric: CellMetric, wanted: str | None = None) -> str:
    """Return the method that serves a metric.

    Args:
        metric: whose interval is asked for.
        wanted: a name of `METHODS` that is taken where it serves the metric, so that one setting
            can go to several metrics.

    Returns:
        `wanted` where it serves; otherwise `wilson` for a proportion, `bootstrap_t` for the mean
        of a number per cell, `bootstrap` for everything else.

    Raises:
        UnknownNameError: there is no such method.
    """
    if wanted is not None and (_method(wanted).of_metric or metric.is_proportion):
        return wanted
    if metric.is_proportion:
        return "wilson"
    return "bootstrap" if metric.of_each is None else "bootstrap_t"


def confidence_interval(
    metric: CellMetric,
    *,
    method: str | None = None,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a metric with its interval, by the method named or the one that suits the metric.

    Args:
        metric: over the test cells.
        method: a name of `METHODS`; None for that of `method_for`.
        level: coverage wanted, in (0, 1).
        num_resamples: of the bootstrap; closed forms need none, and do not depend on it.
        seed: of the bootstrap.

    Raises:
        UnknownNameError: there is no such method.
        UsageError: the method is for proportions and the metric is none; no cells; a bad level.
    """
    name = method_for(metric) if method is None else method
    row = _method(name)
    if row.of_metric is not None:
        return row.of_metric(metric, level=level, num_resamples=num_resamples, seed=seed)
    if not metric.is_proportion:
        raise UsageError(
            f"{name} is for proportions, and {metric.name} is none: it is not a number of cells "
            "that are right among those asked. Use `bootstrap` or `bootstrap_t`."
        )
    assert row.of_share is not None
    assert metric.of_each is not None
    return row.of_share(int(metric.of_each.sum()), metric.num_cells, level=level)


def paired_difference(
    first: CellMetric,
    second: CellMetric,
    *,
    method: str = "bootstrap",
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return `first - second` on the same cells, with its interval over the same draws.

    Args:
        first: metric of the method of interest.
        second: the same metric of the method it is held against, over the same cells.
        method: `bootstrap` or `bootstrap_t`.
        level: coverage wanted, in (0, 1).
        num_resamples: how often n cells are drawn with replacement.
        seed: of the draws.

    Returns:
        The difference; an interval without 0 tells the two methods apart.
    """
    return confidence_interval(
        first - second, method=method, level=level, num_resamples=num_resamples, seed=seed
    )


def joint_draws(
    metrics: Sequence[CellMetric], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Array:
    """Return the values of several metrics on the same resamples of their cells.

    Args:
        metrics: over the same cells.
        num_resamples: how often n cells are drawn with replacement.
        seed: of the draws.

    Returns:
        float64 [metrics, resamples]; the difference of two rows is that of two metrics on each
        resample.

    Raises:
        UsageError: metrics over other cells, or one that is undefined on a resample.
    """
    if not metrics:
        return np.empty((0, num_resamples))
    sizes = {metric.num_cells for metric in metrics}
    if len(sizes) > 1:
        raise UsageError(
            f"Metrics over {' and '.join(str(size) for size in sorted(sizes))} cells are not over the "
            "same cells. Compare methods on one list of cells."
        )
    size = metrics[0].num_cells
    blocks = [
        np.stack([metric(weights) for metric in metrics])
        for weights in (_times_drawn(d, size) for d in _draws(size, num_resamples, seed))
    ]
    drawn = np.concatenate(blocks, axis=1)
    for metric, row in zip(metrics, drawn, strict=True):
        _check_defined(metric, 0.0, row)
    return drawn


def _draws(num_cells: int, num_resamples: int, seed: int) -> Iterator[Array]:
    """Yield blocks int64 [r, n]: the cells of each resample, drawn with replacement."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_ENTRIES // num_cells)
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        yield generator.integers(0, num_cells, size=(rows, num_cells))


def _times_drawn(draws: Array, num_cells: int) -> Array:
    """Return float64 [r, n], how often each cell is among the draws [r, m] of its row."""
    rows = len(draws)
    flat = (draws + np.arange(rows)[:, None] * num_cells).ravel()
    counts = np.bincount(flat, minlength=rows * num_cells)
    return counts.reshape(rows, num_cells).astype(np.float64)


def _standard_errors(metric: CellMetric, draws: Array) -> Array:
    """Return the standard error [r] of a metric in resamples given as draws [r, n]."""
    size = metric.num_cells
    weights = _times_drawn(draws, size)
    if metric.of_each is not None:
        numbers = metric.of_each.astype(np.float64)
        numbers = numbers - numbers.mean()  # less cancellation below
        means = weights @ numbers / size
        variances = np.maximum(weights @ numbers**2 / size - means**2, 0.0)
        return np.asarray(np.sqrt(variances / (size - 1)))
    # Draws are deleted, not cells: a cell drawn twice is two observations of the resample, and
    # deleting both at once would count their spread twice.
    groups = min(NUM_JACKKNIFE_GROUPS, size)
    without = np.stack(
        [metric(weights - _times_drawn(draws[:, g::groups], size)) for g in range(groups)]
    )
    deviations = without - without.mean(axis=0)
    return np.asarray(np.sqrt((groups - 1) / groups * (deviations**2).sum(axis=0)))


def _method(name: str) -> IntervalMethod:
    if name not in METHODS:
        raise UnknownNameError(
            f"There is no interval method {name!r}.{nearest(name, tuple(METHODS))}"
        )
    return METHODS[name]


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UsageError(
            f"The level {level} of an interval must lie between 0 and 1, such as 0.95."
        )


def _check_proportion(successes: int, total: int, level: float) -> None:
    _check_level(level)
    if total < 1 or not 0 <= successes <= total:
        raise UsageError(
            f"{successes} of {total} cells is not a proportion: an interval needs at least one "
            "test cell, and no more right cells than cells."
        )


def _check_bootstrap(metric: CellMetric, level: float, num_resamples: int) -> None:
    _check_level(level)
    if metric.num_cells < 1 or num_resamples < 1:
        raise UsageError(
            f"A bootstrap of {metric.num_cells} cells in {num_resamples} resamples has nothing to "
            "draw. Give at least one test cell and one resample."
        )


def _check_defined(metric: CellMetric, value: float, drawn: Array) -> None:
    undefined = int((~np.isfinite(drawn)).sum())
    if undefined or not np.isfinite(value):
        where = f"{undefined} of {len(drawn)} resamples of the test cells"
        raise UsageError(
            f"{metric.name} is undefined on {where if undefined else 'the test cells'}, so it has "
            "no interval. Use more test cells, or a metric that is defined whichever cells are "
            "drawn."
        )
