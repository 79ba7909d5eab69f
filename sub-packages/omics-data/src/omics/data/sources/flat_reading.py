"""`FlatReader`: reads ranges of a one-dimensional array of a file, past HDF5 where that is safe.

- A contiguous dataset of plain numbers is one region of the file: it is read straight into the
  result, which costs half of what HDF5 needs. The region is trusted only if HDF5 returns the same
  bytes at both of its ends.
- Anything else (chunks, filters, foreign byte order, zarr) goes through the dataset itself.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

Array = np.ndarray[Any, np.dtype[Any]]

_COMPARED_ITEMS = 64


class FlatReader:
    """Reads ranges of one dataset.

    Args:
        path: the file that holds it.
        dataset: one-dimensional, of h5py, zarr or numpy.

    Attributes:
        name: of the dataset in the file, for messages.
    """

    def __init__(self, path: Path, dataset: Any) -> None:
        self.name = str(getattr(dataset, "name", "its data"))
        self._dataset = dataset
        self._offset = _region(dataset)
        self._descriptor: int | None = None
        if self._offset is not None:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
            if not self._agrees():
                self._offset = None

    def _agrees(self) -> bool:
        size = len(self._dataset)
        ends = (slice(0, _COMPARED_ITEMS), slice(max(size - _COMPARED_ITEMS, 0), size))
        return all(
            np.array_equal(
                self._read_region(where.start, min(where.stop, size)).view(np.uint8),
                np.asarray(self._dataset[where]).view(np.uint8),
            )
            for where in ends
        )

    def read(self, begin: int, end: int) -> Array:
        """Return the items from `begin` up to, not including, `end`, in native byte order.

        Raises:
            OSError, RuntimeError: what h5py raises for a damaged file; OSError for a file that
                was cut short.
        """
        if self._offset is not None:
            return self._read_region(begin, end)
        found = self._dataset[begin:end]
        return np.asarray(found.astype(found.dtype.newbyteorder("="), copy=False))

    def _read_region(self, begin: int, end: int) -> Array:
        assert self._descriptor is not None
        assert self._offset is not None
        items = np.empty(end - begin, self._dataset.dtype)
        memory = memoryview(items.view(np.uint8))
        place = self._offset + begin * items.itemsize
        while memory:
            count = os.preadv(self._descriptor, [memory], place)
            if count == 0:
                raise OSError("the file ends before its data does")
            memory = memory[count:]
            place += count
        return items


def _region(dataset: Any) -> int | None:
    """Return where a dataset begins in its file if it is one region of native numbers."""
    identifier = getattr(dataset, "id", None)
    if not hasattr(identifier, "get_offset") or not hasattr(os, "preadv"):
        return None
    if dataset.file.driver != "sec2":  # Not a plain file on the disk.
        return None
    if dataset.chunks is not None or dataset.external or dataset.is_virtual:
        return None
    if dataset.dtype.kind not in "iuf" or not dataset.dtype.isnative or dataset.size == 0:
        return None
    if identifier.get_create_plist().get_nfilters():
        return None
    offset = identifier.get_offset()
    return None if offset is None else int(offset)
