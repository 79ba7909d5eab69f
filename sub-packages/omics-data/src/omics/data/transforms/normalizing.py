"""Transforms that turn counts into expression by the total of a cell.

- The total is that of the entries the cell has when the transform meets it, so genes must not have
  been left out before (`transform_rules` refuses it; a fixed panel is a choice and may come first).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from omics.data.errors import ConfigError
from omics.data.transforms.entry_values import entry_values, is_whole
from omics.data.transforms.transform_registry import (
    NORMALISES,
    READS_COUNTS,
    GeneTransform,
    TransformRecord,
    check_choice,
    register,
)

if TYPE_CHECKING:
    from typing import Any

    from omics.data.cell_batch import CellBatch
    from omics.data.genes import GeneTable

    Array = np.ndarray[Any, np.dtype[Any]]


@register
@dataclass(frozen=True, slots=True)
class LogNormalize(TransformRecord):
    """Adds the field log(1 + count * target_sum / total count of the cell), float32.

    With the defaults this is log1p(CP10k) as scanpy computes it. `added_total=1` divides by the
    total plus one instead, as the BiomedSciAI models were trained.

    Attributes:
        target_sum: what every cell's counts are scaled to sum to, before the logarithm.
        field_name: of the field that is added.
        added_total: what is added to the total of a cell before dividing.
    """

    name: ClassVar[str] = "log_normalize"
    training_only: ClassVar[bool] = False

    target_sum: float = 1e4
    field_name: str = "expression"
    added_total: float = 0.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_target_sum(self.target_sum)
        if not (math.isfinite(self.added_total) and self.added_total >= 0):
            raise ConfigError(f"added_total is {self.added_total}; it must not be negative.")

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({NORMALISES, READS_COUNTS})

    def fields_added(self) -> tuple[str, ...]:
        """Return the field that it adds."""
        return (self.field_name,)

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with the field; see `Transform`."""
        values = log_normalized(
            batch.indptr,
            entry_values(batch, "counts"),
            target_sum=self.target_sum,
            added_total=self.added_total,
        )
        return batch.with_field(self.field_name, values)


@register
@dataclass(frozen=True, slots=True)
class MedianNormalize(GeneTransform):
    """Adds the field count / total * target_sum / median of the gene, float32.

    The total is that of all entries of the cell, those without a median included. This is what
    Geneformer ranks genes by (Theodoris et al. 2023); the ranking itself needs no target_sum.

    Attributes:
        medians: gene id to its non-zero median over a corpus, positive.
        target_sum: what every cell's counts are scaled to sum to.
        missing: `drop` genes without a median, or `keep` them as if it were 1.
        field_name: of the field that is added.
    """

    name: ClassVar[str] = "median_normalize"
    training_only: ClassVar[bool] = False

    medians: dict[str, float] = field(hash=False, repr=False)
    target_sum: float = 1e4
    missing: str = "drop"
    field_name: str = "expression"

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_target_sum(self.target_sum)
        check_choice(self.missing, ("drop", "keep"), f"{self.name}.missing")
        if not self.medians:
            raise ConfigError("medians is empty: give gene ids and their medians.")
        for gene, median in self.medians.items():
            if not (math.isfinite(median) and median > 0):
                raise ConfigError(f"The median of {gene!r} is {median}; it must be positive.")
        object.__setattr__(self, "medians", dict(self.medians))

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({NORMALISES, READS_COUNTS})

    def fields_added(self) -> tuple[str, ...]:
        """Return the field that it adds."""
        return (self.field_name,)

    def resolve(self, genes: GeneTable) -> Array:
        """Return float64 [genes], the medians by position, NaN where there is none."""
        positions = genes.positions(self.medians)
        medians = np.full(len(genes), np.nan)
        found = positions >= 0
        if not found.any():
            raise ConfigError(
                f"None of the {len(self.medians)} genes with a median (such as "
                f"{next(iter(self.medians))!r}) is among the {len(genes)} genes of the cells (such "
                f"as {str(genes.ids[0]) if len(genes) else None!r}). Use medians with the same "
                "kind of gene ids."
            )
        medians[positions[found]] = np.array(list(self.medians.values()))[found]
        return medians

    def apply(self, batch: CellBatch, resolved: Array, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with the field; see `Transform`."""
        from omics.data.transforms.normalizing_loops import median_normalize_rows

        has_median = ~np.isnan(resolved)
        medians = np.where(has_median, resolved, 1.0)
        values = entry_values(batch, "counts")
        out = np.empty(len(values), np.float32)
        rows = (batch.indptr, batch.genes)
        median_normalize_rows(rows, values, is_whole(values), (self.target_sum, medians), out)
        done = batch.with_field(self.field_name, out)
        if self.missing == "keep" or has_median.all():
            return done
        return done.keep_entries(has_median[batch.genes])


def log_normalized(
    indptr: Array, values: Array, *, target_sum: float, added_total: float = 0.0
) -> Array:
    """Return float32 [nnz]: log(1 + value * target_sum / (total of the cell + added_total)).

    Args:
        indptr: int64 [n + 1].
        values: uint32 or float32 [nnz].
        target_sum: what a cell is scaled to sum to.
        added_total: added to the total of a cell.
    """
    from omics.data.transforms.normalizing_loops import log_normalize_rows

    out = np.empty(len(values), np.float32)
    log_normalize_rows(indptr, values, is_whole(values), (target_sum, added_total), out)
    return out


def _check_target_sum(target_sum: float) -> None:
    if not (math.isfinite(target_sum) and target_sum > 0):
        raise ConfigError(f"target_sum is {target_sum}; it must be a positive number.")
