"""Tells from a sample of values whether a matrix holds raw counts, and if not, what it holds.

- Counts are whole and not negative; nothing else is asked of them (a binary matrix is counts), but
  whole numbers that betray another origin are not: ranks (each cell's sum to n(n + 1) / 2), and
  rounded normalised values (sums nearly but not exactly constant, as rarefied counts never are).
- Normalised values betray themselves twice: the sums of whole cells are nearly constant, and
  within a cell every value is a multiple of one unit, which stands for a count of 1. Both are
  looked for in the values and in what they were before log(1 + x) in base e, 2 or 10.
- The sum is lost when genes were selected after normalising, the multiples when counts were
  corrected before it; either is enough. Without both, values up to `MAX_LOG` are called log1p.
- The best place for counts: X, then layers named after counts, then raw.X, then other layers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from omics.data.errors import InputDataError
from omics.data.sources.matrix_sample import SAMPLE_BYTES, ValueSample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from omics.data.sources.protocol import Matrix

Array = np.ndarray[Any, np.dtype[Any]]
ValueKind = Literal[
    "counts", "log1p", "normalized", "scaled", "fractional", "ranked", "other", "empty", "unknown"
]

MAX_LOG = 20.0
# A spread of cell sums (10th to 90th percentile over the median) below this is called constant.
CONSTANT_SPREAD = 0.01
MIN_ROWS = 5
# Of few cells, or one, less chance is allowed: their sums must agree, or be a power of ten, so well.
FEW_ROWS_SPREAD = 1e-4
# A cell with so many values that are multiples of one unit is evidence alone.
MANY_VALUES = 20
MAX_UNIT_PARTS = 5
# Counts that were corrected or shared between genes keep this share of whole numbers.
FRACTIONAL_WHOLE = 0.2
PSEUDO_SHARE = 0.05
MAX_SAMPLED_MATRICES = 16

_LOGS: tuple[tuple[str, Callable[[Array], Array]], ...] = (
    ("log(1 + x)", np.expm1),
    ("log2(1 + x)", lambda values: np.expm1(values * np.log(2.0))),
    ("log10(1 + x)", lambda values: np.expm1(values * np.log(10.0))),
)


@dataclass(frozen=True, kw_only=True)
class ValueSummary:
    """What the sampled values of a matrix are.

    Attributes:
        kind: `counts`, `log1p` (any logarithm), `normalized`, `scaled` (negative values),
            `fractional` (counts with fractions: expected, shared or corrected ones), `ranked`,
            `other`, `empty` (no value but zero) or `unknown` (could not be sampled).
        text: the same in words, with the numbers that show it.
        num_values: how many non-zero values were looked at.
        integer_fraction: the share of them that are whole numbers.
        minimum: the smallest of them; None when there are none.
        maximum: the largest of them; None when there are none.
        scaled_to: the sum that each cell was normalised to, if that shows.
    """

    kind: ValueKind
    text: str
    num_values: int = 0
    integer_fraction: float = 0.0
    minimum: float | None = None
    maximum: float | None = None
    scaled_to: float | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A matrix of a file that may hold the counts.

    Attributes:
        location: `X`, `raw.X` or `layers/NAME`.
        encoding: `csr`, `csc` or `dense`.
        shape: cells, genes.
        dtype: of the stored values.
        entries: stored entries; for a dense matrix the estimate from the sample.
        entries_are_exact: False for that estimate.
        summary: what the values are.
        read_seconds: time per stored value that sampling took.
    """

    location: str
    encoding: str
    shape: tuple[int, int]
    dtype: str
    entries: int
    entries_are_exact: bool
    summary: ValueSummary
    read_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the candidate as plain values for JSON, without timings."""
        plain = asdict(self)
        del plain["read_seconds"]
        return {**plain, "shape": list(self.shape)}


def detect_counts(values: Array, indptr: Array | None = None) -> ValueSummary:
    """Say what kind of expression values these are.

    Args:
        values: [m] numbers without zeros, a sample of a matrix.
        indptr: int64 [k + 1] if they are all the values of k cells, else None.

    Returns:
        The kind, and the numbers that show it.
    """
    if not len(values):
        return ValueSummary(kind="empty", text="no value but zero")
    values = np.asarray(values).astype(np.float64)
    if not np.isfinite(values).all():
        share = float(np.mean(~np.isfinite(values)))
        return ValueSummary(
            kind="other", text=f"NaN or infinite values ({share:.1%})", num_values=len(values)
        )
    low, high = float(values.min()), float(values.max())
    whole = float(np.mean(values == np.floor(values)))
    kind, text, scaled_to = _classify(values, indptr, whole=whole)
    return ValueSummary(
        kind=kind,
        text=text,
        num_values=len(values),
        integer_fraction=whole,
        minimum=low,
        maximum=high,
        scaled_to=scaled_to,
    )


def _classify(
    values: Array, indptr: Array | None, *, whole: float
) -> tuple[ValueKind, str, float | None]:
    low, high = float(values.min()), float(values.max())
    span = f"max {high:.4g}, {_share(whole)} whole numbers"
    if low < 0:
        return _negative(values, indptr, span=f"min {low:.4g}, max {high:.4g}")
    sums = _cell_sums(values, indptr)
    if _are_ranks(values, indptr, sums):
        return "ranked", f"ranks of genes within cells (max {high:,.6g})", None
    if whole == 1.0:
        return _whole_numbers(values, indptr, sums)
    found = _structure(values, indptr, sums=sums, span=span)
    return found or (*_fractions(values, whole=whole, span=span), None)


def _fractions(values: Array, *, whole: float, span: str) -> tuple[ValueKind, str]:
    """Name values with fractions that show no trace of a normalisation."""
    if whole > 0.9:
        return "fractional", f"nearly raw counts, but {_share(1 - whole)} are fractions ({span})"
    # Logarithms written with one decimal are whole now and then, too.
    one_decimal = bool(np.allclose(values * 10, np.round(values * 10), rtol=1e-6, atol=0))
    if _are_halves(values) or (whole > FRACTIONAL_WHOLE and not one_decimal):
        return "fractional", f"counts with fractions, such as expected or shared counts ({span})"
    if float(values.max()) < MAX_LOG:
        return "log1p", f"log1p values ({span})"
    return "other", f"fractional values ({span})"


def _are_halves(values: Array) -> bool:
    return bool((values * 2 == np.floor(values * 2)).all())


def _whole_numbers(
    values: Array, indptr: Array | None, sums: Array
) -> tuple[ValueKind, str, float | None]:
    high = float(values.max())
    constant = _constant(sums)
    if high == 1.0:
        return "counts", "raw counts (whole numbers, max 1; every value is 1)", None
    if constant is not None and _were_rounded(values, indptr, sums):
        text = (
            f"normalised values, cells scaled to about {_target(constant)}, then rounded to whole "
            f"numbers (max {high:,.0f})"
        )
        return "normalized", text, constant
    note = f"; the sum of every cell is about {_number(constant)}" if constant else ""
    return "counts", f"raw counts (whole numbers, max {high:,.0f}{note})", None


def _were_rounded(values: Array, indptr: Array | None, sums: Array) -> bool:
    """Tell rounded normalised values, whose sums nearly agree, from counts drawn to one depth."""
    if indptr is None or len(np.unique(sums)) == 1:
        return False
    starts = indptr[:-1][np.diff(indptr) > 0]
    # The smallest value of a cell stands for a count of 1, which is 1 in counts of any depth.
    no_ones = bool(np.median(np.minimum.reduceat(values, starts)) > 1)
    # Counts drawn to a depth never exceed it; rounding goes both ways.
    power = 10.0 ** round(np.log10(float(np.median(sums))))
    around = abs(float(np.median(sums)) / power - 1) < CONSTANT_SPREAD and bool(
        (sums > power).any()
    )
    return no_ones or (around and power >= 1000)


def _are_ranks(values: Array, indptr: Array | None, sums: Array) -> bool:
    """Tell whether the values of most cells are 1 to n in some order (ties averaged)."""
    if indptr is None:
        return False
    lengths = np.diff(indptr)
    lengths = lengths[lengths > 0]
    asked = lengths >= MIN_ROWS
    enough = asked.sum() >= MIN_ROWS or (lengths >= MANY_VALUES).any()
    if not enough or np.mean(sums[asked] == (lengths * (lengths + 1) / 2)[asked]) <= 0.95:
        return False
    return _are_halves(values)


def _negative(
    values: Array, indptr: Array | None, *, span: str
) -> tuple[ValueKind, str, float | None]:
    """Tell a logarithm of x + something small, of which many zeros give the minimum, from others."""
    low = float(values.min())
    if np.mean(values == low) > PSEUDO_SHARE:
        for name, base in (("log2", 2.0), ("log", np.e), ("log10", 10.0)):
            if float(values.max()) * np.log(base) > 60:
                continue
            before = base**values - base**low
            constant = _constant(_cell_sums(before, indptr))
            if constant is not None:
                text = (
                    f"logarithms, {name}(x + {base**low:.3g}) of counts scaled to about "
                    f"{_target(constant)} ({span})"
                )
                return "log1p", text, constant
    return "scaled", f"scaled values ({span})", None


def _structure(
    values: Array, indptr: Array | None, *, sums: Array, span: str
) -> tuple[ValueKind, str, float | None] | None:
    """Look for constant sums and multiples: the traces of normalisation to a total."""
    constant = _constant(sums)
    logarithm = _find_logarithm(values, indptr) if float(values.max()) < MAX_LOG else None
    # Small fractions are nearly their own logarithm: believe the straighter of the two.
    straighter = logarithm is None or _spread(sums) <= logarithm[2]
    if straighter and constant:
        text = f"normalised values ({span}, cells scaled to about {_target(constant)})"
        return "normalized", text, constant
    # Counts of which some have fractions are multiples of a unit as well: of a half, say.
    halves = _are_halves(values)
    if straighter and not halves and _are_multiples(values, indptr):
        return "normalized", f"normalised values ({span})", None
    if logarithm is None or halves:
        return None
    name, target, _ = logarithm
    if target is None:
        return "log1p", f"log1p values, {name} of normalised counts ({span})", None
    text = f"log1p values, {name} of counts scaled to about {_target(target)} ({span})"
    return "log1p", text, target


def _target(total: float) -> str:
    """Return what cells were scaled to, with its name where it has one."""
    return _number(total) + (" (CPM or TPM)" if abs(total / 1e6 - 1) < CONSTANT_SPREAD else "")


def _share(share: float) -> str:
    """Return a percentage that is `0 %` or `100 %` only when it is exactly so."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.3g} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _cell_sums(values: Array, indptr: Array | None) -> Array:
    """Return the sums of the non-empty cells; none when whole cells are not known."""
    if indptr is None:
        return np.empty(0)
    starts = indptr[:-1][np.diff(indptr) > 0]
    return np.add.reduceat(values, starts)


