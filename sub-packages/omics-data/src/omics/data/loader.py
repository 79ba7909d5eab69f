"""`Loader`: minibatches of a store, epoch by epoch, on one or several ranks, resumable.

- The order is a pure function of (seed, epoch). A global batch is `batch_size * world_size`
  consecutive rows of it and each rank takes a contiguous share, so every rank has the same number
  of batches and together they see each row once; the last batch is shared out evenly.
- The state is the number of the next batch to hand out: batches being prefetched do not count.
- One thread reads ahead while the model computes; the compiled loops release the GIL. Worker
  processes would be slower (a batch would cross to another process) and are refused.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from omics.data.cell_batch import CellBatch
from omics.data.errors import ConfigError, UsageError, nearest
from omics.data.row_order import RowOrder
from omics.data.store import RowError
from omics.data.transforms import apply_transforms, check_transforms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.utils.data import IterableDataset

    from omics.data.store import CellStore
    from omics.data.transforms import Transform

    Array = np.ndarray[Any, np.dtype[Any]]


class Loader:
    """Iterates over the cells of a store; one iteration is one epoch.

    Args:
        store: to read.
        rows: int64 [n] to visit; None takes all.
        batch_size: cells per batch and rank.
        shuffle: a new random order each epoch.
        transforms: applied to every batch, in order.
        obs: columns that batches bring along.
        seed: of the order and of random transforms.
        training: apply transforms for training too.
        rank: of this process, from 0.
        world_size: how many processes share the epoch.
        prefetch: batches to read ahead in a thread; 0 reads when asked.

    Raises:
        ConfigError: an argument out of range, or transforms that do not fit each other.
        RowError: a row outside the store.
        UnknownNameError: an obs column that does not exist.
    """

    def __init__(
        self,
        store: CellStore,
        *,
        rows: Array | None = None,
        batch_size: int = 32,
        shuffle: bool = False,
        transforms: Sequence[Transform] = (),
        obs: Sequence[str] = (),
        seed: int = 0,
        training: bool = False,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
    ) -> None:
        if batch_size < 1 or prefetch < 0:
            raise ConfigError(
                f"batch_size is {batch_size} and prefetch {prefetch}; they must be at least 1 "
                "and 0."
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of {world_size}; it must be 0 to world_size - 1.")
        check_transforms(transforms)
        self.store = store
        self.batch_size = batch_size
        self.transforms = tuple(transforms)
        self.obs = tuple(obs)
        self.seed = seed
        self.training = training
        self.rank = rank
        self.world_size = world_size
        self.prefetch = prefetch
        self._order = RowOrder(_checked_rows(store, rows), shuffle, seed)
        store.take([], obs=self.obs)  # An unknown column is an error now, not in a thread later.
        self._epoch = 0
        self._next_batch = 0
        self._resuming = False

    def __len__(self) -> int:
        """Return the number of batches of an epoch, the same on every rank."""
        return (len(self._order) + self._global_batch_size - 1) // self._global_batch_size

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration visits."""
        return self._epoch

    @property
    def _global_batch_size(self) -> int:
        return self.batch_size * self.world_size

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
            `epoch`, `batch` (the next to hand out; `len` when the epoch is over) and what must
            be equal for the state to mean the same: `seed`, `shuffle`, `global_batch_size`,
            `rows` (a digest).
        """
        return {**self._identity, "epoch": self._epoch, "batch": self._next_batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another loader was: the next iteration gives its remaining batches.

        The number of ranks may differ as long as the global batch size is the same.

        Args:
            state: from `state_dict`.

        Raises:
            ConfigError: the state is of a loader with another seed, order, batch size or rows.
        """
        expected = {*self._identity, "epoch", "batch"}
        for key in state:
            if key not in expected:
                hint = nearest(str(key), sorted(expected))
                raise ConfigError(f"The loader's state has an unknown key {key!r}.{hint}")
        for key in sorted(expected):
            if key not in state:
                raise ConfigError(f"The loader's state has no {key!r}.")
        for key, mine in self._identity.items():
            if state[key] != mine:
                raise ConfigError(
                    f"The state is of a loader with {key} {state[key]!r}, this one has {mine!r}. "
                    "Continue with the settings of the run that was stopped."
                )
        epoch, batch = state["epoch"], state["batch"]
        if type(epoch) is not int or type(batch) is not int or epoch < 0:
            raise ConfigError(f"The state's epoch {epoch!r} or batch {batch!r} is not a count.")
        if not 0 <= batch <= len(self):
            raise ConfigError(f"The state's batch is {batch}; an epoch has {len(self)} batches.")
        self._epoch = epoch
        self._next_batch = batch
        self._resuming = True

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "shuffle": self._order.shuffle,
            "global_batch_size": self._global_batch_size,
            "rows": xxhash.xxh3_64_hexdigest(np.ascontiguousarray(self._order.rows).data),
        }

    def __iter__(self) -> Iterator[CellBatch]:
        """Iterate over the epoch, or over what a loaded state left of it."""
        begin = self._next_batch if self._resuming else 0
        self._resuming = False
        self._next_batch = begin
        return self._iterate(begin, self._epoch)

    def _iterate(self, begin: int, epoch: int) -> Iterator[CellBatch]:
        order = self._order.epoch(epoch)
        batches = self._prefetched if self.prefetch else self._read_when_asked
        for index, batch in enumerate(batches(order, begin, epoch), start=begin):
            self._next_batch = index + 1
            yield batch

    def _read_when_asked(self, order: Array, begin: int, epoch: int) -> Iterator[CellBatch]:
        for index in range(begin, len(self)):
            yield self._read(order, index, epoch)

    def _prefetched(self, order: Array, begin: int, epoch: int) -> Iterator[CellBatch]:
        """Yield batches that one thread reads ahead; an error in it is raised here."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="omics-loader")
        ahead: deque[Future[CellBatch]] = deque()
        try:
            for index in range(begin, len(self)):
                ahead.append(thread.submit(self._read, order, index, epoch))
                if len(ahead) > self.prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            thread.shutdown(wait=True, cancel_futures=True)

    def _read(self, order: Array, index: int, epoch: int) -> CellBatch:
        """Return one batch of this rank."""
        window = order[index * self._global_batch_size : (index + 1) * self._global_batch_size]
        begin = len(window) * self.rank // self.world_size
        end = len(window) * (self.rank + 1) // self.world_size
        batch = self.store.take(window[begin:end], obs=self.obs)
        return apply_transforms(
            batch, self.transforms, seed=self.seed, epoch=epoch, training=self.training
        )

    def as_iterable_dataset(self) -> IterableDataset[CellBatch]:
        """Return the loader as a torch dataset, for `DataLoader(dataset, batch_size=None)`.

        Returns:
            A dataset of ready batches. It must be read in the main process (`num_workers=0`,
            torch's default): worker processes raise a UsageError, as each would read everything.
        """
        from torch.utils.data import IterableDataset, get_worker_info

        loader = self

        class CellBatches(IterableDataset[CellBatch]):
            def __iter__(self) -> Iterator[CellBatch]:
                if get_worker_info() is not None:
                    raise UsageError(
                        "A Loader reads ahead in a thread of its own and cannot be split over "
                        "worker processes. Use DataLoader(..., batch_size=None, num_workers=0)."
                    )
                return iter(loader)

            def __len__(self) -> int:
                return len(loader)

            def __reduce__(self) -> tuple[Any, ...]:
                return Loader.as_iterable_dataset, (loader,)

        return CellBatches()


def _checked_rows(store: CellStore, rows: Array | None) -> Array:
    if rows is None:
        return np.arange(len(store), dtype=np.int64)
    given = np.asarray(rows)
    if given.ndim != 1 or (given.dtype.kind not in "iu" and len(given)):
        raise ConfigError(f"rows must be a one-dimensional array of integers, not {given.dtype}.")
    given = given.astype(np.int64)
    if len(given) and (int(given.min()) < 0 or int(given.max()) >= len(store)):
        worst = int(given.min()) if int(given.min()) < 0 else int(given.max())
        raise RowError(f"Row {worst} is outside the store, which has {len(store)} cells.")
    return given
