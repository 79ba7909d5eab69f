"""A `.loom` file as a source of cells.

- The matrix is dense, genes x cells; bands of cells are read along its chunks (`dense_bands`).
- Row and column attributes with one value per gene or cell become the columns of var and obs; those
  with more (embeddings) are listed in `left_out`. Graphs are not read.
- Gene ids are `Accession` or what other programs call it, and symbols `Gene`; without ids the
  symbols are the index.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UnknownNameError, nearest
from omics.data.sources.dense_bands import DenseMatrix, Transposed
from omics.data.sources.found_matrices import FoundMatrices
from omics.data.sources.hdf5_layout import hdf5_names
from omics.data.sources.hdf5_safety import open_safely, readable
from omics.data.sources.protocol import FileSource
from omics.data.sources.table_columns import decoded, plain_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

MAX_TABLE_BYTES = 8 * 2**30
GENE_ID_NAMES = ("Accession", "accession", "ensembl_ids", "gene_ids", "gene_id", "var_names")
SYMBOL_NAMES = ("Gene", "gene_names", "gene_name", "GeneName", "gene_symbol", "symbol", "Name")
CELL_NAMES = ("CellID", "cell_id", "cell_names", "obs_names", "barcode", "barcodes", "Barcode")

_PARTS = {"obs": "col_attrs", "var": "row_attrs"}


def recognises(path: str | Path) -> bool:
    """Say whether this is an HDF5 file with a matrix, row_attrs and col_attrs.

    Args:
        path: anything.
    """
    names = hdf5_names(path)
    return {"matrix", "row_attrs", "col_attrs"} <= names.keys() and not names["matrix"]


@contextlib.contextmanager
def open_loom(
    path: str | Path, *, gene_ids: str | None = None, cell_names: str | None = None
) -> Iterator[SourceLoom]:
    """Open a `.loom` file for reading.

    Args:
        path: the file.
        gene_ids: the row attribute that identifies the genes; one of `GENE_ID_NAMES`, else of
            `SYMBOL_NAMES`, by default.
        cell_names: the column attribute that names the cells; one of `CELL_NAMES` by default.

    Yields:
        The source, usable until the end of the block.

    Raises:
        MissingPathError: there is no such file.
        UnknownNameError: there is no such attribute.
        InputDataError: the file is damaged, refused for safety, or no loom file.
    """
    with open_safely(path) as handle:
        with readable(f"{path}"):
            source = SourceLoom(Path(path), handle, {"var": gene_ids, "obs": cell_names})
        yield source


class SourceLoom(FoundMatrices, FileSource):
    """An open `.loom` file.

    Args:
        path: the file.
        handle: it, open.
        index: the attributes that name genes (`var`) and cells (`obs`); None for the usual ones.

    Attributes:
        path: the file.
        name: the path as text.
        files: the file alone.
        num_cells: columns of the matrix in the file.
        num_genes: its rows.
        matrices: `X` and `layers/NAME`.
        unreadable: layers that cannot be read, `{location: why}`.
        left_out: attributes that are no columns, `{col_attrs/NAME: why}`.
    """

    format_name = "loom"

    def __init__(self, path: Path, handle: Any, index: dict[str, str | None]) -> None:
        import h5py

        self.path = path
        self.name = str(path)
        self.files = (path,)
        self._handle = handle
        matrix = handle.get("matrix")
        if not isinstance(matrix, h5py.Dataset) or matrix.ndim != 2:
            raise InputDataError(f"{path} has no matrix of genes and cells, so it is no loom file.")
        self.num_genes, self.num_cells = (int(length) for length in matrix.shape)
        self.matrices: dict[str, DenseMatrix] = {}
        self.unreadable: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        layers = handle.get("layers")
        found = {f"layers/{name}": layers[name] for name in (layers if layers is not None else ())}
        for location, node in {"X": matrix, **found}.items():
            self.add_matrix(location, partial(self._matrix_at, location, node))
        self._columns = {"obs": self._find_columns("obs"), "var": self._find_columns("var")}
        self._index = {
            "obs": self._index_name("obs", index["obs"], CELL_NAMES),
            "var": self._index_name("var", index["var"], (*GENE_ID_NAMES, *SYMBOL_NAMES)),
        }

    @property
    def obs_columns(self) -> list[str]:
        """The names of the columns of obs, read without their values."""
        return [name for name in self._columns["obs"] if name != self._index["obs"]]

    def obs(self) -> pd.DataFrame:
        """Return the cell table; its index holds the cell names, or numbers without any.

        Raises:
            InputDataError: an attribute is damaged or Parquet cannot hold it.
        """
        return self._table("obs", self.num_cells)

    def var(self, location: str = "X") -> pd.DataFrame:
        """Return the gene table; its index holds the gene ids, or numbers without any.

        Args:
            location: any matrix; they share the table.

        Raises:
            InputDataError: an attribute is damaged or Parquet cannot hold it.
        """
        self.matrix(location)
        return self._table("var", self.num_genes)

    def table_bytes(self) -> int:
        """Return about how many bytes the tables take in memory, text not counted."""
        return sum(
            int(node.size) * int(node.dtype.itemsize)
            for columns in self._columns.values()
            for node in columns.values()
        )

    def _matrix_at(self, location: str, node: Any) -> DenseMatrix:
        import h5py

        expected = (self.num_genes, self.num_cells)
        if not isinstance(node, h5py.Dataset) or node.shape != expected:
            shape = getattr(node, "shape", ())
            raise InputDataError(
                f"its shape is {' x '.join(f'{length:,}' for length in shape) or 'none'}, but the "
                f"matrix has {expected[0]:,} genes and {expected[1]:,} cells"
            )
        return DenseMatrix(
            path=self.path,
            location=location,
            encoding="dense",
            shape=(self.num_cells, self.num_genes),
            values=Transposed(node),
        )

    def _find_columns(self, table: str) -> dict[str, Any]:
        import h5py

        length = self.num_cells if table == "obs" else self.num_genes
        group = self._handle.get(_PARTS[table])
        columns: dict[str, Any] = {}
        for name in group if isinstance(group, h5py.Group) else ():
            node = group[name]
            if isinstance(node, h5py.Dataset) and node.shape == (length,):
                columns[name] = node
                continue
            shape = getattr(node, "shape", None)
            why = "it is a group" if shape is None else f"its shape is {shape}, not ({length},)"
            self.left_out[f"{_PARTS[table]}/{name}"] = why
        return columns

    def _index_name(self, table: str, given: str | None, usual: tuple[str, ...]) -> str | None:
        columns = self._columns[table]
        if given is not None and given not in columns:
            raise UnknownNameError(
                f"{self.path} has no attribute {given!r} in {_PARTS[table]}."
                + nearest(given, list(columns))
            )
        return given or next((name for name in usual if name in columns), None)

    def _table(self, table: str, length: int) -> pd.DataFrame:
        import pandas as pd

        nodes = dict(self._columns[table])
        total = sum(int(node.size) * int(node.id.get_type().get_size()) for node in nodes.values())
        what = f"{table} of {self.path}"
        if total > MAX_TABLE_BYTES:
            raise InputDataError(
                f"The table {what} declares {total:,} bytes; tables above {MAX_TABLE_BYTES:,} bytes "
                f"are not read."
            )
        with readable(f"The table {what}"):
            columns = {name: decoded(np.asarray(node[()])) for name, node in nodes.items()}
        key = self._index[table]
        index = pd.RangeIndex(length) if key is None else pd.Index(columns.pop(key), dtype=object)
        if table == "var":
            symbol = next((name for name in SYMBOL_NAMES if name in columns), None)
            if symbol is not None and "gene_symbol" not in columns:
                columns["gene_symbol"] = columns.pop(symbol)
        return plain_table(pd.DataFrame(columns, index=index), what)
