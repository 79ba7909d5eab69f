"""`GeneCoverage`: what became of the genes of each source, as rows and as a table of text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data.storage.store import CellStore


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneCoverage:
    """What became of the genes of one source.

    Attributes:
        source: its name.
        genes: how many it has.
        matched: how many have a place in the common table.
        shared: how many of these at least one other source has too.
        renamed: how many of the matched have another id there than in the source's index.
        merged: how many of the matched share their place with an earlier gene of the source.
        left_out: how many have none.
        counts_kept: the share of its counts that was kept; None before conversion.
    """

    source: str
    genes: int
    matched: int
    shared: int
    renamed: int
    merged: int
    left_out: int
    counts_kept: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON."""
        return asdict(self)


def with_counts_kept(
    coverage: Sequence[GeneCoverage], seen: Sequence[float], kept: Sequence[float]
) -> tuple[GeneCoverage, ...]:
    """Return coverage rows with the shares of counts that were kept.

    Args:
        coverage: of each source.
        seen: the sum of the values of each source.
        kept: the sum of those that are in the store.
    """
    return tuple(
        replace(row, counts_kept=kept_sum / total if total else 1.0)
        for row, total, kept_sum in zip(coverage, seen, kept, strict=True)
    )


def coverage_text(coverage: Sequence[GeneCoverage]) -> str:
    """Return the coverage of all sources as an aligned table of plain text.

    Args:
        coverage: of each source.
    """
    titles = (
        "source",
        "genes",
        "matched",
        "shared",
        "renamed",
        "merged",
        "left out",
        "counts kept",
    )
    rows = [
        (
            row.source,
            *(
                f"{number:,}"
                for number in (
                    row.genes, row.matched, row.shared, row.renamed, row.merged, row.left_out,
                )
            ),
            "" if row.counts_kept is None else _percent(row.counts_kept),
        )
        for row in coverage
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [titles, *rows]
    ]
    return "\n".join(lines)


def coverage_of(store: CellStore) -> list[GeneCoverage]:
    """Return what became of the genes of each source of a store, as its provenance says.

    Args:
        store: that `convert` wrote.

    Returns:
        One row per source; none if the genes of its one source stayed as they were.
    """
    found = store.provenance.get("genes", {}).get("coverage", [])
    return [GeneCoverage(**row) for row in found]


def _percent(share: float) -> str:
    """Return a percentage that is `100 %` only when it is exactly so."""
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"
