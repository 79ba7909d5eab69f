"""Matrices of numpy arrays (in memory, or mapped from files) as `Matrix` of a source.

- They go through the same blocks, samples and checks as those of HDF5 files: an array takes the
  place of a dataset, with no chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.sources.matrix_blocks import MatrixSource

if TYPE_CHECKING:
    from pathlib import Path

Array = np.ndarray[Any, np.dtype[Any]]


class ArrayDataset:
    """A numpy array with what the blocks of a matrix ask of a dataset.

    Args:
        array: in memory or mapped; it is read only where it is sliced.
        name: for messages.
    """

    chunks = None

    def __init__(self, array: Array, name: str) -> None:
        self._array = array
        self.name = name
        self.dtype = array.dtype
        self.shape = array.shape
        self.ndim = array.ndim
        self.size = array.size
        self.nbytes = array.nbytes

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return int(self.shape[0])

    def __getitem__(self, where: Any) -> Array:
        """Return the selected part, without a copy where numpy needs none."""
        return np.asarray(self._array[where])


def dense_matrix(values: Array, *, path: Path, location: str) -> MatrixSource:
    """Return a dense array as a matrix.

    Args:
        values: [cells, genes] numbers, in any order of memory.
        path: the file it came from, for messages.
        location: its name in the source.
    """
    num_cells, num_genes = values.shape
    return MatrixSource(
        path=path,
        location=location,
        encoding="dense",
        shape=(int(num_cells), int(num_genes)),
        values=ArrayDataset(values, location),
    )


def csr_matrix_of(
    values: Array,
    indices: Array,
    indptr: Array | ArrayDataset,
    *,
    num_genes: int,
    path: Path,
    location: str,
) -> MatrixSource:
    """Return three arrays as a matrix stored cell by cell (CSR); nothing is checked yet.

    Args:
        values: [nnz] numbers.
        indices: [nnz] integers, the gene of each value.
        indptr: [cells + 1] integers, where each cell begins; an array or what reads like one.
        num_genes: columns.
        path: the file they came from, for messages.
        location: the name of the matrix in the source.
    """
    if not isinstance(indptr, ArrayDataset):
        indptr = ArrayDataset(indptr, f"{location} indptr")
    return MatrixSource(
        path=path,
        location=location,
        encoding="csr",
        shape=(max(len(indptr) - 1, 0), num_genes),
        values=ArrayDataset(values, f"{location} values"),
        indices=ArrayDataset(indices, f"{location} indices"),
        indptr=indptr,
    )
