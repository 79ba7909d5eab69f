"""The window of one optimiser step: totals of every loss term over its micro-batches.

- One tiny all-reduce per optimiser step, from the main thread and in the same order on every
  process, before the first micro-batch of the window is handed out.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from omics.train.training_batch import TrainingBatch


def with_totals(
    batches: Iterable[TrainingBatch], *, window: int, world_size: int = 1
) -> Iterator[TrainingBatch]:
    """Fill in `totals` and `scale` of micro-batches.

    Args:
        batches: prepared on the host.
        window: micro-batches per optimiser step; the last step may hold fewer.
        world_size: processes that train together; above 1 the process group must be up.

    Yields:
        The same batches.
    """
    stream = iter(batches)
    while step := list(islice(stream, window)):
        names = list(step[0].counts)
        sums = [sum(batch.counts[name] for batch in step) for name in names]
        if world_size > 1:
            shared = torch.tensor(sums, dtype=torch.float64)
            dist.all_reduce(shared)
            sums = shared.tolist()
        for batch in step:
            batch.totals = dict(zip(names, sums, strict=True))
            # The trainer divides by `window` also in a short last step, and by the processes.
            batch.scale = float(window * world_size)
            yield batch
