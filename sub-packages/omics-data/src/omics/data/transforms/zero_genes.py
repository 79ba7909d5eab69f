"""Transforms that add genes which a cell does not express, with count 0.

- Leaving them out of a list is the choice "none": cells then hold expressed genes only.
- The added genes come after those the cell has, in random order; `interleave_zeros` mixes them,
  an ordering puts them elsewhere. `all_genes` shows every gene in the order of the store instead. All
  fields are 0 at added genes.
- A gene counts as not expressed when the cell has no entry of it, so nothing may have been left
  out of the cell before (`transform_rules` refuses it).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from omics.data.errors import ConfigError
from omics.data.keyed_random import keyed_uniform, stream_key
from omics.data.transforms.entry_values import take_entries
from omics.data.transforms.gene_panels import checked_genes, mark_genes
from omics.data.transforms.transform_registry import (
    FILLS,
    FILLS_FROM_ALL,
    INTERLEAVES,
    LIMITS,
    SORTS_GENES,
    GeneTransform,
    TransformRecord,
    register,
)

if TYPE_CHECKING:
    from typing import Any

    from omics.data.cell_batch import CellBatch
    from omics.data.genes import GeneTable

    Array = np.ndarray[Any, np.dtype[Any]]


@register
@dataclass(frozen=True, slots=True)
class RandomZeros(GeneTransform):
    """Adds random genes that a cell does not express, with count 0.

    Exactly one of `fill_to` and `expressed_share` is given. A cell gets fewer when the genes run
    out.

    Attributes:
        fill_to: add until the cell has this many genes; a cell that has more keeps them.
        expressed_share: add until this share of the cell's genes is expressed, from 0.001
            to below 1: with 0.9, one zero for nine expressed genes.
        untouched_share: the share of cells, chosen at random, that get none.
        panel: ids of the genes to choose from; None chooses among all of the store.
        training_only: leave it out of inference.
    """

    name: ClassVar[str] = "random_zeros"

    fill_to: int | None = None
    expressed_share: float | None = None
    untouched_share: float = 0.0
    panel: tuple[str, ...] | None = field(default=None, repr=False)
    training_only: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_amount(self.name, self.fill_to, self.expressed_share, self.untouched_share)
        if self.panel is not None:
            object.__setattr__(self, "panel", checked_genes(self.panel, "random_zeros.panel"))

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({FILLS, FILLS_FROM_ALL} if self.panel is None else {FILLS})

    def resolve(self, genes: GeneTable) -> Array:
        """Return int64 [p], the positions of the genes to choose from."""
        if self.panel is None:
            return np.arange(len(genes), dtype=np.int64)
        return np.flatnonzero(mark_genes(self.panel, genes, self.name))

    def apply(self, batch: CellBatch, resolved: Array, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with more entries; see `Transform`."""
        wanted = _wanted(batch, self.fill_to, self.expressed_share)
        wanted[_untouched(batch, self.untouched_share, self.name, seed, epoch)] = 0
        key = stream_key(seed=seed, epoch=epoch, stream=self.name)
        return _filled(batch, resolved, wanted, key)


