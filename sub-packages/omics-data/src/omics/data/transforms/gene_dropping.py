"""Transforms that leave out genes of a cell: by chance, by their counts, or all but the first.

- None of them changes the order of the entries that stay, whatever it is.
- A cell that has genes keeps at least one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from omics.data.errors import ConfigError
from omics.data.keyed_random import keyed_uniform, stream_key
from omics.data.storage.gather import mark_top
from omics.data.transforms.transform_registry import (
    DROPS,
    PICKS_TOP,
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
class TopGenes(TransformRecord):
    """Keeps the genes with the highest counts of each cell, in the order they have.

    Of equal counts, the earlier entry is kept: the gene with the lower position, as stored.

    Attributes:
        max_genes: how many genes a cell may keep.
    """

    name: ClassVar[str] = "top_genes"
    training_only: ClassVar[bool] = False

    max_genes: int

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_max_genes(self.max_genes)

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({DROPS, PICKS_TOP})

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with fewer entries; see `Transform`."""
        if len(batch) == 0 or int(batch.lengths.max()) <= self.max_genes:
            return batch
        return batch.keep_entries(mark_top(batch.indptr, batch.counts, self.max_genes))


@register
@dataclass(frozen=True, slots=True)
class FirstGenes(TransformRecord):
    """Keeps the first entries of each cell, in the order that an ordering gave them.

    After `random_order` this is a random choice of genes without replacement.

    Attributes:
        max_genes: how many genes a cell may keep.
        training_only: leave it out of inference.
    """

    name: ClassVar[str] = "first_genes"

    max_genes: int
    training_only: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_max_genes(self.max_genes)

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({DROPS})

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with fewer entries; see `Transform`."""
        if len(batch) == 0 or int(batch.lengths.max()) <= self.max_genes:
            return batch
        return batch.keep_entries(_position_in_cell(batch) < self.max_genes)


@register
@dataclass(frozen=True, slots=True)
class SampleGenes(TransformRecord):
    """Keeps a random share of each cell's genes, for training.

    A cell draws its share uniformly from [keep_low, keep_high], then keeps each gene with that
    probability. A cell that has genes keeps at least one.

    Attributes:
        keep_low: the lowest share, from 0 to 1.
        keep_high: the highest share, from keep_low to 1.
        keep_targets: put the batch before sampling in `targets`, unless it has targets already.
    """

    name: ClassVar[str] = "sample_genes"
    training_only: ClassVar[bool] = True

    keep_low: float
    keep_high: float
    keep_targets: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 <= self.keep_low <= self.keep_high <= 1:
            raise ConfigError(
                f"keep_low is {self.keep_low} and keep_high {self.keep_high}; they must satisfy "
                "0 <= keep_low <= keep_high <= 1."
            )

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({DROPS})

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with fewer entries; see `Transform`."""
        from omics.data.transforms.dropping_loops import mark_by_cell

        shares = keyed_uniform(batch.rows, seed=seed, epoch=epoch, stream="sample_genes.share")
        shares = self.keep_low + (self.keep_high - self.keep_low) * shares
        key = stream_key(seed=seed, epoch=epoch, stream="sample_genes.entry")
        keep = np.empty(len(batch.genes), np.bool_)
        mark_by_cell((batch.indptr, batch.genes), batch.rows, key, _limits(shares), keep)
        sampled = batch.keep_entries(keep)
        if self.keep_targets and batch.targets is None:
            return sampled.with_targets(batch)
        return sampled


