"""`FlatReader`: reads ranges of a one-dimensional array of a file, past HDF5 where that is safe.

- A dataset of plain numbers without filters is one region of the file, or one for each chunk: these
  are read straight into the result, which costs half of what HDF5 needs. They are trusted only if
  HDF5 returns the same bytes at both ends of the dataset.
- Its memory is used again once nobody holds what was read into it.
- Anything else (filters, foreign byte order, chunks never written, zarr) goes through the dataset.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.storage.reused_memory import ReusedMemory

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
        self._descriptor = -1
        self._memory = ReusedMemory()
        # Item where each run of the file begins, and its place in the file; runs are contiguous.
        self._runs: tuple[Array, Array] | None = _runs(dataset)
        if self._runs is not None:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._descriptor)
            if not self._agrees():
                self._runs = None

    def _agrees(self) -> bool:
        size = len(self._dataset)
        ends = ((0, min(_COMPARED_ITEMS, size)), (max(size - _COMPARED_ITEMS, 0), size))
        return all(
            np.array_equal(
                self.read(begin, end).view(np.uint8),
                np.asarray(self._dataset[begin:end]).view(np.uint8),
            )
            for begin, end in ends
        )

    def read(self, begin: int, end: int) -> Array:
        """Return the items from `begin` up to, not including, `end`, in native byte order.

        Raises:
            OSError, RuntimeError: what h5py raises for a damaged file; OSError for a file that
                was cut short.
        """
        if self._runs is None:
            found = self._dataset[begin:end]
            return np.asarray(found.astype(found.dtype.newbyteorder("="), copy=False))
        firsts, places = self._runs
        items = self._memory.array(end - begin, self._dataset.dtype)
        memory = items.view(np.uint8).data
        run = int(np.searchsorted(firsts, begin, side="right")) - 1
        at = begin
        while at < end:
            last = end if run + 1 == len(firsts) else min(end, int(firsts[run + 1]))
            place = int(places[run]) + (at - int(firsts[run])) * items.itemsize
            size = (last - at) * items.itemsize
            self._fill(memory[:size], place)
            memory = memory[size:]
            at = last
            run += 1
        return items

    def _fill(self, memory: memoryview, place: int) -> None:
        while memory:
            count = os.preadv(self._descriptor, [memory], place)
            if count == 0:
                raise OSError("the file ends before its data does")
            memory = memory[count:]
            place += count


def _runs(dataset: Any) -> tuple[Array, Array] | None:
    """Return where the parts of a dataset lie in its file, if they are plain native numbers."""
    identifier: Any = getattr(dataset, "id", None)
    if not hasattr(identifier, "get_offset") or not hasattr(os, "preadv"):
        return None
    elsewhere = dataset.file.driver != "sec2" or dataset.external or dataset.is_virtual
    if elsewhere or dataset.size == 0:
        return None
    if dataset.dtype.kind not in "iuf" or not dataset.dtype.isnative:
        return None
    if identifier.get_create_plist().get_nfilters():
        return None
    if dataset.chunks is None:
        offset = identifier.get_offset()
        return None if offset is None else (np.zeros(1, np.int64), np.array([offset], np.int64))
    return _chunk_runs(dataset, identifier)


def _chunk_runs(dataset: Any, identifier: Any) -> tuple[Array, Array] | None:
    chunk = int(dataset.chunks[0])
    size = chunk * dataset.dtype.itemsize
    places = np.full(-(-len(dataset) // chunk), -1, np.int64)

    def note(stored: Any) -> None:
        number = stored.chunk_offset[0] // chunk
        if number < len(places) and stored.filter_mask == 0 and stored.size == size:
            places[number] = stored.byte_offset

    identifier.chunk_iter(note)
    if (places < 0).any():  # One was never written: HDF5 knows its fill value.
        return None
    # Chunks that follow each other in the file are read in one go.
    begins = np.flatnonzero(np.diff(places, prepend=places[0] - size - 1) != size)
    return begins * chunk, places[begins]
