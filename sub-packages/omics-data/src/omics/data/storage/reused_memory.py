"""`ReusedMemory`: arrays of blocks whose memory goes round, as fresh pages cost more than filling them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

Array = np.ndarray[Any, np.dtype[Any]]


class ReusedMemory:
    """Hands out arrays of about the same size; any thread may drop them."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def array(self, num_items: int, dtype: DTypeLike) -> Array:
        """Return an array that gives its memory back when it and all its slices are gone.

        Args:
            num_items: its length.
            dtype: of its items.

        Returns:
            [num_items], with whatever was in that memory before.
        """
        wanted = np.dtype(dtype)
        size = num_items * wanted.itemsize
        while self._free:
            held = self._free.pop()
            if len(held) >= size:
                break
        else:
            held = bytearray(size + size // 4)
        # The base of a slice is this array, as its own base is no array: it lives as long as they.
        items = np.frombuffer(memoryview(held)[:size], wanted)
        weakref.finalize(items, self._free.append, held)
        return items
