"""An AnnData zarr store (format 2 or 3; a folder or a zip archive) as a source of cells.

- Zarr returns zeros for a chunk whose file is lost, without a word. Lost chunks of sparse matrices
  and of text are found out and refused. Writers leave out chunks of zeros, so an index or offset
  chunk that is not there is accepted where zeros fit the structure of the matrix exactly.
- A dense matrix with a chunk missing is refused: nothing tells zeros from damage there.
- Columns of numbers and categories are the one place where a lost chunk can look like zeros; a
  categorical without any chunk is refused as soon as it has two categories.
- Tables are decoded here and handed to AnnData in memory, so their types are what users see.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError
from omics.data.sources.anndata_layout import AnnDataLayout, is_array, read_dataframe
from omics.data.sources.dense_bands import DenseMatrix
from omics.data.sources.hdf5_safety import readable
from omics.data.sources.matrix_blocks import MatrixSource
from omics.data.sources.table_columns import listed
from omics.data.sources.zarr_codecs import input_error
from omics.data.sources.zarr_files import ZarrFiles, is_zarr, open_files
from omics.data.sources.zarr_nodes import ZarrArray, ZarrGroup, open_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]


def recognises(path: str | Path) -> bool:
    """Say whether this is a folder, or a zip archive, with zarr metadata at its root.

    Args:
        path: anything.
    """
    return is_zarr(Path(path))


@contextlib.contextmanager
def open_zarr(path: str | Path) -> Iterator[SourceZarr]:
    """Open an AnnData zarr store for reading.

    Args:
        path: the folder, or a zip archive of it.

    Yields:
        The source, usable until the end of the block.

    Raises:
        MissingPathError: there is nothing at the path.
        InputDataError: it is no AnnData store, is refused for safety, or files of it are missing.
    """
    path = Path(path)
    with open_files(path) as files:
        with readable(f"{path}"):
            source = SourceZarr(path, files)
        yield source


class SourceZarr(AnnDataLayout):
    """An open AnnData zarr store; see `AnnDataLayout`.

    Args:
        path: the folder or archive.
        files: its listed files.
    """

    format_name = "AnnData zarr"

    def __init__(self, path: Path, files: ZarrFiles) -> None:
        self._listed = files
        super().__init__(path, open_tree(files))

    def missing_table(self, name: str) -> str:
        """Return the message for a store without obs or var.

        Args:
            name: of the table that is missing.
        """
        return (
            f"{self.path} is a zarr store but not one of AnnData: it has no table {name!r}. Of what "
            f"AnnData writes it holds {listed(self.root)}. The table of a SpatialData store is in a "
            f"folder below: give that."
        )

    def stamp(self) -> Any:
        """Return a digest of names, sizes and times of change of the files."""
        return self._listed.stamp()

    def fingerprint(self) -> dict[str, Any]:
        """Return name, size and XXH3 (128 bit) of the files that hold matrices and tables."""
        size, digest = self._listed.digest()
        return {"files": [self.path.name], "bytes": size, "xxh3_128": digest}

    def matrix_source(self, **parts: Any) -> MatrixSource:
        """Make a matrix of its parts, after a look for lost chunks.

        Args:
            parts: what `MatrixSource` takes.

        Raises:
            InputDataError: chunks are missing that cannot be zeros.
        """
        if parts["encoding"] == "dense":
            absent = parts["values"].absent_files()
            if absent:
                raise InputDataError(
                    f"{len(absent):,} of its chunks are not there, the first at {absent[0]}. They "
                    f"may be lost, or left out because they hold zeros, which nothing tells apart "
                    f"in a dense matrix: with AnnData, make it sparse and write the store again"
                )
            return DenseMatrix(**parts)
        matrix = MatrixSource(**parts)
        _check_absent(matrix)
        return matrix

    def read_table(self, node: Any) -> pd.DataFrame:
        """Return a table as AnnData decodes it.

        Args:
            node: a group of columns.
        """
        import h5py

        if is_array(node):
            raise TypeError("it is an array, not a data frame")
        # The newest layout puts no limit on the size of attributes (the list of columns).
        with h5py.File("table", "w", driver="core", backing_store=False, libver="latest") as memory:
            group = memory.create_group("table")
            self._copy(node, group)
            return read_dataframe(group)

    def _copy(self, node: ZarrGroup, into: Any) -> None:
        """Copy a group and everything in it to a file in memory."""
        _copy_attributes(node, into)
        self._check_codes(node)
        for name in node:
            child = node[name]
            if is_array(child):
                absent = child.absent_files() if child.dtype == object else []
                if absent:
                    advice = "; if it holds nothing but empty texts, drop it and write it again"
                    raise self._lost(child, absent[0], advice)
                _copy_array(child, name, into)
                continue
            if "encoding-type" not in child.attrs and not name.startswith("__"):
                raise input_error(self.path, child.name, "its attributes are not there")
            self._copy(child, into.create_group(name))

    def _check_codes(self, node: ZarrGroup) -> None:
        codes, categories = node.get("codes"), node.get("categories")
        if not isinstance(codes, ZarrArray) or not isinstance(categories, ZarrArray):
            return
        absent = codes.absent_files()
        files = -(-codes.size // codes.file_shape[0]) if codes.ndim == 1 else 0
        if absent and len(absent) == files and categories.size > 1:
            raise self._lost(codes, absent[0])

    def _lost(self, array: ZarrArray, at: tuple[int, ...], advice: str = "") -> InputDataError:
        return input_error(
            self.path,
            f"{array.name} (chunk {'.'.join(map(str, at))})",
            f"its file is not there{advice}",
        )


def _copy_attributes(node: Any, into: Any) -> None:
    import h5py

    for name, value in node.attrs.items():
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            into.attrs[name] = np.array(value, dtype=h5py.string_dtype())
        elif isinstance(value, str | bool | int | float | list):
            into.attrs[name] = value


def _copy_array(array: ZarrArray, name: str, into: Any) -> None:
    import h5py

    values = array[...]
    is_text = values.dtype.kind in "OU"
    dtype = h5py.string_dtype() if is_text else values.dtype
    data = values.astype(object) if is_text else values
    _copy_attributes(array, into.create_dataset(name, data=data, dtype=dtype))


def _check_absent(matrix: MatrixSource) -> None:
    """Refuse a sparse matrix that lacks a chunk which cannot have been all zeros."""
    for name, array in (
        ("values", matrix.values),
        ("offsets", matrix.indptr),
        ("indices", matrix.indices),
    ):
        absent = [at[0] for at in array.absent_files()]
        if not absent:
            continue
        # Stored values are not zeros throughout a chunk; offsets and indices can be.
        fits = (name == "offsets" and _offsets_may_be_zero(matrix, absent)) or (
            name == "indices" and _indices_may_be_zero(matrix, absent)
        )
        if not fits:
            raise InputDataError(
                f"{len(absent):,} chunks of its {name} are not there, the first is number "
                f"{absent[0]}; zarr would return zeros for them. Copy or download the store again"
            )


def _offsets_may_be_zero(matrix: MatrixSource, absent: list[int]) -> bool:
    """Offsets are zero until the first entry: at the start, and nowhere else."""
    if absent != list(range(len(absent))):
        return False
    first = len(absent) * matrix.indptr.file_shape[0]
    if first >= len(matrix.indptr):
        return bool(matrix.values.size == 0)
    length = int(matrix.read(matrix.indptr, slice(first, first + 1))[0])
    if not 0 <= length <= _across(matrix):
        return False
    # Entries of several rows taken for one are not in ascending order.
    indices = matrix.read(matrix.indices, slice(0, length)).astype(np.int64)
    return bool((np.diff(indices) > 0).all())


def _indices_may_be_zero(matrix: MatrixSource, absent: list[int]) -> bool:
    """Every entry of the chunk is the first of its row: index 0 occurs once in a row."""
    offsets = matrix.read(matrix.indptr, slice(None)).astype(np.int64)
    length = matrix.indices.file_shape[0]
    starts = offsets[:-1][np.diff(offsets) > 0]
    for chunk in absent:
        places = np.arange(chunk * length, min((chunk + 1) * length, int(matrix.indices.size)))
        if not np.isin(places, starts).all():
            return False
    return True


def _across(matrix: MatrixSource) -> int:
    return matrix.shape[1] if matrix.encoding == "csr" else matrix.shape[0]
