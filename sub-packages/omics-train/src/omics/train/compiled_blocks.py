"""Machine code for the blocks of a model while it is trained (`torch.compile`).

- Block by block: one graph serves all of them, in seconds, and nearly all of the gain is within a
  block. What is around them has other shapes in each batch.
- Attention cell by cell (`loop`) stays as it is: its code would depend on the lengths of the cells.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omics.models import OmicsModel


@contextmanager
def compiled_blocks(model: OmicsModel, *, enabled: bool) -> Iterator[None]:
    """Run the blocks of a model as machine code within a `with` statement.

    Args:
        model: whose batches have few shapes.
        enabled: whether to do anything.
    """
    if not enabled:
        yield
        return
    encoder = model.encoder
    encoder.compiled = [torch.compile(layer, dynamic=False) for layer in encoder.layers]
    try:
        yield
    finally:
        # Inference has a shape of its own in each batch.
        encoder.compiled = None
