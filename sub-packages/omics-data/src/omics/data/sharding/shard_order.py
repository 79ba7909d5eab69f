"""`ShardOrder`: which cells of which blocks make up every batch, a pure function of (seed, epoch).

- An epoch puts the blocks in a random order; one after the other they make a sequence of cells,
  cut into windows. In a window every rank (lane) gets a run of neighbouring cells, so it fetches
  few blocks that others fetch too, and shuffles them in memory.
- Every cell is in exactly one batch of one rank. All ranks have the same number of batches; their
  sizes differ by one cell where a window does not divide evenly.
- The cut into lanes is kept when a run goes on with fewer or more ranks: a rank then serves several
  lanes, and the batches of all ranks together stay what they were.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class ShardOrder:
    """The order of the cells of a set of shards over epochs.

    Args:
        block_cells: int64 [blocks], cells of each block.
        lanes: how many ranks the windows are cut for.
        global_batch: cells of a batch over all ranks; a multiple of `lanes`.
        window_cells: cells that all ranks together hold and shuffle; rounded up to whole batches.
        shuffle: a new random order each epoch, instead of as written.
        seed: of the shuffling.
    """

    def __init__(
        self,
        block_cells: Array,
        *,
        lanes: int,
        global_batch: int,
        window_cells: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        self.block_cells = block_cells
        self.lanes = lanes
        self.global_batch = global_batch
        self.batches_per_window = max(-(-window_cells // global_batch), 1)
        self.window_cells = self.batches_per_window * global_batch
        self.shuffle = shuffle
        self.seed = seed
        self.num_cells = int(block_cells.sum())

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return (self.num_cells + self.global_batch - 1) // self.global_batch

    def _random(self, *keys: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *keys])))

    def blocks(self, epoch: int) -> tuple[Array, Array]:
        """Return the order of the blocks, and where each begins in the sequence of cells.

        Args:
            epoch: not negative.

        Returns:
            int64 [blocks], and int64 [blocks + 1].
        """
        order = np.arange(len(self.block_cells), dtype=np.int64)
        if self.shuffle:
            order = self._random(epoch).permutation(order)
        begins = np.zeros(len(order) + 1, np.int64)
        np.cumsum(self.block_cells[order], out=begins[1:])
        return order, begins

    def lane(self, window: int, lane: int) -> tuple[int, int]:
        """Return which cells of the sequence a lane holds in a window, as begin and end."""
        begin = window * self.window_cells
        cells = min(self.window_cells, self.num_cells - begin)
        return begin + cells * lane // self.lanes, begin + cells * (lane + 1) // self.lanes

    def batches_of(self, window: int) -> int:
        """Return the number of batches of a window."""
        cells = min(self.window_cells, self.num_cells - window * self.window_cells)
        return -(-cells // self.global_batch)

    def shuffled(self, epoch: int, window: int, lane: int) -> Array:
        """Return int64 [n], in which order a lane hands out the cells it holds in a window."""
        begin, end = self.lane(window, lane)
        if not self.shuffle:
            return np.arange(end - begin)
        return self._random(epoch, window, lane).permutation(end - begin)
