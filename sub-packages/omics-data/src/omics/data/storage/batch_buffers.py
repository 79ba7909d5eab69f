"""`BatchBuffers`: memory that batches are read into again and again.

- A fresh array of a megabyte costs more in page faults than filling it; a ring of these costs
  none. What a batch holds is overwritten when its buffers are used again.
- Buffers grow to the largest batch and stay; growing replaces the arrays, so a batch read before
  keeps its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, np.dtype[Any]]

_GROWTH = 1.25


def _plain(num_items: int, dtype: np.dtype[Any]) -> Array:
    return np.empty(num_items, dtype)


def pinned(num_items: int, dtype: np.dtype[Any]) -> Array:
    """Return page-locked memory, from which CUDA copies without a stop in between.

    Args:
        num_items: how many.
        dtype: of the items.
    """
    import torch

    size = max(num_items * dtype.itemsize, 1)
    memory: Array = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return memory[: num_items * dtype.itemsize].view(dtype)


class BatchBuffers:
    """The arrays of one batch at a time.

    Args:
        allocate: takes a number of items and a dtype and returns an array; `pinned` for CUDA.
    """

    def __init__(self, allocate: Callable[[int, np.dtype[Any]], Array] = _plain) -> None:
        self._allocate = allocate
        self._arrays: dict[str, Array] = {}

    def array(self, name: str, num_items: int, dtype: Any) -> Array:
        """Return an array whose content is whatever was in it before.

        Args:
            name: of the array; each name has its own memory.
            num_items: its length.
            dtype: of its items.

        Returns:
            [num_items], a view of memory that the next call with this name uses again.
        """
        wanted = np.dtype(dtype)
        held = self._arrays.get(name)
        if held is None or held.dtype != wanted or len(held) < num_items:
            grown = num_items if held is None else int(num_items * _GROWTH)
            held = self._arrays[name] = self._allocate(grown, wanted)
        return held[:num_items]
