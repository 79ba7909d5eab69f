"""An `.h5ad` file as a source of cells: its matrices, cell table and gene tables.

- h5py reads the matrices, so nothing is loaded whole and hostile files are refused first
  (`hdf5_safety`); AnnData reads the obs and var tables, so their types are what users see.
- The layouts of AnnData 0.7 and later and the older one (compound tables, `raw.X` at the root,
  `h5sparse_format`) are read.
- Columns that Parquet cannot hold are an error that names them; nothing is dropped or guessed.
"""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UnknownNameError, nearest
from omics.data.sources.hdf5_safety import open_safely, readable
from omics.data.sources.matrix_blocks import Encoding, MatrixSource
from omics.data.sources.protocol import FileSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

MAX_TABLE_BYTES = 8 * 2**30


def recognises(path: str | Path) -> bool:
    """Say whether this is a file; what it really is, `open` says."""
    return Path(path).is_file()


@contextlib.contextmanager
def open_h5ad(path: str | Path) -> Iterator[SourceH5ad]:
    """Open an `.h5ad` file for reading.

    Args:
        path: the file.

    Yields:
        The source, usable until the end of the block.

    Raises:
        MissingPathError: there is no such file.
        UsageError: the path is a folder.
        InputDataError: the file is not HDF5, is refused for safety, or lacks obs, var or X.
    """
    with open_safely(path) as handle:
        with readable(f"{path}"):
            source = SourceH5ad(Path(path), handle)
        yield source