def _spread(sums: Array) -> float:
    """Return how far the sums of cells lie apart; infinite where that says nothing."""
    if len(sums) >= MIN_ROWS:
        low, middle, high = np.percentile(sums, [10, 50, 90])
        return float((high - low) / middle) if middle > 0 else float("inf")
    if not len(sums) or float(sums.min()) <= 0:
        return float("inf")
    if len(sums) == 1:
        power = 10.0 ** round(np.log10(float(sums[0])))
        spread = abs(float(sums[0]) / power - 1) if power >= 1000 else float("inf")
    else:
        spread = float(np.ptp(sums) / np.median(sums))
    return spread if spread < FEW_ROWS_SPREAD else float("inf")


def _constant(sums: Array) -> float | None:
    return float(np.median(sums)) if _spread(sums) < CONSTANT_SPREAD else None


def _find_logarithm(values: Array, indptr: Array | None) -> tuple[str, float | None, float] | None:
    """Return (name, what cells were scaled to, spread of sums) of the logarithm that fits."""
    best: tuple[str, float | None, float] | None = None
    for name, undo in _LOGS:
        before = undo(values)
        sums = _cell_sums(before, indptr)
        spread = _spread(sums)
        if spread < CONSTANT_SPREAD and (best is None or spread < best[2]):
            best = (name, float(np.median(sums)), spread)
    if best is not None:
        return best
    for name, undo in _LOGS:
        if _are_multiples(undo(values), indptr):
            return name, None, 0.0
    return None


