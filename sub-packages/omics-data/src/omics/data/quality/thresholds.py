"""Rules that say which cells to leave out: fixed limits, distances in MADs, Tukey's fences, doublets.

- Every rule is a column of its own: a cell that is left out always says why, and may have several
  reasons. Nothing is removed by a rule; `keep` is true where no rule applies.
- MADs: further than n median absolute deviations (not scaled by 1.4826) from the median, on
  log(1 + counts) and log(1 + genes) on both sides, on the mitochondrial percentage above only, as in
  Heumos et al. 2023 (Nat Rev Genet 24:550), who use 5.
- Tukey: outside [Q1 - s IQR, Q3 + s IQR] of log(1 + counts), log(1 + genes) and
  log(1 + mitochondrial percentage); s is usually 1.5.
- Medians and quartiles are taken within each batch, if a batch column is given.
- The percentage of an empty cell is undefined and fails every rule about it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, np.dtype[Any]]

GENES = "n_genes_by_counts"
COUNTS = "total_counts"
MITO = "pct_counts_mt"
FAILS = "fails_"
_SMALL_BATCH = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What a cell, or a gene, must meet; None means no such rule.

    Attributes:
        min_genes: expressed genes a cell has at least.
        max_genes: and at most.
        min_counts: counts a cell has at least.
        max_counts: and at most.
        max_mito: mitochondrial percentage (0 to 100) at most.
        mads: how many median absolute deviations from the median a cell may be.
        iqr: how many interquartile ranges outside the quartiles (Tukey).
        min_cells: cells that a gene is found in at least; reported, not applied to cells.

    Raises:
        UsageError: a limit out of range, or a lower one above its upper one.
    """

    min_genes: int | None = None
    max_genes: int | None = None
    min_counts: float | None = None
    max_counts: float | None = None
    max_mito: float | None = None
    mads: float | None = None
    iqr: float | None = None
    min_cells: int | None = None

    def __post_init__(self) -> None:
        """Check the limits."""
        for name, value in asdict(self).items():
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}; it must be a number from 0.")
        for low, high in (("min_genes", "max_genes"), ("min_counts", "max_counts")):
            below, above = getattr(self, low), getattr(self, high)
            if below is not None and above is not None and below > above:
                raise UsageError(f"{low} is {below} and {high} {above}: no cell can meet both.")
        if self.max_mito is not None and self.max_mito > 100:
            raise UsageError(f"max_mito is {self.max_mito}; it is a percentage from 0 to 100.")

    def to_dict(self) -> dict[str, Any]:
        """Return the limits that are set, as plain JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class RuleOutcome:
    """What one rule found.

    Attributes:
        name: such as `min_genes` or `mad_counts`; the column is `fails_` + name.
        column: the metric it looks at.
        fails: bool [n].
        bounds: per batch the lowest and highest value allowed (None where there is none), in the
            units of the metric.
    """

    name: str
    column: str
    fails: Array
    bounds: tuple[dict[str, Any], ...]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Batches:
    """Which batch each cell is of.

    Attributes:
        column: the obs column; None when all cells are taken together.
        names: of the batches, in order of their text.
        codes: int64 [n], positions in `names`.
    """

    column: str | None
    names: tuple[str, ...]
    codes: Array

    def members(self) -> list[Array]:
        """Return the ascending rows of each batch, in the order of `names`."""
        order = np.argsort(self.codes, kind="stable")
        sizes = np.bincount(self.codes, minlength=len(self.names))
        return np.split(order, np.cumsum(sizes)[:-1])


@dataclass(slots=True)
class _Rules:
    cells: dict[str, Array]
    batches: Batches
    outcomes: list[RuleOutcome] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def fixed(self, name: str, column: str, *, low: float | None, high: float | None) -> None:
        if low is None and high is None:
            return
        bounds = ({"batch": None, "low": low, "high": high},)
        fails = _outside(self.cells[column], low, high)
        self.outcomes.append(RuleOutcome(name=name, column=column, fails=fails, bounds=bounds))

    def relative(
        self,
        name: str,
        column: str,
        limits: Callable[[Array], tuple[float | None, float | None]],
        *,
        log: bool,
    ) -> None:
        """Add a rule whose limits come from the cells of each batch."""
        values = self.cells[column].astype(np.float64)
        scaled = np.log1p(values) if log else values
        fails = np.zeros(len(values), bool)
        bounds = []
        flat = 0
        for batch, rows in zip(self.batches.names, self.batches.members(), strict=True):
            measured = scaled[rows]
            finite = measured[np.isfinite(measured)]
            low, high = limits(finite) if len(finite) else (None, None)
            flat += low is None and high is None
            fails[rows] = _outside(measured, low, high)
            shown = [None if each is None else float(np.expm1(each) if log else each) for each in (low, high)]  # fmt: skip
            named = None if self.batches.column is None else batch
            bounds.append({"batch": named, "low": shown[0], "high": shown[1]})
        fails |= np.isnan(scaled)
        if flat:
            self.remarks.append(
                f"{name} calls no cell of {flat} batch(es) an outlier: at least half of their cells "
                f"have the same {column}"
            )
        outcome = RuleOutcome(name=name, column=column, fails=fails, bounds=tuple(bounds))
        self.outcomes.append(outcome)


def apply_thresholds(
    cells: dict[str, Array], thresholds: Thresholds, batches: Batches
) -> tuple[list[RuleOutcome], list[str]]:
    """Apply every rule to every cell.

    Args:
        cells: metrics [n] of `measure_cells`.
        thresholds: the limits.
        batches: within which medians and quartiles are taken.

    Returns:
        The outcome of each rule that is set, and remarks.

    Raises:
        InputDataError: `max_mito` is set, and no mitochondrial genes were found.
    """
    rules = _Rules(cells, batches)
    rules.fixed("min_genes", GENES, low=thresholds.min_genes, high=None)
    rules.fixed("max_genes", GENES, low=None, high=thresholds.max_genes)
    rules.fixed("min_counts", COUNTS, low=thresholds.min_counts, high=None)
    rules.fixed("max_counts", COUNTS, low=None, high=thresholds.max_counts)
    if thresholds.max_mito is not None:
        if MITO not in cells:
            raise InputDataError(
                "A mitochondrial limit is set, but no gene symbol begins with MT-. Convert again "
                "from a file whose var has a column gene_symbol, or leave the limit out."
            )
        rules.fixed("max_mito", MITO, low=None, high=thresholds.max_mito)
    if thresholds.mads is not None:
        _mad_rules(rules, thresholds.mads)
    if thresholds.iqr is not None:
        scale = thresholds.iqr
        for name, column in (("counts", COUNTS), ("genes", GENES), ("mito", MITO)):
            if column in cells:
                rules.relative(f"iqr_{name}", column, lambda x: _tukey(x, scale), log=True)
    if thresholds.mads is not None or thresholds.iqr is not None:
        sizes = np.bincount(batches.codes, minlength=len(batches.names))
        small = int(((sizes > 0) & (sizes < _SMALL_BATCH)).sum())
        if small and len(sizes) > 1:
            rules.remarks.append(
                f"{small} batch(es) have fewer than {_SMALL_BATCH} cells: their medians say little"
            )
    return rules.outcomes, rules.remarks


def _mad_rules(rules: _Rules, mads: float) -> None:
    def both_sides(values: Array) -> tuple[float | None, float | None]:
        middle, deviation = _median_deviation(values)
        return (None, None) if deviation == 0 else (middle - mads * deviation, middle + mads * deviation)  # fmt: skip

    def above(values: Array) -> tuple[float | None, float | None]:
        return None, both_sides(values)[1]

    rules.relative("mad_counts", COUNTS, both_sides, log=True)
    rules.relative("mad_genes", GENES, both_sides, log=True)
    if MITO in rules.cells:
        rules.relative("mad_mito", MITO, above, log=False)


def _median_deviation(values: Array) -> tuple[float, float]:
    middle = float(np.median(values))
    return middle, float(np.median(np.abs(values - middle)))


def _tukey(values: Array, scale: float) -> tuple[float | None, float | None]:
    low, high = (float(each) for each in np.percentile(values, (25, 75)))
    spread = high - low
    return (None, None) if spread == 0 else (low - scale * spread, high + scale * spread)


def _outside(values: Array, low: float | None, high: float | None) -> Array:
    """Return bool [n], True where a value is not known to be within the limits."""
    fails = np.isnan(values)
    if low is not None:
        fails |= values < low
    if high is not None:
        fails |= values > high
    return np.asarray(fails, bool)
