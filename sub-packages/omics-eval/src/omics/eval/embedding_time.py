"""How long a model will take, measured on the first of its cells, and told before the rest.

- The sample is of cells of all lengths, and its results are kept: nothing is computed twice.
- One cell goes first and is not timed: it pays for loading kernels and moving the weights.
- Then batches are run until there are eight cells and two seconds, or the sample is used up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.command_line import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from omics.models.inference import InferenceBatch

Array = np.ndarray[Any, np.dtype[Any]]

LONG_S = 600.0
MAX_SAMPLE = 1024
_ENOUGH_S = 2.0
_ENOUGH_CELLS = 8
# Fewer cells than this are no sketch of a large file, however long they take.
_LEAST_SKETCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long a model will take.

    Attributes:
        num_cells: that it is run on.
        device: where.
        seconds_per_cell: measured on a sample of them.
    """

    num_cells: int
    device: str
    seconds_per_cell: float

    @property
    def seconds(self) -> float:
        """For all cells together."""
        return self.num_cells * self.seconds_per_cell

    @property
    def fewer_cells(self) -> int | None:
        """A round number of cells that takes about ten minutes; None where all of them do."""
        if self.seconds <= LONG_S:
            return None
        number = int(LONG_S / self.seconds_per_cell)
        step = 10 ** max(len(str(number)) - 2, 0)
        number = max(number // step * step, _LEAST_SKETCH)
        return number if number < self.num_cells else None

    def __str__(self) -> str:
        """Return one line for people."""
        line = f"{self.num_cells:,} cells on {self.device}: about {_shown(self.seconds)}"
        if (fewer := self.fewer_cells) is None:
            return line
        return (
            f"{line}. --max-cells {fewer} would take about "
            f"{_shown(fewer * self.seconds_per_cell)}: a sketch is embedded, and the other cells are "
            "given the embeddings of their neighbours."
        )


def run_timed(
    run: Callable[[Array], Iterator[InferenceBatch]],
    lengths: Array,
    *,
    device: str,
    on_estimate: Callable[[Estimate], None],
    rows: Array | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[InferenceBatch]:
    """Run a model over cells; tell how long all of them take when the first are done.

    Args:
        run: gives the results of rows.
        lengths: int [n], how many genes each cell of the store expresses.
        device: where it runs.
        on_estimate: called once, when a sample of the cells is done.
        rows: int64 [m], the cells to run; None for all.
        clock: gives seconds.

    Yields:
        The results, those of the sample first.
    """
    rows = np.arange(len(lengths)) if rows is None else rows
    if not len(rows):
        return
    sample = spread_places(lengths[rows])
    done = np.zeros(len(rows), np.bool_)
    first = clock()
    yield from run(rows[sample[:1]])
    done[sample[:1]] = True
    started, seconds = clock(), 0.0
    reached = 1
    if len(sample) > 1:
        for result in run(rows[sample[1:]]):
            seconds = clock() - started
            reached += len(result.rows)
            yield result
            if seconds >= _ENOUGH_S and reached > _ENOUGH_CELLS:
                break
        done[sample[:reached]] = True
    per_cell = seconds / (reached - 1) if reached > 1 else started - first
    on_estimate(Estimate(num_cells=len(rows), device=device, seconds_per_cell=per_cell))
    if not done.all():
        yield from run(rows[~done])


def spread_places(lengths: Array, most: int = MAX_SAMPLE) -> Array:
    """Choose cells of all lengths, in an order of which any beginning has all lengths, too.

    Args:
        lengths: int [n].
        most: cells to choose.

    Returns:
        int64 [m] places in `lengths`: the median first, then the quartiles, the eighths between
        them, ... (the sequence of van der Corput).
    """
    order = np.argsort(lengths, kind="stable")
    index = np.arange(1, most + 1)
    share = np.zeros(most)
    for bit in range(most.bit_length()):
        share += (index >> bit & 1) / 2 ** (bit + 1)
    chosen = order[(share * len(order)).astype(np.int64)]
    _, first = np.unique(chosen, return_index=True)
    return np.asarray(chosen[np.sort(first)], np.int64)


def _shown(seconds: float) -> str:
    return "a second" if seconds < 1 else duration(seconds)
