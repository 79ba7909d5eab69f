"""How the rows of an epoch are cut into batches: by a number of cells or by a budget of tokens.

- A global batch is one batch for each rank, one after the other in the epoch's order. A plan can
  begin at any row, so a run goes on from the rows it has consumed with other ranks or budgets.
- All ranks make the same plan and have the same number of batches. The last global batch is shared
  out as evenly as possible: no rank goes without while another has two cells.
- A budget is filled greedily in the order of the epoch; where gaps matter, that is a `PackedOrder`.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np

from omics.data.compiled import compiled

Array = np.ndarray[Any, np.dtype[Any]]

_EDGES = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan:
    """The batches of the rest of an epoch; 8 bytes each.

    Attributes:
        edges: int64 [batches * world_size + 1], where the batches of all ranks begin and end.
        world_size: how many ranks share the epoch.
        num_rows: of the whole epoch.
    """

    edges: Array
    world_size: int
    num_rows: int

    def __len__(self) -> int:
        """Return the number of global batches."""
        return (len(self.edges) - 1) // self.world_size

    def share(self, index: int, rank: int) -> tuple[int, int]:
        """Return where the batch of a rank begins and ends in the order of the epoch.

        Args:
            index: of the global batch.
            rank: of the process.
        """
        first = index * self.world_size + rank
        return int(self.edges[first]), int(self.edges[first + 1])

    def position_after(self, index: int) -> int:
        """Return how many rows are consumed once a global batch is handed out.

        Args:
            index: of the global batch; after the last one, rows that are dropped count as well.
        """
        if index + 1 == len(self):
            return self.num_rows
        return int(self.edges[(index + 1) * self.world_size])


def plan_cells(
    num_rows: int, batch_size: int, *, begin: int, world_size: int, drop_last: bool
) -> BatchPlan:
    """Cut the rest of an epoch into batches of a number of cells.

    Args:
        num_rows: of the epoch.
        batch_size: cells per batch and rank.
        begin: rows that are consumed already.
        world_size: how many ranks share the epoch.
        drop_last: leave out the last global batch when it is not full.
    """
    full, left = divmod(num_rows - begin, batch_size * world_size)
    edges = begin + np.arange(full * world_size + 1, dtype=np.int64) * batch_size
    if left and not drop_last:
        shares = left * np.arange(1, world_size + 1, dtype=np.int64) // world_size
        edges = np.concatenate([edges, edges[-1] + shares])
    return BatchPlan(edges, world_size, num_rows)


@dataclass(frozen=True, slots=True, eq=False)
class TokenBudget:
    """A budget of tokens per batch and rank, over cells of known lengths.

    Args:
        lengths: int [cells of the store], entries of each cell.

    Attributes:
        batch_tokens: that a batch may hold; a cell with more is a batch of its own.
        max_cell_tokens: what one cell counts for at most; it counts for at least 1.
        special_tokens: that each cell has beside those of its entries.
        kept_share: of the entries, on average, where random transforms leave some out.
        sizes: int32 [cells of the store], tokens that each cell counts for.
    """

    lengths: InitVar[Array]
    batch_tokens: int
    max_cell_tokens: int
    special_tokens: int = 0
    kept_share: float = 1.0
    sizes: Array = field(init=False)

    def __post_init__(self, lengths: Array) -> None:
        """Compute the sizes of all cells once."""
        sizes = lengths if self.kept_share == 1 else np.ceil(lengths * self.kept_share)
        sizes = np.clip(sizes + self.special_tokens, 1, self.max_cell_tokens).astype(np.int32)
        object.__setattr__(self, "sizes", sizes)

    def plan(self, order: Array, *, begin: int, world_size: int, drop_last: bool) -> BatchPlan:
        """Cut the rest of an epoch into batches within the budget.

        Args:
            order: int64 [n], the rows of the epoch.
            begin: rows that are consumed already.
            world_size: how many ranks share the epoch.
            drop_last: leave out the last global batch unless every rank's is full: ended because
                the next cell did not fit, or filled to the budget.
        """
        edges = self._filled(order, begin)
        full, left = divmod(len(edges) - 1, world_size)
        if drop_last:
            if left == 0 and full and not self._is_full(order[edges[-2] : edges[-1]]):
                full -= 1
            edges = edges[: full * world_size + 1]
        elif left:
            first = int(edges[full * world_size])
            shared = self._shared_out(order[first:], world_size)
            edges = np.concatenate([edges[: full * world_size + 1], first + shared])
        return BatchPlan(edges, world_size, len(order))

    def _filled(self, order: Array, begin: int) -> Array:
        """Return int64 edges of greedy batches from `begin` to the end of the order."""
        parts = [np.array([begin], np.int64)]
        position = begin
        while position < len(order):
            ends = np.empty(_EDGES, np.int64)
            found = compiled(_fill)(order, self.sizes, position, self.batch_tokens, ends)
            parts.append(ends[:found])
            position = int(ends[found - 1])
        return np.concatenate(parts)

    def _is_full(self, rows: Array) -> bool:
        return int(self.sizes[rows].sum()) >= self.batch_tokens

    def _shared_out(self, rows: Array, world_size: int) -> Array:
        """Return int64 [world_size] ends of shares whose largest is as small as can be."""
        sums = np.cumsum(self.sizes[rows], dtype=np.int64)
        high = self.batch_tokens
        low = min(-(-int(sums[-1]) // world_size), high)
        while low < high:
            middle = (low + high) // 2
            if _shares(sums, middle, world_size)[-1] == len(rows):
                high = middle
            else:
                low = middle + 1
        return _shares(sums, low, world_size)


def _shares(sums: Array, budget: int, world_size: int) -> Array:
    """Return int64 [world_size] ends of greedy shares that leave each later rank a cell."""
    ends = np.empty(world_size, np.int64)
    end = 0
    for rank in range(world_size):
        before = int(sums[end - 1]) if end else 0
        fitting = int(np.searchsorted(sums, before + budget, side="right"))
        # One cell at least, and one left for each rank to come.
        wanted = max(fitting, end + 1)
        end = max(min(wanted, len(sums) - (world_size - 1 - rank)), min(end + 1, len(sums)))
        ends[rank] = end
    return ends


def _fill(order: Array, sizes: Array, begin: int, budget: int, ends: Array) -> int:
    found = 0
    held = 0
    for position in range(begin, order.size):
        size = sizes[order[position]]
        if held > 0 and held + size > budget:
            ends[found] = position
            found += 1
            if found == ends.size:
                return found
            held = 0
        held += size
    ends[found] = order.size
    return found + 1
