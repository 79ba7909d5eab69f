"""What every source offers: `Source` is an open file (or database), `Matrix` one matrix of it.

- A reader is one file `source_*.py` with one class and one row in `registry.py`; the rest of the
  package knows these two protocols only.
- A matrix is asked for blocks of whole cells in their order, or for a small sample; it is never
  loaded whole unless its format leaves no choice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from omics.data.errors import InputDataError
    from omics.data.sources.matrix_sample import ValueSample

Array = np.ndarray[Any, np.dtype[Any]]
Block = tuple[Array, Array, Array]
ValueStorage = Literal["counts", "float"]

_READ_BYTES = 2**20


class Matrix(Protocol):
    """A matrix [cells, genes] of an open source."""

    @property
    def location(self) -> str:
        """`X`, `raw.X`, `layers/NAME`, or what the format calls it."""
        ...

    @property
    def encoding(self) -> str:
        """How it is stored: `csr`, `csc`, `dense`, `coordinate`, ..."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, genes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values, in native byte order."""
        ...

    @property
    def stored_entries(self) -> int | None:
        """The number of stored values, explicit zeros included; None where it is not known."""
        ...

    def blocks(
        self, storage: ValueStorage = "counts", *, scratch: Path | None = None, first_cell: int = 0
    ) -> Iterator[Block]:
        """Stream the matrix in the order of cells, validated, in bounded memory.

        Args:
            storage: `counts` refuses anything but whole numbers from 0 to 2**32 - 1; `float`
                refuses NaN and infinite values only.
            scratch: a folder with room for what has to be sorted on disk; by default the
                system's temporary one.
            first_cell: leave out the cells before this one.

        Yields:
            indptr int64 [n + 1] from 0, genes (integers [nnz], ascending within a cell, each
            once), values [nnz] (numbers, none of them zero); every cell is in one block.

        Raises:
            InputDataError: the matrix is damaged, or a value is not of the kind asked for.
        """
        ...

    def sample(self, budget: int) -> ValueSample | None:
        """Return values from several places, reading at most `budget` decompressed bytes.

        Returns:
            The sample; None when that is not possible within the budget.

        Raises:
            InputDataError: the matrix is damaged.
        """
        ...

    def count_empty(self, budget: int) -> int | None:
        """Return the number of cells without a stored value, or None if that costs more bytes."""
        ...

    def error(self, found: str, advice: str = "") -> InputDataError:
        """Return the error for something wrong in this matrix."""
        ...


class Source(Protocol):
    """An open source of cells.

    Attributes:
        name: the path or address as the user gave it, for messages.
        format_name: what it is, such as `h5ad` or `10x HDF5`.
        num_cells: rows.
        num_genes: genes of the main matrix.
        matrices: every matrix that may hold counts, by location.
        unreadable: further matrices, `{location: why}`.
    """

    name: str
    format_name: str
    num_cells: int
    num_genes: int

    @property
    def matrices(self) -> dict[str, Any]:
        """Every matrix that may hold counts, `{location: Matrix}`."""
        ...

    @property
    def unreadable(self) -> dict[str, str]:
        """Matrices that are there but cannot be read, `{location: why}`."""
        ...

    @property
    def obs_columns(self) -> list[str]:
        """The names of the columns of obs, read without their values."""
        ...

    def matrix(self, location: str) -> Matrix:
        """Return a matrix by its location; UnknownNameError lists those there are."""
        ...

    def obs(self) -> pd.DataFrame:
        """Return the cell table; its index holds the cell names as text.

        Raises:
            InputDataError: the table is damaged or has a column that Parquet cannot hold.
        """
        ...

    def var(self, location: str = "X") -> pd.DataFrame:
        """Return the gene table that belongs to a matrix; its index holds the gene ids as text."""
        ...

    def table_bytes(self) -> int:
        """Return about how many bytes the tables take in memory, text not counted."""
        ...

    def stamp(self) -> Any:
        """Return something cheap that differs once the source has been changed."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this source from another one, as plain JSON for the provenance."""
        ...

    def remarks(self, location: str) -> tuple[str, ...]:
        """Return what a person should know before a matrix is read, one sentence each."""
        ...


class FileSource:
    """The part of a source that consists of files: stamp, fingerprint and remarks.

    Attributes:
        files: all files the source is read from, in a fixed order.
        notes: what a person should know of any of its matrices, one sentence each.
    """

    files: Sequence[Path]
    notes: Sequence[str] = ()

    def remarks(self, _location: str) -> tuple[str, ...]:
        """Return the notes, which hold for every matrix."""
        return tuple(self.notes)

    def stamp(self) -> Any:
        """Return size and time of change of every file."""
        found = [path.stat() for path in self.files]
        return tuple((each.st_size, each.st_mtime_ns) for each in found)

    def fingerprint(self) -> dict[str, Any]:
        """Return names, size and XXH3 (128 bit) of the files, one after the other."""
        digest = xxhash.xxh3_128()
        size = 0
        data = memoryview(bytearray(_READ_BYTES))
        for path in self.files:
            with path.open("rb", buffering=0) as stream:
                while read := stream.readinto(data):
                    digest.update(data[:read])
                    size += read
        names = [path.name for path in self.files]
        return {"files": names, "bytes": size, "xxh3_128": digest.hexdigest()}


def from_cell(blocks: Iterator[Block], first_cell: int) -> Iterator[Block]:
    """Leave out the first cells of a stream of blocks.

    Args:
        blocks: the stream.
        first_cell: the first cell to keep.

    Yields:
        The blocks from there on.
    """
    before = 0
    for indptr, genes, values in blocks:
        cells = len(indptr) - 1
        skip = min(max(first_cell - before, 0), cells)
        before += cells
        if skip == 0:
            yield indptr, genes, values
        elif skip < cells:
            begin = int(indptr[skip])
            yield indptr[skip:] - begin, genes[begin:], values[begin:]
