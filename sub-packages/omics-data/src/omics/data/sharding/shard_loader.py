"""`ShardLoader`: streams batches of cells from a set of shards, in a folder or a bucket.

- It reads blocks, not shards: a window of blocks from all over the set is fetched by threads while
  the one before is handed out, so a batch mixes cells of many places and nothing is kept on disk.
- It iterates as `Loader` does: one iteration is one epoch, the position is two integers in
  `state_dict`, every cell comes once per epoch over all ranks.
- A block that is missing, cut short or damaged is an error when it is read, never a wait.
- Memory: two windows (`shuffle_cells` each), and one more while a window is put together.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.cell_batch import CellBatch
from omics.data.errors import ConfigError, UnknownNameError, nearest
from omics.data.sharding.shard_order import ShardOrder
from omics.data.sharding.shards import ShardSet, open_shards
from omics.data.storage.gather import gather_rows
from omics.data.transforms import apply_transforms, bind_transforms, check_transforms

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from omics.data.genes import GeneTable
    from omics.data.transforms import Transform

Array = np.ndarray[Any, np.dtype[Any]]

ORDERS = ("sequential", "block")


class ShardLoader:
    """Iterates over the cells of a set of shards; one iteration is one epoch.

    Args:
        shards: an open set, or its path or address.
        batch_size: cells per batch and rank.
        order: `sequential`, or `block`: a new random order of blocks, and of the cells of many
            blocks, each epoch.
        shuffle_cells: how many cells a rank holds and shuffles at a time.
        transforms: applied to every batch, in order.
        obs: columns that batches bring along.
        seed: of the order and of random transforms.
        training: apply transforms for training too.
        rank: of this process, from 0.
        world_size: how many processes share the epoch.
        threads: how many blocks are fetched at the same time.

    Raises:
        ConfigError: an argument out of range, or transforms that do not fit each other.
        UnknownNameError: an obs column that the shards do not have.
        InputDataError: there is no set of shards at the address.
        CorruptStoreError: a file of the set is missing, of another size, or damaged.
    """

    def __init__(
        self,
        shards: ShardSet | str | os.PathLike[str],
        *,
        batch_size: int = 32,
        order: str = "sequential",
        shuffle_cells: int = 8192,
        transforms: Sequence[Transform] = (),
        obs: Sequence[str] = (),
        seed: int = 0,
        training: bool = False,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 4,
    ) -> None:
        if min(batch_size, shuffle_cells, threads, seed + 1) < 1:
            raise ConfigError(
                f"batch_size is {batch_size}, shuffle_cells {shuffle_cells}, threads {threads} and "
                f"seed {seed}; they must be at least 1, 1, 1 and 0."
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of {world_size}; it must be 0 to world_size - 1.")
        if order not in ORDERS:
            raise ConfigError(f"Shards have no order {order!r}.{nearest(order, ORDERS)}")
        check_transforms(transforms)
        self.shards = shards if isinstance(shards, ShardSet) else open_shards(shards)
        for name in obs:
            if name not in self.shards.columns:
                raise UnknownNameError(
                    f"The shards in {self.shards.folder.name} bring no obs column {name!r}."
                    + nearest(name, self.shards.columns)
                )
        self.batch_size = batch_size
        self.shuffle_cells = shuffle_cells
        self.transforms = bind_transforms(transforms, self.shards.genes) if transforms else ()
        self.obs = tuple(obs)
        self.seed = seed
        self.order = order
        self.training = training
        self.rank = rank
        self.world_size = world_size
        self.threads = threads
        self._order = self._order_of(world_size, shuffle_cells * world_size)
        self._epoch = 0
        self._next_batch = 0
        self._resuming = False

    def _order_of(self, lanes: int, window_cells: int) -> ShardOrder:
        return ShardOrder(
            self.shards.block_cells,
            lanes=lanes,
            global_batch=self.batch_size * self.world_size,
            window_cells=window_cells,
            shuffle=self.order == "block",
            seed=self.seed,
        )

    def __len__(self) -> int:
        """Return the number of batches of an epoch, the same on every rank."""
        return len(self._order)

    @property
    def genes(self) -> GeneTable:
        """The gene table of the set."""
        return self.shards.genes

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration visits."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration.

        Setting the epoch of a loaded state keeps its position; another one begins at its start.

        Args:
            epoch: not negative.

        Raises:
            ConfigError: the epoch is negative.
        """
        if epoch < 0:
            raise ConfigError(f"The epoch is {epoch}; it must not be negative.")
        if epoch != self._epoch:
            self._epoch = epoch
            self._next_batch = 0
            self._resuming = False

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is, as plain JSON.

        Returns:
            `epoch`, `batch` (the next to hand out; `len` when the epoch is over), how windows are
            cut (`lanes`, `window_cells`), and what must be equal for the state to mean the same:
            `seed`, `order`, `global_batch_size`, `shards` (the uuid of the set).
        """
        return {
            **self._identity,
            "lanes": self._order.lanes,
            "window_cells": self._order.window_cells,
            "epoch": self._epoch,
            "batch": self._next_batch,
        }

    @property
    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "order": self.order,
            "global_batch_size": self._order.global_batch,
            "shards": self.shards.manifest.layout.uuid.hex(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another loader was: the next iteration gives its remaining batches.

        The number of ranks may differ if the global batch size is the same and the number of ranks
        that began the run is a multiple of it; every cell still comes once.

        Args:
            state: from `state_dict`.

        Raises:
            ConfigError: the state is of a loader with another seed, order, batch size or set, or
                cannot be divided among these ranks.
        """
        numbers = ("lanes", "window_cells", "epoch", "batch")
        expected = {*self._identity, *numbers}
        for key in state:
            if key not in expected:
                hint = nearest(str(key), sorted(expected))
                raise ConfigError(f"The loader's state has an unknown key {key!r}.{hint}")
        for key in sorted(expected - set(state)):
            raise ConfigError(f"The loader's state has no {key!r}.")
        for key, mine in self._identity.items():
            if state[key] != mine:
                raise ConfigError(
                    f"The state is of a loader with {key} {state[key]!r}, this one has {mine!r}. "
                    "Continue with the settings of the run that was stopped."
                )
        for key in numbers:
            if type(state[key]) is not int or state[key] < 0:
                raise ConfigError(f"The state's {key} {state[key]!r} is not a count.")
        lanes = state["lanes"]
        if lanes == 0 or lanes % self.world_size or self._order.global_batch % lanes:
            raise ConfigError(
                f"The run was begun by {lanes} ranks and cannot go on with {self.world_size}: use "
                f"a number that divides {lanes}."
            )
        if state["batch"] > len(self):
            raise ConfigError(
                f"The state's batch is {state['batch']}; an epoch has {len(self)} batches."
            )
        self._order = self._order_of(lanes, state["window_cells"])
        self._epoch = state["epoch"]
        self._next_batch = state["batch"]
        self._resuming = True

    def __iter__(self) -> Iterator[CellBatch]:
        """Iterate over the epoch, or over what a loaded state left of it."""
        begin = self._next_batch if self._resuming else 0
        self._resuming = False
        self._next_batch = begin
        return self._iterate(begin, self._epoch)

    def _iterate(self, begin: int, epoch: int) -> Iterator[CellBatch]:
        for index, batch in enumerate(self._batches(begin, epoch), start=begin):
            self._next_batch = index + 1
            yield apply_transforms(
                batch, self.transforms, seed=self.seed, epoch=epoch, training=self.training
            )

    def _batches(self, begin: int, epoch: int) -> Iterator[CellBatch]:
        """Yield the batches of this rank while the next window is read."""
        order = self._order
        first, skipped = divmod(begin, order.batches_per_window)
        windows = range(first, -(-order.num_cells // order.window_cells))
        if begin >= len(order):
            return
        blocks = order.blocks(epoch)
        fetching = ThreadPoolExecutor(self.threads, thread_name_prefix="omics-shards-fetch")
        joining = ThreadPoolExecutor(1, thread_name_prefix="omics-shards-join")

        def read(window: int) -> Future[list[CellBatch]]:
            return joining.submit(self._window, fetching, blocks, epoch, window)

        try:
            ahead = read(windows[0])
            for window in windows:
                held = ahead.result()
                if window + 1 in windows:
                    ahead = read(window + 1)
                steps = order.batches_of(window)
                for step in range(skipped, steps):
                    parts = [
                        lane[len(lane) * step // steps : len(lane) * (step + 1) // steps]
                        for lane in held
                    ]
                    yield parts[0] if len(parts) == 1 else _joined(parts)
                skipped = 0
        finally:
            joining.shutdown(wait=False, cancel_futures=True)
            fetching.shutdown(wait=False, cancel_futures=True)

    def _window(
        self, threads: ThreadPoolExecutor, blocks: tuple[Array, Array], epoch: int, window: int
    ) -> list[CellBatch]:
        """Return the shuffled cells of each lane of this rank in a window."""
        numbers, begins = blocks
        share = self._order.lanes // self.world_size
        found = []
        for lane in range(self.rank * share, (self.rank + 1) * share):
            begin, end = self._order.lane(window, lane)
            first = int(np.searchsorted(begins, begin, side="right")) - 1
            last = max(int(np.searchsorted(begins, end, side="left")), first + 1)
            places = range(first, last)
            read = threads.map(
                lambda place: self.shards.read_block(int(numbers[place]), obs=self.obs), places
            )
            parts = []
            for place, block in zip(places, read, strict=True):
                start = int(begins[place])
                parts.append(block[max(begin - start, 0) : max(end - start, 0)])
            found.append(_reordered(_joined(parts), self._order.shuffled(epoch, window, lane)))
        return found


def _joined(parts: list[CellBatch]) -> CellBatch:
    """Return the cells of several batches as one."""
    lengths = np.concatenate([part.lengths for part in parts])
    indptr = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    return CellBatch(
        indptr=indptr,
        genes=np.concatenate([part.genes for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        rows=np.concatenate([part.rows for part in parts]),
        num_genes=parts[0].num_genes,
        obs={name: np.concatenate([part.obs[name] for part in parts]) for name in parts[0].obs},
    )


def _reordered(batch: CellBatch, order: Array) -> CellBatch:
    """Return the cells in another order."""
    starts = batch.indptr[:-1][order]
    indptr = np.zeros(len(order) + 1, np.int64)
    np.cumsum(batch.lengths[order], out=indptr[1:])
    genes, counts = np.empty_like(batch.genes), np.empty_like(batch.counts)
    gather_rows(starts, indptr, batch.genes, genes)
    gather_rows(starts, indptr, batch.counts, counts)
    return CellBatch(
        indptr=indptr,
        genes=genes,
        counts=counts,
        rows=batch.rows[order],
        num_genes=batch.num_genes,
        obs={name: values[order] for name, values in batch.obs.items()},
    )
