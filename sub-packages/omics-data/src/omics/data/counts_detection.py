"""Tells from a sample of values whether a matrix holds raw counts, and if not, what it holds.

- Counts are whole and not negative; nothing else is asked of them (a binary matrix is counts).
- Normalised values betray themselves twice: the sums of whole cells are nearly constant, and
  within a cell every value is a multiple of the smallest one, which stands for a count of 1.
  Both are looked for in the values and in what they were before log(1 + x) in base e, 2 or 10.
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
ValueKind = Literal["counts", "log1p", "normalized", "scaled", "other", "empty", "unknown"]

MAX_LOG = 20.0
# A spread of cell sums (10th to 90th percentile over the median) below this is called constant.
CONSTANT_SPREAD = 0.01
MIN_ROWS = 5
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
        kind: `counts`, `log1p`, `normalized`, `scaled` (negative values), `other`, `empty` (no
            value but zero) or `unknown` (could not be sampled).
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
        return "scaled", f"scaled values (min {low:.4g}, max {high:.4g})", None
    sums = _cell_sums(values, indptr)
    constant = _constant(sums)
    if whole == 1.0:
        note = f"; the sum of every cell is about {_number(constant)}" if constant else ""
        note = "; every value is 1" if high == 1.0 else note
        return "counts", f"raw counts (whole numbers, max {high:,.0f}{note})", None
    found = _structure(values, indptr, sums=sums, span=span)
    if found is not None:
        return found
    if whole > 0.9:
        return "other", f"nearly raw counts, but {_share(1 - whole)} are fractions ({span})", None
    if high < MAX_LOG:
        return "log1p", f"log1p values ({span})", None
    return "other", f"fractional values ({span})", None


def _structure(
    values: Array, indptr: Array | None, *, sums: Array, span: str
) -> tuple[ValueKind, str, float | None] | None:
    """Look for constant sums and multiples: the traces of normalisation to a total."""
    constant = _constant(sums)
    logarithm = _find_logarithm(values, indptr) if float(values.max()) < MAX_LOG else None
    # Small fractions are nearly their own logarithm: believe the straighter of the two.
    straighter = logarithm is None or _spread(sums) <= logarithm[2]
    if straighter and (constant or _are_multiples(values, indptr)):
        to = f", cells scaled to about {_number(constant)}" if constant else ""
        return "normalized", f"normalised values ({span}{to})", constant
    if logarithm is None:
        return None
    name, target, _ = logarithm
    if target is None:
        return "log1p", f"log1p values, {name} of normalised counts ({span})", None
    text = f"log1p values, {name} of counts scaled to about {_number(target)} ({span})"
    return "log1p", text, target


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
    if len(sums) < MIN_ROWS:
        return float("inf")
    low, middle, high = np.percentile(sums, [10, 50, 90])
    return float((high - low) / middle) if middle > 0 else float("inf")


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
    """Tell whether the values of most cells are whole multiples of the cell's smallest one."""
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
    near = telling & (np.abs(ratios - np.round(ratios)) < 0.01)
    per_cell = np.add.reduceat(telling.astype(np.int64), starts)
    near_per_cell = np.add.reduceat(near.astype(np.int64), starts)
    asked = per_cell >= MIN_ROWS
    if asked.sum() < MIN_ROWS:
        return False
    return bool(np.mean(near_per_cell[asked] > 0.95 * per_cell[asked]) > 0.5)


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
