"""Filler cells behind those of a batch, so that a kernel always sees the same number of rows.

- Inference fills small batches up: on a CPU few rows are computed by other kernels than many.
- Training fills a budget of tokens up: compiled code is made once for its shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.tokenizers import TokenBatch

Array = np.ndarray[Any, np.dtype[Any]]


def with_filler(batch: TokenBatch, *, num_tokens: int, num_cells: int, longest: int) -> TokenBatch:
    """Return numpy tokens with filler cells behind them; labels and targets are left behind.

    Args:
        batch: whose cells stay as they are.
        num_tokens: of the result; not fewer than those of the batch.
        num_cells: of the result; more than those of the batch where tokens are added. Where they do
            not suffice there are more.
        longest: tokens of a filler cell at most.
    """
    extra = num_tokens - batch.num_tokens
    num_extra_cells = max(-(-extra // longest), num_cells - len(batch))
    if num_extra_cells <= 0:
        return batch
    fields = {}
    for name, values in batch.fields.items():
        # Any valid token does: 0 is an id of every vocabulary, and -1 stands for it among values.
        filler = np.full(extra, -1 if values.dtype.kind == "f" else 0, values.dtype)
        fields[name] = np.concatenate([values, filler])
    ends = longest * np.arange(1, num_extra_cells + 1, dtype=np.int64)
    return TokenBatch(
        fields=fields,
        offsets=np.concatenate([batch.offsets, batch.num_tokens + np.minimum(ends, extra)]),
        rows=np.concatenate([batch.rows, np.full(num_extra_cells, -1, np.int64)]),
    )
