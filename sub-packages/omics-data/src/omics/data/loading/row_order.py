"""`RowOrder`: in which order an epoch visits the cells; as stored, at random, or in blocks.

- An order is a frozen record. `bind` joins it with cells and a selection of rows; the result gives
  the rows of any epoch as a pure function of (seed, epoch), on any rank, at any time: that is what
  makes a run resumable from a handful of numbers.
- Rows are int64 and drawn for the whole epoch at once: 8 bytes a row, never a Python object.
- Orders that sample (weights, classes, members of a collection) are in `weighted_order` and
  `group_orders`; names for all of them are in `named_orders`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omics.data.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.data.loading.cell_reader import CellRows

Array = np.ndarray[Any, np.dtype[Any]]

_STEP = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class EpochRows:
    """The rows of every epoch of an order over some cells.

    Attributes:
        num_rows: how many rows an epoch visits.
        draw: takes seed and epoch and returns the rows of that epoch, int64 [num_rows].
    """

    num_rows: int
    draw: Callable[[int, int], Array]

    def __len__(self) -> int:
        """Return how many rows an epoch visits."""
        return self.num_rows

    def epoch(self, seed: int, epoch: int) -> Array:
        """Return the rows of one epoch.

        Args:
            seed: of the run, not negative.
            epoch: not negative.

        Returns:
            int64 [n], rows of the cells; not to be changed.

        Raises:
            ConfigError: the seed or the epoch is negative.
        """
        for what, value in (("seed", seed), ("epoch", epoch)):
            if value < 0:
                raise ConfigError(f"The {what} is {value}; it must not be negative.")
        return self.draw(seed, epoch)


class RowOrder(ABC):
    """What every order offers; the records are frozen.

    Attributes:
        name: under which it is known.
    """

    name: ClassVar[str]

    @abstractmethod
    def bind(self, cells: CellRows, rows: Array | None) -> EpochRows:
        """Join the order with the cells it is to visit.

        Args:
            cells: a store or a collection of stores.
            rows: int64 [n], the rows to choose from, within the cells; None takes all.

        Raises:
            ConfigError: parameters that do not fit the cells.
            UnknownNameError: an obs column that does not exist.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON; equal for equal orders."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class Sequential(RowOrder):
    """The rows as they are given, or as they are stored; the same in each epoch."""

    name: ClassVar[str] = "sequential"

    def bind(self, cells: CellRows, rows: Array | None) -> EpochRows:
        """Join the order with cells; see `RowOrder.bind`."""
        return EpochRows(_count(cells, rows), partial(_as_given, len(cells), rows))


@dataclass(frozen=True, slots=True)
class Shuffled(RowOrder):
    """True random: a new permutation of all rows in each epoch, every one as likely."""

    name: ClassVar[str] = "random"

    def bind(self, cells: CellRows, rows: Array | None) -> EpochRows:
        """Join the order with cells; see `RowOrder.bind`."""
        return EpochRows(_count(cells, rows), partial(_permuted, len(cells), rows))


@dataclass(frozen=True, slots=True)
class BlockShuffled(RowOrder):
    """Random blocks of neighbouring rows, shuffled once more within a moving window.

    For data larger than memory: a window touches `buffer_size / block_size` places of the disk
    instead of `buffer_size`. A selection of rows is sorted first, so that blocks are neighbours
    on the disk whatever order the rows came in.

    Attributes:
        block_size: consecutive rows that stay in one window (or two, at its edge).
        buffer_size: rows of a window; the rows within it are permuted.
    """

    name: ClassVar[str] = "block"

    block_size: int = 64
    buffer_size: int = 8192

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 1 <= self.block_size <= self.buffer_size:
            raise ConfigError(
                f"block_size is {self.block_size} and buffer_size {self.buffer_size}; a block has "
                "at least 1 row and a buffer at least one block."
            )

    def bind(self, cells: CellRows, rows: Array | None) -> EpochRows:
        """Join the order with cells; see `RowOrder.bind`."""
        ascending = rows
        if rows is not None and len(rows) and bool((rows[1:] < rows[:-1]).any()):
            ascending = np.sort(rows)
        return EpochRows(_count(cells, rows), partial(self._draw, len(cells), ascending))

    def _draw(self, num_cells: int, rows: Array | None, seed: int, epoch: int) -> Array:
        num_rows = num_cells if rows is None else len(rows)
        generator = epoch_generator(seed, epoch)
        drawn = _shuffled_blocks(num_rows, self.block_size, generator)
        if rows is not None:
            for begin in range(0, num_rows, _STEP):
                drawn[begin : begin + _STEP] = rows[drawn[begin : begin + _STEP]]
        filled = num_rows - num_rows % self.buffer_size
        windows = drawn[:filled].reshape(-1, self.buffer_size)
        generator.permuted(windows, axis=1, out=windows)
        generator.shuffle(drawn[filled:])
        return drawn


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the random numbers of one epoch.

    Args:
        seed: of the run.
        epoch: of the pass over the data.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))


def _count(cells: CellRows, rows: Array | None) -> int:
    return len(cells) if rows is None else len(rows)


def _as_given(num_cells: int, rows: Array | None, _seed: int, _epoch: int) -> Array:
    return np.arange(num_cells, dtype=np.int64) if rows is None else rows


def _permuted(num_cells: int, rows: Array | None, seed: int, epoch: int) -> Array:
    generator = epoch_generator(seed, epoch)
    return np.asarray(generator.permutation(num_cells if rows is None else rows), np.int64)


def _shuffled_blocks(num_rows: int, block_size: int, generator: np.random.Generator) -> Array:
    """Return int64 [num_rows]: 0, 1, 2, ... in blocks whose order is random."""
    num_blocks = -(-num_rows // block_size)
    blocks = generator.permutation(num_blocks)
    drawn = np.empty(num_rows, np.int64)
    within = np.arange(block_size, dtype=np.int64)
    short = num_rows % block_size
    # The one block that is not full divides the others into those before and those after it.
    before = int(np.flatnonzero(blocks == num_blocks - 1)[0]) if short else num_blocks
    end = before * block_size
    starts = blocks[:before, None] * block_size
    np.add(starts, within, out=drawn[:end].reshape(-1, block_size))
    if short:
        drawn[end : end + short] = (num_blocks - 1) * block_size + within[:short]
        starts = blocks[before + 1 :, None] * block_size
        np.add(starts, within, out=drawn[end + short :].reshape(-1, block_size))
    return drawn
