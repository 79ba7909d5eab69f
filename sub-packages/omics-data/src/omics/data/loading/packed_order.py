"""`PackedOrder`: another order, changed within a window so that batches of a token budget are full.

- Filling a budget in the order of the epoch leaves half a cell empty in every batch: nothing where a
  batch holds hundreds of cells, a tenth where it holds seven.
- A batch takes the cells that have waited longest until the next does not fit. The gap is closed
  with cells of the window: the largest that fits, or the pair that fits best in place of the last.
- Greedy filling of the new order finds the same batches again, from any batch on: a run that goes on
  in the middle of an epoch, on other ranks, needs to know nothing but the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omics.data.errors import ConfigError
from omics.data.loading.row_order import EpochRows, RowOrder

if TYPE_CHECKING:
    from omics.data.loading.batch_plan import TokenBudget
    from omics.data.loading.cell_reader import CellRows

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class PackedOrder(RowOrder):
    """An order whose cells fill batches of a budget.

    Attributes:
        inner: the order that is changed; a cell stays about where it puts it.
        budget: of a batch.
        window: how many waiting cells are looked at.
    """

    name: ClassVar[str] = "packed"

    inner: RowOrder
    budget: TokenBudget
    window: int

    def __post_init__(self) -> None:
        """Check the window."""
        if self.window < 2:
            raise ConfigError(f"pack_window is {self.window}; it must be at least 2 cells.")

    def bind(self, cells: CellRows, rows: Array | None) -> EpochRows:
        """Join the order with cells; see `RowOrder.bind`."""
        inner = self.inner.bind(cells, rows)
        return EpochRows(len(inner), partial(self._draw, inner))

    def to_dict(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON; see `RowOrder.to_dict`."""
        budget = self.budget
        return {
            "name": self.name,
            "inner": self.inner.to_dict(),
            "batch_tokens": budget.batch_tokens,
            "max_cell_tokens": budget.max_cell_tokens,
            "special_tokens": budget.special_tokens,
            "kept_share": budget.kept_share,
            "window": self.window,
        }

    def _draw(self, inner: EpochRows, seed: int, epoch: int) -> Array:
        from omics.data.loading.packing_loops import pack_rows

        order = inner.epoch(seed, epoch)
        packed = np.empty(len(order), np.int64)
        pack_rows(order, self.budget.sizes, self.budget.batch_tokens, self.window, packed)
        return packed
