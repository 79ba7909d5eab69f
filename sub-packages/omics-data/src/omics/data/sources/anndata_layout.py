"""The layout of AnnData, whatever holds it: X, raw.X and layers, with their tables.

- `.h5ad` and zarr hold the same tree of groups, arrays and attributes; what they share is here.
  A node with a `shape` is an array, any other one is a group of nodes.
- AnnData itself decodes the tables, so their types are what users see.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError
from omics.data.sources.found_matrices import FoundMatrices
from omics.data.sources.hdf5_safety import readable
from omics.data.sources.matrix_blocks import Encoding, MatrixSource
from omics.data.sources.protocol import FileSource
from omics.data.sources.table_columns import plain_table, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

MAX_TABLE_BYTES = 8 * 2**30


class AnnDataLayout(FoundMatrices, FileSource):
    """An open file or folder in the layout of AnnData.

    Args:
        path: of the file or folder.
        root: its open root group.

    Attributes:
        path: of the file or folder.
        name: the path as text.
        root: the open root group.
        files: the files it is read from.
        num_cells: rows of obs.
        num_genes: rows of var (raw.var may have others).
        matrices: every matrix that may hold counts, by location: `X`, `raw.X`, `layers/NAME`.
        unreadable: further matrices, `{location: why}`.

    Raises:
        InputDataError: obs, var or every matrix is missing, or a table has no index.
    """

    format_name = "AnnData"

    def __init__(self, path: Path, root: Any) -> None:
        self.path = path
        self.name = str(path)
        self.files = (path,)
        self.root = root
        for name in ("obs", "var"):
            if name not in root:
                raise InputDataError(self.missing_table(name))
        self._obs_length = _table_length(root["obs"], path)
        self._var_length = _table_length(root["var"], path)
        self.num_cells = self._obs_length
        self.num_genes = self._var_length
        self.matrices: dict[str, MatrixSource] = {}
        self.unreadable: dict[str, str] = {}
        self._find_matrices()
        if not self.matrices and not self.unreadable:
            raise InputDataError(
                f"{path} has obs and var tables but no matrix: neither X, raw.X nor layers."
            )

    def missing_table(self, name: str) -> str:
        """Return the message for a root without obs or var.

        Args:
            name: of the table that is missing.
        """
        return f"{self.path} has no table {name!r}, so it was not written by AnnData."

    # --- matrices --------------------------------------------------------------------------------

    def matrix(self, location: str) -> MatrixSource:
        """Return a matrix by its location.

        Args:
            location: `X`, `raw.X` or `layers/NAME`.

        Raises:
            UnknownNameError: there is no such matrix; the message lists those there are.
            InputDataError: it is there but cannot be read.
        """
        found: MatrixSource = super().matrix({"raw/X": "raw.X"}.get(location, location))
        return found

    def matrix_source(self, **parts: Any) -> MatrixSource:
        """Make the matrix of its parts.

        Args:
            parts: what `MatrixSource` takes.
        """
        return MatrixSource(**parts)

    def _find_matrices(self) -> None:
        root = self.root
        found: dict[str, Any] = {}
        if "X" in root:
            found["X"] = root["X"]
        layers = root.get("layers")
        for name in layers if layers is not None else ():
            found[f"layers/{name}"] = layers[name]
        raw = self._raw("X")
        if raw is not None:
            found["raw.X"] = raw
        for location, node in found.items():
            if node.attrs.get("encoding-type") != "null":
                self.add_matrix(location, partial(self._matrix_at, location, node))

    def _raw(self, name: str) -> Any:
        for path in (f"raw/{name}", f"raw.{name}"):
            if path in self.root:
                return self.root[path]
        return None

    def _matrix_at(self, location: str, node: Any) -> MatrixSource:
        if is_array(node):
            if len(node.shape) != 2:
                raise InputDataError(f"it has {len(node.shape)} dimensions instead of 2")
            encoding: Encoding = "dense"
            shape, parts = node.shape, {"values": node}
        else:
            encoding, shape, parts = _sparse_parts(node)
        num_genes = self._table_genes(location)
        if tuple(shape) != (self.num_cells, num_genes):
            raise InputDataError(
                f"its shape is {shape[0]:,} x {shape[1]:,}, but the tables have "
                f"{self.num_cells:,} cells and {num_genes:,} genes"
            )
        return self.matrix_source(
            path=self.path,
            location=location,
            encoding=encoding,
            shape=(int(shape[0]), int(shape[1])),
            **parts,
        )

    def _table_genes(self, location: str) -> int:
        if location != "raw.X":
            return self._var_length
        table = self._raw("var")
        if table is None:
            raise InputDataError("there is no raw/var table beside it")
        return _table_length(table, self.path)

    # --- tables ----------------------------------------------------------------------------------

    @property
    def obs_columns(self) -> list[str]:
        """The names of the columns of obs, read without their values."""
        node = self.root["obs"]
        if is_array(node):
            return list(node.dtype.names[1:])
        order = node.attrs.get("column-order", [])
        return [text_of(name) for name in order] if np.ndim(order) == 1 else []

    def table_bytes(self) -> int:
        """Return how many bytes the obs and var tables take in memory, text not counted."""
        return _declared_bytes(self.root["obs"]) + _declared_bytes(self.root["var"])

    def obs(self) -> pd.DataFrame:
        """Return the cell table; its index holds the cell names.

        Raises:
            InputDataError: the table is damaged or has a column that Parquet cannot hold.
        """
        return self._table(self.root["obs"], "obs", self.num_cells)

    def var(self, location: str = "X") -> pd.DataFrame:
        """Return the gene table that belongs to a matrix; its index holds the gene ids.

        Args:
            location: `raw.X` has a table of its own.

        Raises:
            InputDataError: the table is damaged or has a column that Parquet cannot hold.
        """
        if location == "raw.X":
            return self._table(self._raw("var"), "raw.var", self._table_genes(location))
        return self._table(self.root["var"], "var", self._var_length)

    def read_table(self, node: Any) -> pd.DataFrame:
        """Return a table as AnnData decodes it.

        Args:
            node: a group of columns.
        """
        return read_dataframe(node)

    def _table(self, node: Any, name: str, length: int) -> pd.DataFrame:
        total = _declared_bytes(node)
        if total > MAX_TABLE_BYTES:
            raise InputDataError(
                f"The table {name} of {self.path} declares {total:,} bytes; tables above "
                f"{MAX_TABLE_BYTES:,} bytes are not read. Drop columns that are not needed."
            )
        with readable(f"The table {name} of {self.path}"):
            frame = self.read_table(node)
        if len(frame) != length:
            raise InputDataError(
                f"The table {name} of {self.path} has {len(frame):,} rows where {length:,} belong."
            )
        return plain_table(frame, f"{name} of {self.path}")


def is_array(node: Any) -> bool:
    """Say whether a node is an array, not a group.

    Args:
        node: of HDF5 or zarr.
    """
    return hasattr(node, "shape")


def read_dataframe(node: Any) -> pd.DataFrame:
    """Return a group of columns as AnnData decodes it.

    Args:
        node: a group of HDF5.

    Raises:
        TypeError: the group holds something else.
    """
    import pandas as pd
    from anndata.io import read_elem

    # Old encodings make AnnData warn that it may stop reading them; they are read here and now.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = read_elem(node)
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"it is a {type(frame).__name__}, not a data frame")
    return frame


def _declared_bytes(node: Any) -> int:
    return sum(int(array.size or 0) * int(array.dtype.itemsize) for array in _arrays(node))


def _arrays(node: Any) -> Iterator[Any]:
    # A hard link of HDF5 can lead back to where it came from: every node counts once.
    stack, seen = [node], set()
    while stack:
        found = stack.pop()
        if found in seen:
            continue
        seen.add(found)
        if is_array(found):
            yield found
        else:
            stack.extend(found[name] for name in found)


def _sparse_parts(node: Any) -> tuple[Encoding, tuple[int, int], dict[str, Any]]:
    attributes = node.attrs
    named = text_of(attributes.get("encoding-type", attributes.get("h5sparse_format", "")))
    if named.removesuffix("_matrix") not in {"csr", "csc"}:
        raise InputDataError(f"its encoding {named!r} is not csr_matrix, csc_matrix or an array")
    encoding: Encoding = "csr" if named.startswith("csr") else "csc"
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    if shape is None or len(shape) != 2:
        raise InputDataError("it has no shape")
    parts: dict[str, Any] = {}
    for ours, theirs in (("values", "data"), ("indices", "indices"), ("indptr", "indptr")):
        part = node.get(theirs)
        if part is None or not is_array(part) or len(part.shape) != 1:
            raise InputDataError(f"it has no list {theirs!r}")
        parts[ours] = part
    return encoding, (int(shape[0]), int(shape[1])), parts


def _table_length(node: Any, path: Path) -> int:
    if is_array(node):
        if node.dtype.names and len(node.shape) == 1:
            return int(node.shape[0])
        raise InputDataError(f"{path}: {node.name} is an array, not a table.")
    index = text_of(node.attrs.get("_index", "_index"))
    column = node.get(index)
    if column is not None and not is_array(column):
        # A nullable string array keeps its values in a group.
        column = column.get("values", column.get("codes"))
    if column is None or not is_array(column) or len(column.shape) != 1:
        raise InputDataError(f"{path}: the table {node.name} has no index column {index!r}.")
    return int(column.shape[0])
