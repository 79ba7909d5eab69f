"""Token batches cut and joined so that each holds at most so many tokens, in the same order.

- What reads cells hands on what is convenient to read; what computes wants a number of tokens that
  fits its memory. A cell is never split: one that is longer than the limit is a batch of its own.
- Lengths are those of the tokens that the model will see, so neither preprocessing that cuts nor
  preprocessing that adds genes has to be known here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.tokenizers import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Array = np.ndarray[Any, np.dtype[Any]]


def packed(
    batches: Iterable[TokenBatch],
    *,
    max_tokens: int,
    max_cells: int | None = None,
    max_area: int | None = None,
) -> Iterator[TokenBatch]:
    """Yield the same cells in the same order, in batches within limits.

    Args:
        batches: numpy token batches; labels and targets are left behind.
        max_tokens: tokens of a batch; a cell counts for at least one.
        max_cells: cells of a batch; None for no limit.
        max_area: cells times the tokens of the longest of them, where a backend puts cells side by
            side in a rectangle; None for no limit.
    """
    waiting: list[TokenBatch] = []
    tokens = cells = longest = 0
    for batch in batches:
        lengths = np.maximum(batch.lengths, 1)
        start = 0
        while start < len(batch):
            sums = tokens + np.cumsum(lengths[start:])
            fitting = int(np.searchsorted(sums, max_tokens, side="right"))
            if max_cells is not None:
                fitting = min(fitting, max_cells - cells)
            if max_area is not None:
                widths = np.maximum(np.maximum.accumulate(lengths[start:]), longest)
                areas = widths * np.arange(cells + 1, cells + 1 + len(widths))
                fitting = min(fitting, int(np.searchsorted(areas, max_area, side="right")))
            if fitting < 1 and waiting:
                yield _joined(waiting)
                waiting, tokens, cells, longest = [], 0, 0, 0
                continue
            end = start + max(fitting, 1)
            waiting.append(_cells(batch, start, end))
            tokens += int(lengths[start:end].sum())
            cells += end - start
            longest = max(longest, int(lengths[start:end].max()))
            start = end
    if waiting:
        yield _joined(waiting)


def _cells(batch: TokenBatch, start: int, end: int) -> TokenBatch:
    first, last = int(batch.offsets[start]), int(batch.offsets[end])
    return TokenBatch(
        fields={name: values[first:last] for name, values in batch.fields.items()},
        offsets=batch.offsets[start : end + 1] - first,
        rows=batch.rows[start:end],
    )


def _joined(parts: Sequence[TokenBatch]) -> TokenBatch:
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([part.lengths for part in parts])
    return TokenBatch(
        fields={
            name: np.concatenate([part.fields[name] for part in parts]) for name in parts[0].fields
        },
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
        rows=np.concatenate([part.rows for part in parts]),
    )