@register
@dataclass(frozen=True, slots=True)
class AllGenes(GeneTransform):
    """Shows every gene in every cell, in the order of the store, with count 0 where there is none.

    All cells then have the same genes in the same places, as the dense matrices of other programs
    have, and cost as much: keep the genes few (`omics-data prepare --hvg 2000`, or a panel).

    Attributes:
        panel: ids or symbols of the genes to show, in the order of the store; others are left out.
            None shows all genes of the store.
    """

    name: ClassVar[str] = "all_genes"
    training_only: ClassVar[bool] = False

    panel: tuple[str, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.panel is not None:
            object.__setattr__(self, "panel", checked_genes(self.panel, "all_genes.panel"))

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({FILLS, SORTS_GENES, FILLS_FROM_ALL if self.panel is None else LIMITS})

    def resolve(self, genes: GeneTable) -> Array:
        """Return int64 [p], the positions of the genes to show, ascending."""
        if self.panel is None:
            return np.arange(len(genes), dtype=np.int64)
        return np.flatnonzero(mark_genes(self.panel, genes, self.name))

    def apply(self, batch: CellBatch, resolved: Array, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with exactly the same genes in every cell; see `Transform`."""
        num_cells, num_shown = len(batch), len(resolved)
        place = np.full(batch.num_genes, -1, np.int64)
        place[resolved] = np.arange(num_shown)
        own = place[batch.genes]
        shown = own >= 0
        cell = np.repeat(np.arange(num_cells, dtype=np.int64), batch.lengths)
        entries = (cell * num_shown + own)[shown]

        def spread(values: Array) -> Array:
            out = np.zeros(num_cells * num_shown, values.dtype)
            out[entries] = values[shown]
            return out

        return replace(
            batch,
            indptr=np.arange(num_cells + 1, dtype=np.int64) * num_shown,
            genes=np.tile(resolved.astype(batch.genes.dtype), num_cells),
            counts=spread(batch.counts),
            fields={name: spread(values) for name, values in batch.fields.items()},
        )


@register
@dataclass(frozen=True, slots=True)
class BatchZeros(TransformRecord):
    """Adds genes that a cell does not express and another cell of its batch does, with count 0.

    This is the one transform whose result depends on the batch that a cell is in: it is for
    training only, and a run repeats exactly only with the same batches. Exactly one of `fill_to`
    and `expressed_share` is given. A cell gets fewer when the genes run out; `random_zeros` after
    it fills the rest.

    Attributes:
        fill_to: add until the cell has this many genes; a cell that has more keeps them.
        expressed_share: add until this share of the cell's genes is expressed, from 0.001
            to below 1: with 0.9, one zero for nine expressed genes.
        untouched_share: the share of cells, chosen at random, that get none.
    """

    name: ClassVar[str] = "batch_zeros"
    training_only: ClassVar[bool] = True

    fill_to: int | None = None
    expressed_share: float | None = None
    untouched_share: float = 0.0

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_amount(self.name, self.fill_to, self.expressed_share, self.untouched_share)

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({FILLS})

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with more entries; see `Transform`."""
        expressed = np.zeros(batch.num_genes, np.bool_)
        expressed[batch.genes[batch.counts != 0]] = True
        wanted = _wanted(batch, self.fill_to, self.expressed_share)
        wanted[_untouched(batch, self.untouched_share, self.name, seed, epoch)] = 0
        key = stream_key(seed=seed, epoch=epoch, stream=self.name)
        return _filled(batch, np.flatnonzero(expressed), wanted, key)


@register
@dataclass(frozen=True, slots=True)
class InterleaveZeros(TransformRecord):
    """Mixes the expressed genes of a cell and those with count 0, evenly and in a fixed pattern.

    Both keep their order. Wherever a cell is cut, `expressed_share` of what is left is expressed
    (to within one gene), as long as both kinds last; then the rest of the other kind follows. With
    0.9, nine expressed genes come before each zero; with 0.5 they take turns.

    Attributes:
        expressed_share: the share of expressed genes, above 0 and below 1; taken as the nearest
            fraction with a denominator of at most 1,000.
        training_only: leave it out of inference.
    """

    name: ClassVar[str] = "interleave_zeros"

    expressed_share: float
    training_only: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0.001 <= self.expressed_share <= 0.999:
            raise ConfigError(
                f"interleave_zeros.expressed_share is {self.expressed_share}; it must be from "
                "0.001 to 0.999: the share of expressed genes."
            )

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({INTERLEAVES})

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch in another order; see `Transform`."""
        from omics.data.transforms.ordering_loops import interleave_rows

        share = _fraction(self.expressed_share)
        order = np.empty(len(batch.genes), np.int64)
        interleave_rows(batch.indptr, batch.counts, (share.numerator, share.denominator), order)
        return take_entries(batch, batch.indptr, order)


def _wanted(batch: CellBatch, fill_to: int | None, expressed_share: float | None) -> Array:
    """Return int64 [n], how many genes each cell should get."""
    if fill_to is not None:
        return np.maximum(fill_to - batch.lengths, 0)
    assert expressed_share is not None
    share = _fraction(expressed_share)
    before = np.concatenate([[0], np.cumsum(batch.counts != 0)])
    expressed = before[batch.indptr[1:]] - before[batch.indptr[:-1]]
    zeros = expressed * (share.denominator - share.numerator) // share.numerator
    return np.maximum(zeros - (batch.lengths - expressed), 0)


def _untouched(batch: CellBatch, share: float, name: str, seed: int, epoch: int) -> Array:
    """Return bool [n], which cells get no zeros."""
    draws = keyed_uniform(batch.rows, seed=seed, epoch=epoch, stream=f"{name}.untouched")
    return np.asarray(draws < share)


def _filled(batch: CellBatch, pool: Array, wanted: Array, key: np.uint64) -> CellBatch:
    """Return the batch with up to `wanted` genes of the pool added to each cell."""
    from omics.data.transforms.zero_gene_loops import fill_zero_genes

    in_pool = np.zeros(batch.num_genes, np.bool_)
    in_pool[pool] = True
    before = np.concatenate([[0], np.cumsum(in_pool[batch.genes])])
    own = before[batch.indptr[1:]] - before[batch.indptr[:-1]]
    added = np.minimum(wanted, len(pool) - own)
    indptr = batch.indptr + np.concatenate([[0], np.cumsum(added)])
    genes = np.empty(int(indptr[-1]), batch.genes.dtype)
    drawing = (batch.rows, key, pool, batch.num_genes)
    fill_zero_genes(batch.indptr, batch.genes, drawing, indptr, genes)
    moved = np.arange(len(batch.genes), dtype=np.int64)
    moved += np.repeat(indptr[:-1] - batch.indptr[:-1], batch.lengths)

    def spread(values: Array) -> Array:
        out = np.zeros(len(genes), values.dtype)
        out[moved] = values
        return out

    return replace(
        batch,
        indptr=indptr,
        genes=genes,
        counts=spread(batch.counts),
        fields={name: spread(values) for name, values in batch.fields.items()},
    )


def _fraction(share: float) -> Fraction:
    return Fraction(share).limit_denominator(1000)


def _check_amount(
    name: str, fill_to: int | None, expressed_share: float | None, untouched_share: float
) -> None:
    if (fill_to is None) == (expressed_share is None):
        raise ConfigError(f"{name} needs either fill_to or expressed_share, and not both.")
    if fill_to is not None and fill_to < 1:
        raise ConfigError(f"{name}.fill_to is {fill_to}; it must be at least 1.")
    if expressed_share is not None and not 0.001 <= expressed_share < 1:
        raise ConfigError(
            f"{name}.expressed_share is {expressed_share}; it must be at least 0.001 and below 1: "
            "the share of expressed genes."
        )
    if not 0 <= untouched_share < 1:
        raise ConfigError(
            f"{name}.untouched_share is {untouched_share}; it must be at least 0 and below 1."
        )
