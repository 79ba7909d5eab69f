"""Reads stores as sources: to merge them, to change their genes, or to write another layout.

- A collection of stores (`collection.json`) is a source as well, with its genes in common.
- Rows are taken in ranges, verified as every read of a store is.
- The digest of a store is its fingerprint and its stamp: it names every byte.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UnknownNameError, nearest
from omics.data.sources.matrix_blocks import BLOCK_ENTRIES, row_ends
from omics.data.sources.matrix_sample import MAX_ENTRIES, NUM_PLACES, ValueSample
from omics.data.storage.store_format import CURRENT_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from omics.data.sources.protocol import Block, ValueStorage
    from omics.data.storage.store import CellStore
    from omics.data.storage.store_collection import StoreCollection

Array = np.ndarray[Any, np.dtype[Any]]

# A gene position and a count as they are held in memory.
_ENTRY_BYTES = 8


def recognises(path: str | Path) -> bool:
    """Say whether this is the folder of a store, or the file of a collection."""
    from omics.data.storage.store_collection import is_collection

    return (Path(path) / CURRENT_NAME).is_file() or is_collection(path)


@contextlib.contextmanager
def open_store_source(path: str | Path, *, verify: str = "first") -> Iterator[SourceStore]:
    """Open a store, or a collection of stores, as a source.

    Args:
        path: the store folder, or the file of the collection.
        verify: see `open_store`.

    Yields:
        The source.

    Raises:
        CorruptStoreError: the store is damaged.
        InputDataError: a member of the collection has changed.
    """
    from omics.data.storage.store import open_store
    from omics.data.storage.store_collection import open_collection

    folder = Path(path).is_dir()
    store = open_store(path, verify=verify) if folder else open_collection(path, verify=verify)
    yield SourceStore(str(path), store)


class SourceStore:
    """An open store as a source.

    Attributes:
        name: the path as text.
        format_name: `omics store`.
        num_cells: rows.
        num_genes: columns.
        matrices: the only one, `X`.
        unreadable: nothing.
    """

    format_name = "omics store"

    def __init__(self, name: str, store: CellStore | StoreCollection) -> None:
        self.name = name
        self._store = store
        self.num_cells, self.num_genes = store.shape
        self.matrices = {"X": StoreMatrix(name, store)}
        self.unreadable: dict[str, str] = {}

    @property
    def obs_columns(self) -> list[str]:
        """The names of the columns of obs, read without their values."""
        return list(self._store.obs.columns)

    def matrix(self, location: str) -> StoreMatrix:
        """Return the matrix; a store has only `X`."""
        if location not in self.matrices:
            raise UnknownNameError(
                f"{self.name} is a store and has no matrix {location!r}.{nearest(location, ['X'])}"
            )
        return self.matrices[location]

    def obs(self) -> pd.DataFrame:
        """Return the cell table as it is stored."""
        return self._store.obs.to_pandas()

    def var(self, location: str = "X") -> pd.DataFrame:
        """Return the gene table as it is stored."""
        self.matrix(location)
        return self._store.to_anndata(np.empty(0, np.int64)).var

    def table_bytes(self) -> int:
        """Return about how many bytes the tables take in memory, text not counted."""
        columns = len(self._store.obs.columns) + len(self._store.genes.columns)
        return 8 * columns * max(self.num_cells, self.num_genes)

    def remarks(self, _location: str) -> tuple[str, ...]:
        """Return nothing: a store is what it says."""
        return ()

    def stamp(self) -> Any:
        """Return the digest of the open store: what is open never changes."""
        return self._store.digest

    def fingerprint(self) -> dict[str, Any]:
        """Return the digest, and where the store itself came from."""
        return {
            "bytes": self._store.num_bytes,
            "store_digest": self._store.digest,
            "provenance": self._store.provenance,
        }


class StoreMatrix:
    """The matrix of a store.

    Attributes:
        location: `X`.
        encoding: `csr`.
    """

    location = "X"
    encoding = "csr"

    def __init__(self, name: str, store: CellStore | StoreCollection) -> None:
        self._name = name
        self._store = store
        self.shape = store.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values as they are read."""
        return self._store.count_dtype

    @property
    def stored_entries(self) -> int:
        """The number of stored values."""
        return self._store.num_entries

    def error(self, found: str, advice: str = "") -> InputDataError:
        """Return the error for something wrong in this matrix."""
        return InputDataError(f"{self.location} of {self._name}: {found}. {advice}".rstrip())

    def blocks(
        self,
        storage: ValueStorage = "counts",
        *,
        scratch: Path | None = None,
        first_cell: int = 0,
    ) -> Iterator[Block]:
        """Stream the cells in order, at most `BLOCK_ENTRIES` entries (or one cell) at a time.

        Args:
            storage: `counts` yields uint32 values and refuses others; `float` float32 values.
            scratch: not needed here.
            first_cell: leave out the cells before this one.

        Yields:
            indptr int64 [n + 1] from 0, genes uint32 [nnz], values [nnz].

        Raises:
            InputDataError: a value is no count.
            CorruptStoreError: a touched chunk is damaged.
        """
        begin = first_cell
        for end in row_ends(self._store.lengths[first_cell:], BLOCK_ENTRIES) + first_cell:
            batch = self._store.take(np.arange(begin, end))
            values = batch.counts
            if storage == "counts" and values.dtype.kind == "f":
                with np.errstate(invalid="ignore"):
                    counts = values.astype(np.uint32)
                wrong = np.flatnonzero(counts != values)
                if len(wrong):
                    row = begin + int(np.searchsorted(batch.indptr, wrong[0], side="right")) - 1
                    raise self.error(
                        f"the value {values[wrong[0]]} of cell {row} is no raw count",
                        "Choose a store of counts, or keep the values as they are with --counts X "
                        "--allow-non-counts.",
                    )
                values = counts
            kind = np.uint32 if storage == "counts" else np.float32
            yield batch.indptr, batch.genes.astype(np.uint32), values.astype(kind, copy=False)
            begin = int(end)

    def sample(self, budget: int) -> ValueSample | None:
        """Return the values of cells from several places.

        Args:
            budget: how many bytes may be read.

        Returns:
            The sample; None if one cell alone is larger than the budget.
        """
        started = time.perf_counter()
        lengths = self._store.lengths
        entries = min(budget // _ENTRY_BYTES, MAX_ENTRIES)
        ends = np.cumsum(lengths)
        complete = bool(len(ends) == 0 or ends[-1] <= entries)
        if complete:
            rows = np.arange(len(lengths))
        else:
            places = np.arange(NUM_PLACES) * len(lengths) // NUM_PLACES
            before = ends[places] - lengths[places]
            lasts = np.searchsorted(ends, before + entries // NUM_PLACES, side="right")
            rows = np.unique(np.concatenate([*map(np.arange, places, lasts)]))
            if not len(rows):
                return None
        batch = self._store.take(rows)
        return ValueSample(
            values=batch.counts,
            indptr=batch.indptr,
            num_places=len(batch.counts),
            complete=complete,
            bytes_read=len(batch.counts) * _ENTRY_BYTES,
            seconds=time.perf_counter() - started,
        )

    def count_empty(self, budget: int) -> int | None:
        """Return the number of cells without a value; None if reading the offsets costs more."""
        if 8 * self.shape[0] > budget:
            return None
        return int(np.count_nonzero(self._store.lengths == 0))