class SourceH5ad(FileSource):
    """An open `.h5ad` file.

    Attributes:
        path: the file.
        name: the path as text.
        format_name: `h5ad`.
        files: the file alone.
        num_cells: rows of obs.
        num_genes: rows of var (raw.var may have others).
        matrices: every matrix that may hold counts, by location: `X`, `raw.X`, `layers/NAME`.
        unreadable: further matrices, `{location: why}`.
    """

    format_name = "h5ad"

    def __init__(self, path: Path, handle: Any) -> None:
        self.path = path
        self.name = str(path)
        self.files = (path,)
        self._handle = handle
        for name in ("obs", "var"):
            if name not in handle:
                raise InputDataError(
                    f"{path} is an HDF5 file but not an .h5ad file: it has no table {name!r}. It "
                    f"holds {_listed(list(handle))}.{_other_format(handle)}"
                )
        self._obs_length = _table_length(handle["obs"], path)
        self._var_length = _table_length(handle["var"], path)
        self.num_cells = self._obs_length
        self.num_genes = self._var_length
        self.matrices: dict[str, MatrixSource] = {}
        self.unreadable: dict[str, str] = {}
        self._find_matrices()
        if not self.matrices and not self.unreadable:
            raise InputDataError(
                f"{path} has obs and var tables but no matrix: neither X, raw.X nor layers."
            )

    # --- matrices --------------------------------------------------------------------------------

    def matrix(self, location: str) -> MatrixSource:
        """Return a matrix by its location.

        Args:
            location: `X`, `raw.X` or `layers/NAME`.

        Raises:
            UnknownNameError: there is no such matrix; the message lists those there are.
            InputDataError: it is there but cannot be read.
        """
        location = {"raw/X": "raw.X"}.get(location, location)
        if location in self.unreadable:
            raise InputDataError(
                f"{location} of {self.path} cannot be read: {self.unreadable[location]}."
            )
        if location not in self.matrices:
            raise UnknownNameError(
                f"{self.path} has no matrix {location!r}."
                + nearest(location, [*self.matrices, *self.unreadable])
            )
        return self.matrices[location]

    def _find_matrices(self) -> None:
        handle = self._handle
        found: dict[str, Any] = {}
        if "X" in handle:
            found["X"] = handle["X"]
        layers = handle.get("layers")
        for name in layers if layers is not None else ():
            found[f"layers/{name}"] = layers[name]
        raw = self._raw("X")
        if raw is not None:
            found["raw.X"] = raw
        for location, node in found.items():
            if node.attrs.get("encoding-type") == "null":
                continue
            try:
                self.matrices[location] = self._matrix_source(location, node)
            except InputDataError as error:
                self.unreadable[location] = str(error)

    def _raw(self, name: str) -> Any:
        for path in (f"raw/{name}", f"raw.{name}"):
            if path in self._handle:
                return self._handle[path]
        return None

    def _matrix_source(self, location: str, node: Any) -> MatrixSource:
        import h5py

        if isinstance(node, h5py.Dataset):
            if node.ndim != 2:
                raise InputDataError(f"it has {node.ndim} dimensions instead of 2")
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
        return MatrixSource(
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
        import h5py

        node = self._handle["obs"]
        if isinstance(node, h5py.Dataset):
            return list(node.dtype.names[1:])
        return [_text(name) for name in node.attrs.get("column-order", [])]

    def table_bytes(self) -> int:
        """Return how many bytes the obs and var tables take in memory, text not counted."""
        return _declared_bytes(self._handle["obs"]) + _declared_bytes(self._handle["var"])

    def obs(self) -> pd.DataFrame:
        """Return the cell table; its index holds the cell names.

        Raises:
            InputDataError: the table is damaged or has a column that Parquet cannot hold.
        """
        return self._table(self._handle["obs"], "obs", self.num_cells)

    def var(self, location: str = "X") -> pd.DataFrame:
        """Return the gene table that belongs to a matrix; its index holds the gene ids.

        Args:
            location: `raw.X` has a table of its own.

        Raises:
            InputDataError: the table is damaged or has a column that Parquet cannot hold.
        """
        if location == "raw.X":
            return self._table(self._raw("var"), "raw.var", self._table_genes(location))
        return self._table(self._handle["var"], "var", self._var_length)

    def _table(self, node: Any, name: str, length: int) -> pd.DataFrame:
        import h5py

        self._check_table_size(node, name)
        with readable(f"The table {name} of {self.path}"):
            if isinstance(node, h5py.Dataset):
                frame = _compound_table(node, self._handle.get("uns"))
            else:
                frame = _read_dataframe(node)
        if len(frame) != length:
            raise InputDataError(
                f"The table {name} of {self.path} has {len(frame):,} rows where {length:,} belong."
            )
        return _plain_table(frame, f"{name} of {self.path}")

    def _check_table_size(self, node: Any, name: str) -> None:
        total = _declared_bytes(node)
        if total > MAX_TABLE_BYTES:
            raise InputDataError(
                f"The table {name} of {self.path} declares {total:,} bytes; tables above "
                f"{MAX_TABLE_BYTES:,} bytes are not read. Drop columns that are not needed."
            )


def _declared_bytes(node: Any) -> int:
    import h5py

    total = 0

    def add(_name: str, item: Any) -> None:
        nonlocal total
        if isinstance(item, h5py.Dataset):
            total += int(item.size or 0) * int(item.id.get_type().get_size())

    if isinstance(node, h5py.Dataset):
        add("", node)
    else:
        node.visititems(add)
    return total


def _sparse_parts(node: Any) -> tuple[Encoding, tuple[int, int], dict[str, Any]]:
    import h5py

    attributes = node.attrs
    named = _text(attributes.get("encoding-type", attributes.get("h5sparse_format", "")))
    if named.removesuffix("_matrix") not in {"csr", "csc"}:
        raise InputDataError(f"its encoding {named!r} is not csr_matrix, csc_matrix or an array")
    encoding: Encoding = "csr" if named.startswith("csr") else "csc"
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    if shape is None or len(shape) != 2:
        raise InputDataError("it has no shape")
    parts: dict[str, Any] = {}
    for ours, theirs in (("values", "data"), ("indices", "indices"), ("indptr", "indptr")):
        part = node.get(theirs)
        if not isinstance(part, h5py.Dataset) or part.ndim != 1:
            raise InputDataError(f"it has no list {theirs!r}")
        parts[ours] = part
    return encoding, (int(shape[0]), int(shape[1])), parts


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:10])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return (shown or "nothing") + more


