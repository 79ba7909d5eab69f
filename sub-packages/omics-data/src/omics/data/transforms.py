"""Transforms: what happens to the counts of a cell before the tokenizer, batch in, batch out.

- A transform is a frozen record with a name; `to_dict` and `transform_from_dict` carry it through
  a bundle, so that inference repeats what training did.
- What it does to a cell depends on (seed, epoch, cell) and the cell alone, never on its batch.
- Work is done on flat arrays; there is no Python object per cell.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from omics.data.errors import ConfigError, nearest
from omics.data.gather import mark_top
from omics.data.keyed_random import keyed_uniform
from omics.data.row_statistics import sums_by_cell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omics.data.cell_batch import CellBatch

    Array = np.ndarray[Any, np.dtype[Any]]


class Transform(Protocol):
    """What every transform offers.

    Attributes:
        name: under which it is registered.
        training_only: whether it is left out of inference.
    """

    name: ClassVar[str]
    training_only: ClassVar[bool]

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the transformed batch.

        Args:
            batch: cells, left unchanged.
            seed: of the run.
            epoch: of the pass over the data.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON."""
        ...


class _Parameters:
    """Turns a transform's parameters into a dictionary."""

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class LogNormalize(_Parameters):
    """Adds the field log(1 + count * target_sum / total count of the cell), float32.

    Attributes:
        target_sum: what every cell's counts are scaled to sum to, before the logarithm.
        field_name: of the field that is added.
    """

    name: ClassVar[str] = "log_normalize"
    training_only: ClassVar[bool] = False

    target_sum: float = 1e4
    field_name: str = "expression"

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not (math.isfinite(self.target_sum) and self.target_sum > 0):
            raise ConfigError(f"target_sum is {self.target_sum}; it must be a positive number.")

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with the field; see `Transform`."""
        totals = sums_by_cell(batch.indptr, batch.counts).astype(np.float64)
        scale = np.divide(self.target_sum, totals, out=np.zeros_like(totals), where=totals != 0)
        values = np.repeat(scale.astype(np.float32), batch.lengths)
        values *= batch.counts
        return batch.with_field(self.field_name, np.log1p(values, out=values))


@dataclass(frozen=True, slots=True)
class TopGenes(_Parameters):
    """Keeps the genes with the highest counts of each cell, in the order of genes.

    Of equal counts, the gene with the lower position is kept.

    Attributes:
        max_genes: how many genes a cell may keep.
    """

    name: ClassVar[str] = "top_genes"
    training_only: ClassVar[bool] = False

    max_genes: int

    def __post_init__(self) -> None:
        """Check the parameters."""
        if self.max_genes < 1:
            raise ConfigError(f"max_genes is {self.max_genes}; it must be at least 1.")

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with fewer entries; see `Transform`."""
        if len(batch) == 0 or int(batch.lengths.max()) <= self.max_genes:
            return batch
        return batch.keep_entries(mark_top(batch.indptr, batch.counts, self.max_genes))


@dataclass(frozen=True, slots=True)
class SampleGenes(_Parameters):
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

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with fewer entries; see `Transform`."""
        cell_of_entry = batch.cell_of_entry()
        shares = keyed_uniform(batch.rows, seed=seed, epoch=epoch, stream="sample_genes.share")
        shares = self.keep_low + (self.keep_high - self.keep_low) * shares
        draws = keyed_uniform(
            batch.rows[cell_of_entry],
            batch.genes,
            seed=seed,
            epoch=epoch,
            stream="sample_genes.entry",
        )
        keep = draws < shares[cell_of_entry]
        _keep_lowest_draw(batch.indptr, draws, keep)
        sampled = batch.keep_entries(keep)
        if self.keep_targets and batch.targets is None:
            return sampled.with_targets(batch)
        return sampled


TRANSFORMS: dict[str, type[Any]] = {
    each.name: each for each in (LogNormalize, SampleGenes, TopGenes)
}


def transform_from_dict(record: Mapping[str, Any]) -> Transform:
    """Return the transform that `to_dict` described.

    Args:
        record: its name and parameters.

    Raises:
        ConfigError: an unknown name or parameter, a missing one, or a value of another type.
    """
    parameters = dict(record)
    name = parameters.pop("name", None)
    if not isinstance(name, str) or name not in TRANSFORMS:
        raise ConfigError(f"There is no transform {name!r}.{nearest(str(name), list(TRANSFORMS))}")
    kind = TRANSFORMS[name]
    known = {field.name: field for field in fields(kind)}
    for key, value in parameters.items():
        if key not in known:
            raise ConfigError(f"{name} has no parameter {key!r}.{nearest(key, list(known))}")
        parameters[key] = _typed(value, str(known[key].type), f"{name}.{key}")
    try:
        transform: Transform = kind(**parameters)
    except TypeError:
        missing = sorted(set(known) - set(parameters))
        raise ConfigError(f"{name} needs a value for {' and '.join(missing)}.") from None
    return transform


def apply_transforms(
    batch: CellBatch, transforms: Sequence[Transform], *, seed: int, epoch: int, training: bool
) -> CellBatch:
    """Return the batch after all transforms, in order.

    Args:
        batch: cells, left unchanged.
        transforms: to apply.
        seed: of the run.
        epoch: of the pass over the data.
        training: whether those for training only are applied too.
    """
    for transform in transforms:
        if training or not transform.training_only:
            batch = transform(batch, seed=seed, epoch=epoch)
    return batch


def check_transforms(transforms: Sequence[Transform]) -> None:
    """Refuse transforms that do not fit each other.

    Args:
        transforms: in the order in which they would be applied.

    Raises:
        ConfigError: two normalisations, or a normalisation after genes were left out (the total
            of a cell would be that of the genes left in).
    """
    names = [transform.name for transform in transforms]
    if names.count(LogNormalize.name) > 1:
        raise ConfigError("log_normalize is given twice. Keep one of them.")
    if LogNormalize.name in names:
        before = names[: names.index(LogNormalize.name)]
        dropping = [name for name in before if name in {SampleGenes.name, TopGenes.name}]
        if dropping:
            raise ConfigError(
                f"{dropping[0]} comes before log_normalize, which would then divide by the total "
                "of the remaining genes. Put log_normalize first."
            )


def _keep_lowest_draw(indptr: Array, draws: Array, keep: Array) -> None:
    """Make cells that would lose all their entries keep the one with the smallest draw."""
    filled = np.flatnonzero(indptr[1:] > indptr[:-1])
    if len(filled) == 0:
        return
    begins = indptr[:-1][filled]
    for cell in filled[~np.logical_or.reduceat(keep, begins)]:
        begin, end = indptr[cell], indptr[cell + 1]
        keep[begin + np.argmin(draws[begin:end])] = True


def _typed(value: object, annotation: str, where: str) -> object:
    """Return a parameter's value if it has the annotated type; whole numbers pass as floats."""
    if annotation == "float" and type(value) is int:
        return float(value)
    if type(value).__name__ != annotation:
        raise ConfigError(f"{where} is {value!r}; it must be of type {annotation}.")
    return value