def _are_multiples(values: Array, indptr: Array | None) -> bool:
    """Tell whether the values of most cells are whole multiples of a unit of the cell.

    The unit is the smallest value, or, should no gene of the cell have a count of 1, a half, a
    third, ... of it.
    """
    if indptr is None:
        return False
    lengths = np.diff(indptr)
    lengths = lengths[lengths > 0]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    if not len(starts):
        return False
    smallest = np.minimum.reduceat(values, starts)
    ratios = values / np.repeat(smallest, lengths)
    # Ratios near 1 say nothing; large ones lose their fraction to float32.
    telling = (ratios > 1.01) & (ratios < 100)
    per_cell = np.add.reduceat(telling.astype(np.int64), starts)
    fits = np.zeros(len(starts), np.bool_)
    for parts in range(1, MAX_UNIT_PARTS + 1):
        scaled = ratios * parts
        near = telling & (np.abs(scaled - np.round(scaled)) < 0.01)
        fits |= np.add.reduceat(near.astype(np.int64), starts) > 0.95 * per_cell
    asked = per_cell >= MIN_ROWS
    enough = asked.sum() >= MIN_ROWS or (per_cell >= MANY_VALUES).any()
    return bool(enough and np.mean(fits[asked]) > 0.5)


def find_counts(matrices: Iterable[Matrix], *, budget: int = SAMPLE_BYTES) -> list[Candidate]:
    """Look into the matrices of a file for raw counts.

    Args:
        matrices: of an open file.
        budget: how many bytes may be decompressed in all.

    Returns:
        One candidate per matrix, the best place for counts first.
    """
    found = sorted(matrices, key=lambda matrix: _preference(matrix.location))
    share = budget // max(1, min(len(found), MAX_SAMPLED_MATRICES))
    candidates = [
        _candidate(matrix, share if index < MAX_SAMPLED_MATRICES else 0)
        for index, matrix in enumerate(found)
    ]
    return sorted(candidates, key=lambda candidate: candidate.summary.kind != "counts")