@register
@dataclass(frozen=True, slots=True)
class Dropout(TransformRecord):
    """Leaves out each gene of a cell with the same probability, for training.

    Attributes:
        drop_share: the probability, from 0 to below 1.
    """

    name: ClassVar[str] = "dropout"
    training_only: ClassVar[bool] = True

    drop_share: float

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_drop_share(self.drop_share)

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({DROPS})

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with fewer entries; see `Transform`."""
        from omics.data.transforms.dropping_loops import mark_by_cell

        key = stream_key(seed=seed, epoch=epoch, stream="dropout")
        keep = np.empty(len(batch.genes), np.bool_)
        limits = _limits(np.full(len(batch), 1 - self.drop_share))
        mark_by_cell((batch.indptr, batch.genes), batch.rows, key, limits, keep)
        return batch.keep_entries(keep)


@register
@dataclass(frozen=True, slots=True)
class ChunkDropout(TransformRecord):
    """Leaves out one run of neighbouring entries of each cell, for training.

    The length of the run is uniform on the whole numbers from `min_genes` to `max_genes`, at most
    one less than the cell has; its place is uniform among those that it fits in. Neighbours are
    those of the present order: put it after an ordering to drop neighbours of that order.

    Attributes:
        min_genes: the shortest run, at least 0.
        max_genes: the longest run.
    """

    name: ClassVar[str] = "chunk_dropout"
    training_only: ClassVar[bool] = True

    min_genes: int
    max_genes: int

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 0 <= self.min_genes <= self.max_genes or self.max_genes < 1:
            raise ConfigError(
                f"min_genes is {self.min_genes} and max_genes {self.max_genes}; they must satisfy "
                "0 <= min_genes <= max_genes and max_genes >= 1."
            )

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({DROPS})

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with fewer entries; see `Transform`."""
        length_draw, start_draw = (
            keyed_uniform(batch.rows, seed=seed, epoch=epoch, stream=f"chunk_dropout.{part}")
            for part in ("length", "start")
        )
        span = self.max_genes - self.min_genes + 1
        lengths = self.min_genes + np.floor(length_draw * span).astype(np.int64)
        lengths = np.minimum(lengths, np.maximum(batch.lengths - 1, 0))
        starts = np.floor(start_draw * (batch.lengths - lengths + 1)).astype(np.int64)
        position = _position_in_cell(batch)
        cell = batch.cell_of_entry()
        inside = (position >= starts[cell]) & (position < (starts + lengths)[cell])
        return batch.keep_entries(~inside)


@register
@dataclass(frozen=True, slots=True)
class SelectiveDropout(GeneTransform):
    """Leaves out genes with probabilities of their own, for training.

    A gene of weight w is dropped with probability f r / (1 + f (r - 1)), where f is `drop_share`
    and r is w over the mean of all `weights`: with r = 1 that is f, with r = 0 never, and the odds
    grow in proportion to the weight. Genes without a weight have r = 1.

    Attributes:
        weights: gene id to weight, not negative, not all zero.
        drop_share: f, from 0 to below 1.
    """

    name: ClassVar[str] = "selective_dropout"
    training_only: ClassVar[bool] = True

    weights: dict[str, float] = field(hash=False, repr=False)
    drop_share: float

    def __post_init__(self) -> None:
        """Check the parameters."""
        _check_drop_share(self.drop_share)
        for gene, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"The weight of {gene!r} is {weight}; it must not be negative.")
        if not sum(self.weights.values()) > 0:
            raise ConfigError("weights is empty or all zero: give genes a positive weight.")
        object.__setattr__(self, "weights", dict(self.weights))

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({DROPS})

    def resolve(self, genes: GeneTable) -> Array:
        """Return uint64 [genes], the limits below which a draw keeps a gene."""
        weights = np.array(list(self.weights.values()))
        positions = genes.positions(self.weights)
        relative = np.ones(len(genes))
        relative[positions[positions >= 0]] = (weights / weights.mean())[positions >= 0]
        dropped = self.drop_share * relative / (1 + self.drop_share * (relative - 1))
        return _limits(1 - dropped)

    def apply(self, batch: CellBatch, resolved: Array, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with fewer entries; see `Transform`."""
        from omics.data.transforms.dropping_loops import mark_by_gene

        key = stream_key(seed=seed, epoch=epoch, stream="selective_dropout")
        keep = np.empty(len(batch.genes), np.bool_)
        mark_by_gene((batch.indptr, batch.genes), batch.rows, key, resolved, keep)
        return batch.keep_entries(keep)


def _position_in_cell(batch: CellBatch) -> Array:
    """Return int64 [nnz], how many entries of the cell come before each."""
    everything = np.arange(len(batch.genes), dtype=np.int64)
    return everything - np.repeat(batch.indptr[:-1], batch.lengths)


def _limits(shares: Array) -> Array:
    """Return probabilities as uint64 limits for draws of 53 bits."""
    return np.ceil(shares * 2.0**53).astype(np.uint64)


def _check_max_genes(max_genes: int) -> None:
    if max_genes < 1:
        raise ConfigError(f"max_genes is {max_genes}; it must be at least 1.")


def _check_drop_share(drop_share: float) -> None:
    if not 0 <= drop_share < 1:
        raise ConfigError(f"drop_share is {drop_share}; it must be at least 0 and below 1.")
