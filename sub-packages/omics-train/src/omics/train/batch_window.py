"""`Window`: the micro-batches of one optimiser step, with the totals of every loss term over them.

- One tiny all-reduce per optimiser step, from the main thread and in the same order on every
  process, before the window is handed out. It also carries the wish to stop, so that all processes
  stop at the same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.train.training_batch import TrainingBatch

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(slots=True, kw_only=True)
class Window:
    """What this process contributes to one optimiser step.

    Attributes:
        batches: micro-batches, with their totals.
        rows: int64 rows of the store, of each batch that the loader gave.
        epoch: of the cells.
        pieces: micro-batches into which each batch of the loader was cut.
        position: of the loader after the window, from which the next one is read.
        stops: whether a process was asked to stop before the window was read.
    """

    batches: Sequence[TrainingBatch]
    rows: Sequence[Array]
    epoch: int
    pieces: int
    position: dict[str, Any]
    stops: bool = False


def fill_totals(
    batches: Sequence[TrainingBatch], *, world_size: int = 1, wants_stop: bool = False
) -> bool:
    """Fill in `totals` and `scale` of the micro-batches of one optimiser step.

    Args:
        batches: prepared on the host.
        world_size: processes that train together; above 1 the process group must be up.
        wants_stop: whether this process was asked to stop.

    Returns:
        Whether any process was.
    """
    names = list(batches[0].counts)
    sums = [sum(batch.counts[name] for batch in batches) for name in names]
    if world_size > 1:
        shared = torch.tensor([*sums, float(wants_stop)], dtype=torch.float64)
        dist.all_reduce(shared)
        *sums, stops = shared.tolist()
        wants_stop = stops > 0
    for batch in batches:
        batch.totals = dict(zip(names, sums, strict=True))
        # Gradients are averaged over the processes.
        batch.scale = float(world_size)
    return wants_stop
