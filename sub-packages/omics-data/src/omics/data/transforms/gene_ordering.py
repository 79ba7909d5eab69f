"""Transforms that put the entries of each cell in another order.

- A batch comes from a store with genes ascending; after an ordering they are not.
- Orders are random per (seed, epoch, cell), or a function of the cell alone; equal keys keep the
  order they have, which as stored is that of genes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from omics.data.errors import ConfigError, nearest
from omics.data.keyed_random import stream_key
from omics.data.transforms.entry_values import (
    COUNTS,
    entry_values,
    order_keys,
    take_entries,
)
from omics.data.transforms.transform_registry import (
    ORDERS,
    READS_COUNTS,
    REPEATS,
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
class RandomOrder(TransformRecord):
    """Puts the genes of each cell in a random order, another one each epoch.

    Attributes:
        training_only: leave it out of inference.
    """

    name: ClassVar[str] = "random_order"

    training_only: bool = False

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({ORDERS})

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch in another order; see `Transform`."""
        key = stream_key(seed=seed, epoch=epoch, stream="random_order")
        return take_entries(batch, batch.indptr, _ordered(batch, _draws(batch, batch.genes, key)))


@register
@dataclass(frozen=True, slots=True)
class ExpressionOrder(TransformRecord):
    """Puts the genes of each cell in the order of their expression, highest first.

    Of equal values, the lower gene comes first.

    Attributes:
        source: `counts`, or the field to order by.
    """

    name: ClassVar[str] = "expression_order"
    training_only: ClassVar[bool] = False

    source: str = COUNTS

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({ORDERS, READS_COUNTS} if self.source == COUNTS else {ORDERS})

    def fields_read(self) -> tuple[str, ...]:
        """Return the field that it orders by."""
        return () if self.source == COUNTS else (self.source,)

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch in another order; see `Transform`."""
        keys = ~order_keys(entry_values(batch, self.source))
        return take_entries(batch, batch.indptr, _ordered(batch, keys))


@register
@dataclass(frozen=True, slots=True)
class GenePropertyOrder(GeneTransform):
    """Puts the genes of each cell in the order of a number that each gene has.

    Genes without a number come last. Exactly one of `values` and `column` is given.

    Attributes:
        values: gene id to number (length, position on a list).
        column: a column of numbers of the store's gene table. Every store that the transform is
            used on must have it; `values` travels with a bundle.
        descending: highest first.
    """

    name: ClassVar[str] = "gene_property_order"
    training_only: ClassVar[bool] = False

    values: dict[str, float] | None = field(default=None, hash=False, repr=False)
    column: str | None = None
    descending: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        if (self.values is None) == (self.column is None):
            raise ConfigError("gene_property_order needs either values or column, and not both.")
        if self.values is not None:
            object.__setattr__(self, "values", dict(self.values))

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({ORDERS})

    def resolve(self, genes: GeneTable) -> Array:
        """Return uint32 [genes], the place of each gene among all."""
        numbers = _numbers(self.values, self.column, genes, self.name)
        if self.descending:
            numbers = -numbers
        return _ranks((numbers,))

    def apply(self, batch: CellBatch, resolved: Array, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch in another order; see `Transform`."""
        return take_entries(batch, batch.indptr, _ordered(batch, resolved[batch.genes]))