def _preference(location: str) -> tuple[int, str]:
    if location == "X":
        return 0, location
    if location == "raw.X":
        return 2, location
    name = location.removeprefix("layers/").lower()
    return (1 if "count" in name or "raw" in name or "umi" in name else 3), location


def _candidate(matrix: Matrix, budget: int) -> Candidate:
    try:
        sample = matrix.sample(budget) if budget else None
    except InputDataError as error:
        # A damaged matrix is a finding about this place; the others may still be sound.
        summary, sample = ValueSummary(kind="unknown", text=f"damaged: {error}"), None
    else:
        summary = _summarise(sample)
    entries = matrix.stored_entries
    return Candidate(
        location=matrix.location,
        encoding=matrix.encoding,
        shape=matrix.shape,
        dtype=str(matrix.dtype),
        entries=_estimated_entries(matrix, sample) if entries is None else entries,
        entries_are_exact=entries is not None or bool(sample and sample.complete),
        summary=summary,
        read_seconds=sample.seconds / max(sample.num_places, 1) if sample else 0.0,
    )


def _summarise(sample: ValueSample | None) -> ValueSummary:
    if sample is None:
        return ValueSummary(kind="unknown", text="not sampled (too large a chunk, or too many)")
    return detect_counts(sample.values, sample.indptr)


def _estimated_entries(matrix: Matrix, sample: ValueSample | None) -> int:
    places = matrix.shape[0] * matrix.shape[1]
    if sample is None or not sample.num_places:
        return places
    return round(places * len(sample.values) / sample.num_places)
