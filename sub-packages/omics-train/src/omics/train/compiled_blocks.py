"""How the blocks of a model are computed in training: attention, machine code, recomputation.

- `torch.compile` block by block: one graph serves all of them, in seconds, and nearly all of the gain is within a
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
def blocks_in_training(
    model: OmicsModel, *, backend: str, compiled: bool, recomputed: bool
) -> Iterator[None]:
    """Compute the blocks of a model in another way within a `with` statement.

    Args:
        model: that is trained.
        backend: of softmax attention.
        compiled: whether blocks become machine code; batches should have few shapes.
        recomputed: whether a block keeps nothing but its input for the backward pass.
    """
    encoder = model.encoder
    encoder.use_backend(backend)
    encoder.recomputes = recomputed
    if compiled:
        encoder.compiled = [torch.compile(layer, dynamic=False) for layer in encoder.layers]
    try:
        yield
    finally:
        # Inference has a shape of its own in each batch, and chooses for its own device.
        encoder.compiled, encoder.recomputes = None, False
        encoder.use_backend("auto")