@register
@dataclass(frozen=True, slots=True)
class ChromosomeOrder(GeneTransform):
    """Puts the genes of each cell together by chromosome, by start inside each chromosome.

    The chromosomes come in a random order, another one for each cell and epoch. Genes without a
    chromosome stand together like those of one chromosome; a gene without a start comes last in
    its chromosome. Chromosomes and starts are each given as a table or as a column.

    Attributes:
        chromosomes: gene id to chromosome.
        starts: gene id to start.
        chromosome_column: a column of the store's gene table, in place of `chromosomes`.
        start_column: a column of numbers of the store's gene table, in place of `starts`.
        sample: None keeps the entries; a number draws as many from each cell first, with
            replacement, in proportion to log1p(count) (Universal Cell Embeddings, Rosen et al.
            2023). A cell without counts stays empty.
    """

    name: ClassVar[str] = "chromosome_order"
    training_only: ClassVar[bool] = False

    chromosomes: dict[str, str] | None = field(default=None, hash=False, repr=False)
    starts: dict[str, float] | None = field(default=None, hash=False, repr=False)
    chromosome_column: str | None = None
    start_column: str | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        """Check the parameters."""
        if (self.chromosomes is None) == (self.chromosome_column is None):
            raise ConfigError(
                "chromosome_order needs either chromosomes or chromosome_column, and not both."
            )
        if (self.starts is None) == (self.start_column is None):
            raise ConfigError("chromosome_order needs either starts or start_column, and not both.")
        if self.sample is not None and self.sample < 1:
            raise ConfigError(f"sample is {self.sample}; it must be at least 1.")
        if self.chromosomes is not None:
            object.__setattr__(self, "chromosomes", dict(self.chromosomes))
        if self.starts is not None:
            object.__setattr__(self, "starts", dict(self.starts))

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({ORDERS} if self.sample is None else {ORDERS, REPEATS, READS_COUNTS})

    def resolve(self, genes: GeneTable) -> tuple[Array, Array]:
        """Return uint32 [genes] twice: the chromosome's number, the place among all genes."""
        names = _names(self.chromosomes, self.chromosome_column, genes, self.name)
        starts = _numbers(self.starts, self.start_column, genes, self.name)
        chromosome = np.unique(names, return_inverse=True)[1].astype(np.uint32)
        return chromosome, _ranks((starts, chromosome))

    def apply(
        self, batch: CellBatch, resolved: tuple[Array, Array], *, seed: int, epoch: int
    ) -> CellBatch:
        """Return the batch in another order; see `Transform`."""
        chromosome, place = resolved
        if self.sample is not None:
            key = stream_key(seed=seed, epoch=epoch, stream="chromosome_order.sample")
            batch = _sampled(batch, self.sample, key)
        by_place = take_entries(batch, batch.indptr, _ordered(batch, place[batch.genes]))
        # The second sort is stable: it moves chromosomes as they stand. Two that draw the same
        # 32 bits stay one after the other, because the first sort has put them so.
        key = stream_key(seed=seed, epoch=epoch, stream="chromosome_order")
        draws = _draws(by_place, chromosome[by_place.genes], key)
        return take_entries(by_place, by_place.indptr, _ordered(by_place, draws))


def _ordered(batch: CellBatch, keys: Array) -> Array:
    """Return int64 [nnz], the positions of the entries of each cell by ascending keys."""
    from omics.data.transforms.ordering_loops import order_rows

    order = np.empty(len(keys), np.int64)
    order_rows(batch.indptr, keys, order)
    return order


def _draws(batch: CellBatch, entries: Array, key: np.uint64) -> Array:
    """Return uint32 [nnz], random bits for what tells a cell's entries apart."""
    from omics.data.transforms.ordering_loops import fill_draws

    draws = np.empty(len(entries), np.uint32)
    fill_draws(batch.indptr, entries, batch.rows, key, draws)
    return draws


def _sampled(batch: CellBatch, size: int, key: np.uint64) -> CellBatch:
    """Return the batch with entries drawn in proportion to log1p(count)."""
    from omics.data.transforms.ordering_loops import sample_rows

    weights = np.log1p(np.maximum(entry_values(batch, COUNTS), 0).astype(np.float64))
    has_weight = np.concatenate([[0], np.cumsum(weights > 0)])
    filled = has_weight[batch.indptr[1:]] > has_weight[batch.indptr[:-1]]
    indptr = np.concatenate([[0], np.cumsum(np.where(filled, size, 0))]).astype(np.int64)
    taken = np.empty(int(indptr[-1]), np.int64)
    sample_rows(batch.indptr, weights, batch.rows, key, (indptr, taken))
    return take_entries(batch, indptr, taken)


def _numbers(
    values: dict[str, float] | None, column: str | None, genes: GeneTable, name: str
) -> Array:
    """Return float64 [genes], a number for each gene, NaN where there is none."""
    if values is None:
        given = _column(genes, column, name)
        try:
            return np.array(given, np.float64)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{name} orders by the gene column {column!r}, which does not hold numbers "
                f"(such as {given[0]!r}). Name a column of numbers."
            ) from None
    return np.array([values.get(gene, math.nan) for gene in genes.ids.tolist()], np.float64)


def _names(values: dict[str, str] | None, column: str | None, genes: GeneTable, name: str) -> Array:
    """Return strings [genes], a name for each gene, empty where there is none."""
    if values is None:
        given = [each if isinstance(each, str) else "" for each in _column(genes, column, name)]
        return np.array(given, np.str_)
    return np.array([values.get(gene, "") for gene in genes.ids.tolist()], np.str_)


def _column(genes: GeneTable, column: str | None, name: str) -> list[Any]:
    if column not in genes.columns:
        raise ConfigError(
            f"{name} orders by the gene column {column!r}, which the store does not have."
            f"{nearest(str(column), sorted(genes.columns))}"
        )
    values: list[Any] = np.asarray(genes.columns[column]).tolist()
    return values


def _ranks(keys: tuple[Array, ...]) -> Array:
    """Return uint32 [n], places in the order of several keys, the last counting most.

    NaN sorts last and equal keys keep their order, both as `numpy.lexsort` has them.
    """
    order = np.lexsort(keys)
    ranks = np.empty(len(order), np.uint32)
    ranks[order] = np.arange(len(order), dtype=np.uint32)
    return ranks