def _other_format(handle: Any) -> str:
    """Name the program that an HDF5 file of another layout seems to come from."""
    import h5py

    if "matrix" in handle and isinstance(handle["matrix"], h5py.Group):
        return (
            " This looks like a 10x Genomics file: read it with scanpy.read_10x_h5 and write it "
            "with .write_h5ad."
        )
    if "row_attrs" in handle and "col_attrs" in handle:
        return " This looks like a loom file: read it with anndata.io.read_loom."
    if "assays" in handle:
        return " This looks like an h5Seurat file: convert it with SeuratDisk."
    if "mod" in handle:
        return " This looks like a MuData (.h5mu) file: write one of its modalities as .h5ad."
    return ""


def _table_length(node: Any, path: Path) -> int:
    import h5py

    if isinstance(node, h5py.Dataset):
        if node.dtype.names and node.ndim == 1:
            return int(node.shape[0])
        raise InputDataError(f"{path}: {node.name} is an array, not a table.")
    index = _text(node.attrs.get("_index", "_index"))
    column = node.get(index)
    if isinstance(column, h5py.Group):
        # A nullable string array keeps its values in a group.
        column = column.get("values", column.get("codes"))
    if not isinstance(column, h5py.Dataset) or column.ndim != 1:
        raise InputDataError(f"{path}: the table {node.name} has no index column {index!r}.")
    return int(column.shape[0])


def _read_dataframe(node: Any) -> pd.DataFrame:
    import pandas as pd
    from anndata.io import read_elem

    # Old encodings make AnnData warn that it may stop reading them; they are read here and now.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = read_elem(node)
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"it is a {type(frame).__name__}, not a data frame")
    return frame


def _compound_table(node: Any, uns: Any) -> pd.DataFrame:
    """Read a table of AnnData before 0.7: one compound dataset, categories in uns."""
    import pandas as pd

    records = node[()]
    names = list(records.dtype.names)
    index_name = next((name for name in ("index", "_index") if name in names), names[0])
    columns: dict[str, Any] = {}
    for name in names:
        values: Any = records[name]
        stored = uns.get(f"{name}_categories") if uns is not None else None
        if stored is not None and values.dtype.kind in "iu" and name != index_name:
            categories = pd.Index(_decoded(np.atleast_1d(stored[()])))
            values = pd.Categorical.from_codes(values, categories=categories)
        else:
            values = _decoded(values)
        columns[name] = values
    index = pd.Index(columns.pop(index_name))
    return pd.DataFrame(columns, index=index)


def _decoded(values: Array) -> Array:
    """Return byte strings as text; other values as they are."""
    if values.dtype.kind == "S" or (
        values.dtype.kind == "O" and len(values) and isinstance(values[0], bytes)
    ):
        return np.array([value.decode() for value in values.tolist()], dtype=object)
    return values


def _plain_table(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the table with every column in a form that Parquet holds, or raise naming one."""
    import pandas as pd

    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise InputDataError(f"The table {name} has two columns called {twice!r}; rename one.")
    plain = {str(column): _plain_column(frame[column], name) for column in frame.columns}
    missing = np.flatnonzero(np.asarray(frame.index.isna()))
    if len(missing):
        raise InputDataError(f"The table {name} has no name in row {missing[0]}; give it one.")
    index = pd.Index([_name(value, name) for value in frame.index], dtype=object)
    return pd.DataFrame(plain, index=index.rename(frame.index.name))


def _name(value: Any, table: str) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputDataError(f"The table {table} has the name {value!r}, not UTF-8.") from error


def _plain_column(column: pd.Series[Any], table: str) -> pd.Series[Any]:
    import pyarrow as pa

    values = column.to_numpy() if isinstance(column.dtype, np.dtype) else None
    try:
        if values is not None and values.dtype.kind in "SO":
            column = column.copy()
            column[:] = _decoded(values)
        elif values is not None and not values.dtype.isnative:
            column = column.astype(values.dtype.newbyteorder("="))
        pa.array(column.cat.categories if column.dtype == "category" else column, from_pandas=True)
    except (pa.ArrowException, UnicodeDecodeError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise InputDataError(
            f"Column {column.name!r} of the table {table} (type {column.dtype}) cannot be written "
            f"to Parquet: {reason}. Convert it to numbers or text, or drop it."
        ) from error
    return column
