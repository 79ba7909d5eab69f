"""`Loader`: minibatches of cells, epoch by epoch, on one or several ranks, resumable anywhere.

- The order is a pure function of (seed, epoch). A global batch is a run of its rows and each rank
  takes a contiguous share, so every rank has the same number of batches and together they see
  each row of the order once.
- The state is the number of rows that were handed out: what is being read ahead does not count,
  and the number of ranks may change before the rest is read.
- Threads read ahead while the model computes; the compiled loops release the GIL. Worker
  processes would be slower (a batch would cross to another process) and are refused.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.cell_batch import CellBatch
from omics.data.errors import ConfigError, UsageError
from omics.data.loading.batch_plan import BatchPlan, TokenBudget, plan_cells
from omics.data.loading.batch_ring import BufferRing, read_ahead, read_when_asked, require_cuda
from omics.data.loading.loader_state import checked_position, rows_name
from omics.data.loading.named_orders import AUTO, auto_orders, named_order
from omics.data.loading.packed_order import PackedOrder
from omics.data.storage.store import RowError
from omics.data.transforms import apply_transforms, bind_transforms, check_transforms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.utils.data import IterableDataset

    from omics.data.loading.cell_reader import CellReader
    from omics.data.loading.row_order import RowOrder
    from omics.data.storage.batch_buffers import BatchBuffers
    from omics.data.transforms import Transform

    Array = np.ndarray[Any, np.dtype[Any]]

DEFAULT_BATCH_SIZE = 32


class Loader:
    """Iterates over the cells of a store or a collection of stores; one iteration is one epoch.

    Needs 8 to 16 bytes of memory a row for the order (see the orders), 4 more with a budget.

    Args:
        store: to read.
        rows: int64 [n] to visit; None takes all.
        order: in which to visit them: a name of `order_names`, such as `sequential`, `random`,
            `block` or `class_balanced:cell_type`, or an order with parameters of its own. `auto`
            is `random` where the store fills at most half of the memory, else `block`.
        batch_size: cells per batch and rank; None takes 32, or what `batch_tokens` says.
        batch_tokens: tokens per batch and rank, filled greedily in the order of the epoch; a cell
            with more is a batch of its own. In place of `batch_size`.
        max_cell_tokens: what one cell counts for at most, where a transform will cut longer ones.
        special_tokens: that a cell counts for beside its entries.
        kept_share: of a cell's entries that random transforms keep, on average.
        pack_window: cells that are looked at to fill the gaps of a budget (`PackedOrder`); 0 leaves
            the order as it is. A state is then one of this budget.
        drop_last: leave out the last batch of an epoch when it is not full on every rank.
        transforms: applied to every batch, in order.
        obs: columns that batches bring along.
        seed: of the order and of random transforms.
        training: apply transforms for training too.
        rank: of this process, from 0.
        world_size: how many processes share the epoch.
        num_threads: that read and transform at the same time.
        prefetch: batches to read ahead; None takes one more than there are threads; 0 reads when
            asked, in the calling thread.
        reuse_buffers: read into memory that goes round. A batch is valid until the next one is
            asked for (the last of an iteration for ever); copy what must live longer.
        pin_memory: page-locked buffers, for copies to a CUDA device on the stream that is current
            when the next batch is asked for; they may be unfinished then. Needs `reuse_buffers`.

    Attributes:
        order: the one that is used, also where `auto` or another name was given.

    Raises:
        ConfigError: an argument out of range, arguments or transforms that do not fit each other.
        RowError: a row outside the store.
        UnknownNameError: an order or an obs column that does not exist.
    """

    def __init__(
        self,
        store: CellReader,
        *,
        rows: Array | None = None,
        order: str | RowOrder = "sequential",
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        max_cell_tokens: int | None = None,
        special_tokens: int = 0,
        kept_share: float = 1.0,
        pack_window: int = 0,
        drop_last: bool = False,
        transforms: Sequence[Transform] = (),
        obs: Sequence[str] = (),
        seed: int = 0,
        training: bool = False,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int = 1,
        prefetch: int | None = None,
        reuse_buffers: bool = False,
        pin_memory: bool = False,
    ) -> None:
        _check_sizes(batch_size, batch_tokens, max_cell_tokens, pack_window)
        _check_threads(num_threads, prefetch)
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank is {rank} of {world_size}; it must be 0 to world_size - 1.")
        if seed < 0:
            raise ConfigError(f"The seed is {seed}; it must not be negative.")
        if pin_memory:
            if not reuse_buffers:
                raise ConfigError("pin_memory needs reuse_buffers: locking memory anew is slow.")
            require_cuda()
        check_transforms(transforms)
        self.store = store
        self.batch_size = batch_size or (None if batch_tokens else DEFAULT_BATCH_SIZE)
        self.drop_last = drop_last
        self.transforms = bind_transforms(transforms, store.genes) if transforms else ()
        self.obs = tuple(obs)
        self.seed = seed
        self.training = training
        self.rank = rank
        self.world_size = world_size
        self.num_threads = num_threads
        self.prefetch = num_threads + 1 if prefetch is None else prefetch
        self.reuse_buffers = reuse_buffers
        self.pin_memory = pin_memory
        self._rows = _checked_rows(store, rows)
        self._rows_name = rows_name(self._rows)
        self._chosen_here = isinstance(order, str) and order == AUTO
        if self._chosen_here and world_size > 1:
            raise ConfigError(
                "The order 'auto' is decided by the memory of one machine, and ranks must agree. "
                "Name an order: 'random', or 'block' for a store larger than memory."
            )
        self._budget: TokenBudget | None = None
        if batch_tokens is not None:
            largest = max_cell_tokens or 2**31 - 1
            self._budget = TokenBudget(
                store.lengths, batch_tokens, largest, special_tokens, kept_share
            )
        self.pack_window = pack_window
        self._set_order(named_order(order, store) if isinstance(order, str) else order)
        store.take([], obs=self.obs)  # An unknown column is an error now, not in a thread later.
        self._epoch = 0
        self._position = 0
        self._resuming = False

    def _set_order(self, order: RowOrder) -> None:
        self.order = self._packed(order)
        self._epoch_rows = self.order.bind(self.store, self._rows)
        # A run asks for those of all of its epochs, and each takes a draw of the order.
        self._counts: dict[int, int] = {}
        self._drawn: tuple[int, Array] | None = None
        self._planned: tuple[tuple[int, int], BatchPlan] | None = None

    def _packed(self, order: RowOrder) -> RowOrder:
        if not self.pack_window:
            return order
        assert self._budget is not None
        return PackedOrder(order, self._budget, self.pack_window)

    def __len__(self) -> int:
        """Return the number of batches of an epoch, the same on every rank.

        With `batch_tokens` it differs a little from epoch to epoch; this is of the current one.
        """
        return self.num_batches(self._epoch)

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches of an epoch, the same on every rank.

        Args:
            epoch: not negative.
        """
        key = epoch if self._budget is not None else 0
        if key not in self._counts:
            self._counts[key] = len(self._plan(0, epoch))
        return self._counts[key]

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration visits."""
        return self._epoch

    @property
    def batches_left(self) -> int:
        """The batches that are left of the epoch, the same on every rank."""
        return len(self._plan(self._position, self._epoch))

    @property
    def num_rows(self) -> int:
        """The rows of an epoch, of all ranks together."""
        return len(self._epoch_rows)

    @property
    def first_row(self) -> int:
        """The first of the rows that were given, the same on every rank."""
        return 0 if self._rows is None else int(self._rows[0])

    def spread_rows(self, number: int) -> Array:
        """Return rows spread evenly over those that were given, to look at what cells are like.

        Args:
            number: at most so many.
        """
        return spread_over(np.arange(len(self.store)) if self._rows is None else self._rows, number)

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
            self._position = 0
            self._resuming = False

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader is, as plain JSON; the same on every rank.

        Returns:
            `epoch`, `position` (rows of the epoch's order that all ranks together have handed
            out) and what must be equal for the state to mean the same: `seed`, `order`, `rows`
            (a digest) and `store` (its digest).
        """
        return {**self._settings, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another loader was: the next iteration gives the rest of its epoch.

        Ranks, batch size, budget, threads and transforms may differ from those of the state. A
        loader made with the order `auto` takes the one the state says.

        Args:
            state: from `state_dict`.

        Raises:
            ConfigError: the state is of a loader with another seed, order, rows or store.
        """
        if self._chosen_here:
            for order in auto_orders():
                if state.get("order") == self._packed(order).to_dict() != self.order.to_dict():
                    self._set_order(order)
        self._epoch, self._position = checked_position(state, self._settings, len(self._epoch_rows))
        self._resuming = True

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "order": self.order.to_dict(),
            "rows": self._rows_name,
            "store": self.store.digest,
        }

    def __iter__(self) -> Iterator[CellBatch]:
        """Iterate over the epoch, or over what a loaded state left of it."""
        begin = self._position if self._resuming else 0
        self._resuming = False
        self._position = begin
        return self._iterate(begin, self._epoch)

    def _iterate(self, begin: int, epoch: int) -> Iterator[CellBatch]:
        plan = self._plan(begin, epoch)
        read = partial(self._read, self._order_of(epoch), plan, epoch)
        for index, batch in enumerate(self._batches(read, range(len(plan)))):
            self._position = plan.position_after(index)
            yield batch

    def _batches(
        self, read: Callable[[int, BatchBuffers | None], CellBatch], indices: range
    ) -> Iterator[CellBatch]:
        ring = None
        if self.reuse_buffers:
            # One for the consumer; one more while a device still copies from the last.
            size = self.prefetch + 1 + int(self.pin_memory)
            ring = BufferRing(size, pinned_memory=self.pin_memory)
        if not self.prefetch:
            return read_when_asked(read, indices, ring=ring)
        return read_ahead(
            read, indices, num_threads=self.num_threads, prefetch=self.prefetch, ring=ring
        )

    def _order_of(self, epoch: int) -> Array:
        """Return the rows of an epoch, kept until another epoch is asked for."""
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = None  # Two epochs in memory would be one too many.
            self._drawn = (epoch, self._epoch_rows.epoch(self.seed, epoch))
        return self._drawn[1]

    def _plan(self, begin: int, epoch: int) -> BatchPlan:
        key = (begin, epoch if self._budget is not None else 0)
        if self._planned is None or self._planned[0] != key:
            self._planned = (key, self._make_plan(begin, epoch))
        return self._planned[1]

    def _make_plan(self, begin: int, epoch: int) -> BatchPlan:
        if self._budget is not None:
            return self._budget.plan(
                self._order_of(epoch),
                begin=begin,
                world_size=self.world_size,
                drop_last=self.drop_last,
            )
        assert self.batch_size is not None
        return plan_cells(
            len(self._epoch_rows),
            self.batch_size,
            begin=begin,
            world_size=self.world_size,
            drop_last=self.drop_last,
        )

    def _read(
        self, order: Array, plan: BatchPlan, epoch: int, index: int, buffers: BatchBuffers | None
    ) -> CellBatch:
        """Return one batch of this rank."""
        begin, end = plan.share(index, self.rank)
        rows = order[begin:end].copy()  # A batch that lives on must not keep the order alive.
        return self.read(rows, epoch=epoch, buffers=buffers)

    def read(self, rows: Array, *, epoch: int, buffers: BatchBuffers | None = None) -> CellBatch:
        """Return chosen cells as an epoch gives them, whatever batch they were in there.

        Args:
            rows: int64 [n] of the store.
            epoch: of the random transforms.
            buffers: to read into.
        """
        batch = self.store.take(rows, obs=self.obs, buffers=buffers)
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
                        "A Loader reads ahead in threads of its own and cannot be split over "
                        "worker processes. Use DataLoader(..., batch_size=None, num_workers=0)."
                    )
                return iter(loader)

            def __len__(self) -> int:
                return len(loader)

            def __reduce__(self) -> tuple[Any, ...]:
                return Loader.as_iterable_dataset, (loader,)

        return CellBatches()


def _check_sizes(
    batch_size: int | None,
    batch_tokens: int | None,
    max_cell_tokens: int | None,
    pack_window: int,
) -> None:
    sizes = {
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "max_cell_tokens": max_cell_tokens,
    }
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")
    if batch_size is not None and batch_tokens is not None:
        raise ConfigError("batch_size and batch_tokens are both given; a batch has one limit.")
    if max_cell_tokens is not None and batch_tokens is None:
        raise ConfigError("max_cell_tokens has no effect without batch_tokens; drop it.")
    if pack_window and batch_tokens is None:
        raise ConfigError("pack_window has no effect without batch_tokens; drop it.")


def _check_threads(num_threads: int, prefetch: int | None) -> None:
    if num_threads < 1:
        raise ConfigError(f"num_threads is {num_threads}; it must be at least 1.")
    if prefetch is None:
        return
    if prefetch < 0:
        raise ConfigError(f"prefetch is {prefetch}; it must be at least 0.")
    if prefetch < num_threads and num_threads > 1:
        raise ConfigError(
            f"prefetch is {prefetch} with {num_threads} threads, some of which would have nothing "
            f"to read. Set it to {num_threads} or more, or leave it out."
        )


def _checked_rows(store: CellReader, rows: Array | None) -> Array | None:
    """Return rows as int64, or None if they are all rows as they are stored."""
    if rows is None:
        return None
    given = np.asarray(rows)
    if given.ndim != 1 or (given.dtype.kind not in "iu" and len(given)):
        raise ConfigError(f"rows must be a one-dimensional array of integers, not {given.dtype}.")
    given = given.astype(np.int64)
    if len(given) and (int(given.min()) < 0 or int(given.max()) >= len(store)):
        worst = int(given.min()) if int(given.min()) < 0 else int(given.max())
        raise RowError(f"Row {worst} is outside the store, which has {len(store)} cells.")
    whole = len(given) == len(store) and bool((given == np.arange(len(given))).all())
    return None if whole else given


def spread_over(rows: Array, number: int) -> Array:
    """Return rows spread evenly over others.

    Args:
        rows: int64 [n].
        number: at most so many.
    """
    return rows[np.linspace(0, len(rows) - 1, min(number, len(rows)), dtype=np.int64)]
