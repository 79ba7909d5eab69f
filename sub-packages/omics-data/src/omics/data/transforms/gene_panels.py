"""Transforms with a fixed list of genes: keep only those, or take them away.

- Genes are given by id or by symbol, and looked up in the store's gene table, in whichever way more
  of them are found; never by both, which would be guessing. Genes that a store does not have are
  passed over; a list of which it has none is an error, because ids of another kind were meant.
- The full cell in `targets`, where there is one, is left as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from omics.data.errors import ConfigError
from omics.data.transforms.transform_registry import (
    LIMITS,
    MASKS,
    GeneTransform,
    check_choice,
    register,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from omics.data.cell_batch import CellBatch
    from omics.data.genes import GeneTable

    Array = np.ndarray[Any, np.dtype[Any]]


@register
@dataclass(frozen=True, slots=True)
class GenePanel(GeneTransform):
    """Keeps the genes of a panel and leaves out all others.

    It may come before a normalisation, which then divides by the total of the panel.

    Attributes:
        genes: ids or symbols of the genes to keep.
    """

    name: ClassVar[str] = "gene_panel"
    training_only: ClassVar[bool] = False

    genes: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        """Check the parameters."""
        object.__setattr__(self, "genes", checked_genes(self.genes, "gene_panel.genes"))

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({LIMITS})

    def resolve(self, genes: GeneTable) -> Array:
        """Return bool [genes], which genes are kept."""
        return mark_genes(self.genes, genes, self.name)

    def apply(self, batch: CellBatch, resolved: Array, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with fewer entries; see `Transform`."""
        return batch.keep_entries(resolved[batch.genes])


@register
@dataclass(frozen=True, slots=True)
class MaskGenes(GeneTransform):
    """Takes genes away from all cells: as if they were not measured, or not expressed.

    Attributes:
        genes: ids or symbols of the genes to take away.
        how: `remove` their entries, or `zero` their count and all their fields.
    """

    name: ClassVar[str] = "mask_genes"
    training_only: ClassVar[bool] = False

    genes: tuple[str, ...] = field(repr=False)
    how: str = "remove"

    def __post_init__(self) -> None:
        """Check the parameters."""
        object.__setattr__(self, "genes", checked_genes(self.genes, "mask_genes.genes"))
        check_choice(self.how, ("remove", "zero"), f"{self.name}.how")

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({MASKS}) if self.how == "remove" else frozenset()

    def resolve(self, genes: GeneTable) -> Array:
        """Return bool [genes], which genes are taken away."""
        return mark_genes(self.genes, genes, self.name)

    def apply(self, batch: CellBatch, resolved: Array, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch without them; see `Transform`."""
        masked = resolved[batch.genes]
        if self.how == "remove":
            return batch.keep_entries(~masked)
        return replace(
            batch,
            counts=_zeroed(batch.counts, masked),
            fields={name: _zeroed(values, masked) for name, values in batch.fields.items()},
        )


def checked_genes(genes: Iterable[str], where: str) -> tuple[str, ...]:
    """Return gene ids as a tuple.

    Args:
        genes: ids.
        where: transform and parameter, for the message.

    Raises:
        ConfigError: there are none, or what was given is one string.
    """
    if isinstance(genes, str):
        raise ConfigError(f"{where} is {genes!r}; it must be a list of gene ids.")
    given = tuple(str(each) for each in genes)
    if not given:
        raise ConfigError(f"{where} is empty: give the ids of at least one gene.")
    return given


def mark_genes(wanted: tuple[str, ...], genes: GeneTable, name: str) -> Array:
    """Return bool [genes], which of the genes are wanted.

    Args:
        wanted: gene ids, or symbols; a symbol that several genes have marks none of them.
        genes: the gene table of the cells.
        name: of the transform, for the message.

    Raises:
        ConfigError: the table holds none of them.
    """
    positions = genes.positions(wanted)
    if (positions < 0).any():
        by_symbol = _symbol_positions(wanted, genes)
        if (by_symbol >= 0).sum() > (positions >= 0).sum():
            positions = by_symbol
    positions = positions[positions >= 0]
    if len(positions) == 0:
        example = str(genes.ids[0]) if len(genes) else None
        raise ConfigError(
            f"None of the {len(wanted)} genes of {name} (such as {wanted[0]!r}) is among the "
            f"{len(genes)} genes of the cells (such as {example!r}). Use the same kind of gene ids."
        )
    marked = np.zeros(len(genes), np.bool_)
    marked[positions] = True
    return marked


def _symbol_positions(wanted: tuple[str, ...], genes: GeneTable) -> Array:
    symbols = genes.symbols.tolist()
    times = Counter(symbols)
    place = {name: index for index, name in enumerate(symbols) if times[name] == 1}
    return np.array([place.get(name, -1) for name in wanted], np.int64)


def _zeroed(values: Array, masked: Array) -> Array:
    return np.where(masked, values.dtype.type(0), values)
