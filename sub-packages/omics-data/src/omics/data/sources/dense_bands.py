"""A dense matrix whose chunks may lie across many cells, as loom files and zarr stores have them.

- Bands of cells are read in their order where that decodes each chunk about once. Where a chunk
  holds many more cells than fit in a block, it is decoded once, tile by tile, and its entries are
  brought into the order of cells on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.sources.entry_spool import EntrySpool
from omics.data.sources.matrix_blocks import DENSE_BLOCK_BYTES, MatrixSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from omics.data.sources.protocol import Block

Array = np.ndarray[Any, np.dtype[Any]]

# How often a chunk may be decoded before sorting on disk is the shorter way.
MAX_DECODES = 4


@dataclass(frozen=True, slots=True)
class Transposed:
    """A matrix [genes, cells] seen as [cells, genes], read by slices.

    Attributes:
        array: of HDF5.
    """

    array: Any

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, genes."""
        return int(self.array.shape[1]), int(self.array.shape[0])

    @property
    def chunks(self) -> tuple[int, int] | None:
        """Shape of a chunk, cells first; None where there are none."""
        chunks = self.array.chunks
        return None if chunks is None else (int(chunks[1]), int(chunks[0]))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return np.dtype(self.array.dtype)

    @property
    def name(self) -> str:
        """Of the array."""
        return str(self.array.name)

    @property
    def ndim(self) -> int:
        """Two."""
        return 2

    @property
    def size(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        """Return the number of cells."""
        return self.shape[0]

    def __getitem__(self, where: Any) -> Array:
        """Return values [cells, genes] by one slice, or a slice of each axis."""
        cells, genes = where if isinstance(where, tuple) else (where, slice(None))
        return np.ascontiguousarray(self.array[genes, cells].T)


class DenseMatrix(MatrixSource):
    """A dense matrix [cells, genes] of any chunks; see `MatrixSource`."""

    def stored_blocks(self, *, scratch: Path | None = None, first_cell: int = 0) -> Iterator[Block]:
        """Stream the matrix in order of cells, each chunk decoded about once.

        Args:
            scratch: a folder with room for the entries, 32 bytes each, where chunks hold many
                more cells than a block.
            first_cell: leave out the cells before this one.

        Yields:
            indptr, genes and values of whole cells.

        Raises:
            InputDataError: the matrix is damaged.
        """
        if not self._needs_tiles():
            yield from super().stored_blocks(scratch=scratch, first_cell=first_cell)
            return
        self.check_structure()
        wide = np.dtype(np.int64 if self.dtype.kind in "bi" else np.float64)
        with EntrySpool(*self.shape, dtype=wide, scratch=scratch) as spool:
            for entries in self._tiles():
                spool.append(*entries)
            sorted_matrix = spool.matrix(self.path, self.location)
            yield from sorted_matrix.stored_blocks(scratch=scratch, first_cell=first_cell)

    def _needs_tiles(self) -> bool:
        if self.values.chunks is None:
            return False
        return bool(min(self.values.chunks[0], self.shape[0]) > MAX_DECODES * self.dense_rows)

    def _tiles(self) -> Iterator[tuple[Array, Array, Array]]:
        """Decode every chunk once: all genes of a band of cells, some chunks at a time."""
        num_cells, num_genes = self.shape
        chunk_cells, chunk_genes = self.values.chunks
        piece = min(chunk_cells, num_cells) * chunk_genes * self.values.dtype.itemsize
        genes = chunk_genes * max(1, DENSE_BLOCK_BYTES // max(piece, 1))
        for cell in range(0, num_cells, chunk_cells):
            for gene in range(0, num_genes, genes):
                where = (
                    slice(cell, min(cell + chunk_cells, num_cells)),
                    slice(gene, min(gene + genes, num_genes)),
                )
                tile = self.read_values(where)
                rows, columns = np.nonzero(tile)
                yield rows + cell, columns + gene, tile[rows, columns]
