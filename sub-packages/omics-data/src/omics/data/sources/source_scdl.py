"""Reads a bionemo SCDL folder: the single-cell store that the nearest peer writes.

- The arrays are mapped read-only and stream like any other CSR matrix; nothing is loaded whole.
- Parts with different genes (a folder made of several .h5ad files) are joined by gene id: SCDL
  keeps only the position of a gene in the table of its part.
- SCDL drops the index of obs and var. Ids are taken from a column known to hold them, else from the
  first column of text that is unique; `notes` says which.
- Neighbour arrays are not read: they say nothing about counts.
"""

from __future__ import annotations

import contextlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, MissingPathError, UnknownNameError, nearest
from omics.data.sources.memory_matrix import ArrayDataset, csr_matrix_of
from omics.data.sources.protocol import FileSource
from omics.data.sources.remapped_matrix import GenePart, RemappedMatrix
from omics.data.sources.scdl_folder import (
    CELL_FOLDER,
    FILES,
    GENE_FOLDERS,
    HEADER_NAME,
    ScdlTables,
    find_tables,
    map_array,
    read_header,
    read_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from omics.data.sources.protocol import Matrix

Array = np.ndarray[Any, np.dtype[Any]]

LOCATION = "X"
# Columns that hold the ids of genes or of cells, the likeliest first.
GENE_ID_COLUMNS = ("feature_id", "var_feature_id", "ensembl_id", "gene_id", "gene_ids")
CELL_ID_COLUMNS = ("obs_feature_id", "cell_id", "barcode", "observation_joinid")


def recognises(path: str | Path) -> bool:
    """Say whether a path is a folder that bionemo-scdl wrote, by the files in it.

    Args:
        path: anything.
    """
    path = Path(path)
    if not path.is_dir():
        return False
    return (path / HEADER_NAME).is_file() or all((path / name).is_file() for name in FILES.values())


@contextlib.contextmanager
def open_scdl(path: str | Path) -> Iterator[SourceScdl]:
    """Open an SCDL folder for reading.

    Args:
        path: the folder of one dataset.

    Yields:
        The source, usable until the end of the block.

    Raises:
        MissingPathError: there is no such folder.
        InputDataError: a part is missing or damaged, or contradicts the header.
    """
    if not Path(path).is_dir():
        raise MissingPathError(f"There is no folder {path}.")
    yield SourceScdl(Path(path))


class SourceScdl(FileSource):
    """An open SCDL folder.

    Args:
        path: the folder.

    Attributes:
        path: the folder.
        name: the path as text.
        format_name: `SCDL`.
        files: the header, the arrays and the tables.
        num_cells: rows.
        num_genes: genes of all parts together.
        matrices: `{"X": the matrix}`.
        unreadable: nothing.
        notes: where the ids of genes and cells come from.
    """

    format_name = "SCDL"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        header = read_header(path)
        self._values, self._indptr, self._indices = (
            map_array(path, name, header) for name in ("DATA", "ROWPTR", "COLPTR")
        )
        if not len(self._indptr):
            raise InputDataError(
                f"{path / FILES['ROWPTR']} is empty; it needs at least one offset."
            )
        self.num_cells = len(self._indptr) - 1
        self._genes_of_parts = self._gene_tables()
        self._cell_tables = find_tables(path / CELL_FOLDER, num_cells=self.num_cells)
        self._tables, self._id_column = self._read_gene_tables()
        self._var = self._joined_genes()
        self.num_genes = len(self._var)
        self.matrices: dict[str, Matrix] = {LOCATION: self._find_matrix()}
        self.unreadable: dict[str, str] = {}
        cells = self._cell_tables.files if self._cell_tables else ()
        arrays = [path / name for name in (HEADER_NAME, *FILES.values())]
        self.files = (*arrays, *self._genes_of_parts.files, *cells)
        self.notes = self._find_notes()

    def matrix(self, location: str) -> Matrix:
        """Return the matrix.

        Args:
            location: `X`.

        Raises:
            UnknownNameError: it is another name.
        """
        if location not in self.matrices:
            raise UnknownNameError(
                f"{self.path} has no matrix {location!r}." + nearest(location, [*self.matrices])
            )
        return self.matrices[location]

    # --- genes -----------------------------------------------------------------------------------

    def _gene_tables(self) -> ScdlTables:
        for name in GENE_FOLDERS:
            found = find_tables(self.path / name, num_cells=self.num_cells)
            if found is not None:
                if not found.files:
                    raise InputDataError(f"{self.path / name} holds no table of genes.")
                return found
        raise InputDataError(
            f"{self.path} has no folder {GENE_FOLDERS[0]}, so its genes are not known. Make it again "
            "from its .h5ad file, or convert that."
        )

    def _read_gene_tables(self) -> tuple[list[pd.DataFrame], str | None]:
        """Return the gene table of every part and the column that holds the ids in all of them."""
        tables = [read_table(file) for file in self._genes_of_parts.files]
        column = _id_column(tables, GENE_ID_COLUMNS)
        if column is None and len(tables) > 1:
            raise InputDataError(
                f"{self.path} was made of {len(tables)} files with different genes, and no column of "
                "their gene tables has an id for every gene, so the genes cannot be matched. Convert "
                "the .h5ad files it was made of."
            )
        return tables, column

    def _joined_genes(self) -> pd.DataFrame:
        import pandas as pd

        indexed: list[pd.DataFrame] = []
        for table in self._tables:
            ids = (
                [f"gene{number}" for number in range(len(table))]
                if self._id_column is None
                else [str(each) for each in table[self._id_column]]
            )
            indexed.append(table.set_axis(pd.Index(ids, dtype=object), axis=0))
        if len(indexed) == 1:
            return indexed[0]
        joined = pd.concat(indexed)
        return joined[~joined.index.duplicated()]

    def _find_matrix(self) -> Matrix:
        if len(self._values) != len(self._indices):
            raise InputDataError(
                f"{self.path} has {len(self._values):,} values for {len(self._indices):,} column "
                "numbers. Its parts do not belong together; make it again from its .h5ad file."
            )
        if len(self._tables) == 1:
            return csr_matrix_of(
                self._values,
                self._indices,
                self._indptr,
                num_genes=self.num_genes,
                path=self.path,
                location=LOCATION,
            )
        ends = np.array((0, *self._genes_of_parts.ends))
        offsets = self._indptr[ends].astype(np.int64)
        if offsets[0] or offsets[-1] != len(self._values) or (np.diff(offsets) < 0).any():
            raise InputDataError(
                f"{self.path / FILES['ROWPTR']} does not ascend from 0 to the number of values "
                f"({len(self._values):,}). The folder is damaged; fetch it again."
            )
        rows = list(pairwise(ends.tolist()))
        entries = list(pairwise(offsets.tolist()))
        parts = [self._part(number, rows[number], entries[number]) for number in range(len(rows))]
        return RemappedMatrix(parts, num_genes=self.num_genes)

    def _part(self, number: int, rows: tuple[int, int], entries: tuple[int, int]) -> GenePart:
        import pandas as pd

        table = self._tables[number]
        matrix = csr_matrix_of(
            self._values[slice(*entries)],
            self._indices[slice(*entries)],
            _ShiftedOffsets(self._indptr[rows[0] : rows[1] + 1], entries[0]),
            num_genes=len(table),
            path=self.path,
            location=LOCATION,
        )
        ids = table[str(self._id_column)].astype(str)
        places = self._var.index.get_indexer(pd.Index(ids, dtype=object)).astype(np.int64)
        return GenePart(matrix=matrix, places=places)

    def var(self, location: str = LOCATION) -> pd.DataFrame:
        """Return the gene table of all parts; its index holds the gene ids.

        Args:
            location: `X`; there is no other.
        """
        self.matrix(location)
        return self._var

    # --- cells -----------------------------------------------------------------------------------

    @property
    def obs_columns(self) -> list[str]:
        """The names of the columns of obs, read without their values."""
        from pyarrow import parquet

        names: dict[str, None] = {}
        for file in self._cell_tables.files if self._cell_tables else ():
            names.update(dict.fromkeys(str(each) for each in parquet.read_schema(file).names))
        return list(names)

    def obs(self) -> pd.DataFrame:
        """Return the cell table; its index holds the cell names, `cell0`, ... where SCDL lost them.

        Raises:
            InputDataError: a table is damaged or has not the rows it should have.
        """
        import pandas as pd

        tables: list[pd.DataFrame] = []
        first = 0
        found = self._cell_tables
        for end, file in zip(found.ends, found.files, strict=True) if found else ():
            table = read_table(file)
            if len(table) != end - first:
                raise InputDataError(
                    f"{file} has {len(table):,} rows for {end - first:,} cells. The parts of the "
                    "folder do not belong together; make it again, or convert its .h5ad files."
                )
            tables.append(table)
            first = end
        frame = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        column = _id_column([frame], CELL_ID_COLUMNS, others=False)
        names: Any = (
            [f"cell{number}" for number in range(self.num_cells)]
            if column is None
            else frame[column].astype(object)
        )
        frame = frame.reindex(range(self.num_cells))
        return frame.set_axis(pd.Index(list(names), dtype=object), axis=0)

    def table_bytes(self) -> int:
        """Return about how many bytes the tables take in memory, text not counted."""
        cells = self.num_cells * (1 + len(self.obs_columns))
        return 8 * (cells + self.num_genes * (1 + len(self._var.columns)))

    def _find_notes(self) -> tuple[str, ...]:
        genes = (
            f"gene ids are taken from the column {self._id_column!r} of its gene table"
            if self._id_column is not None
            else "its gene table has no column of ids: genes are called gene0, gene1, ..."
        )
        return (f"SCDL keeps no index: {genes}",)


class _ShiftedOffsets(ArrayDataset):
    """Offsets of a part, counted from its first entry; shifted when they are read."""

    def __init__(self, offsets: Array, begin: int) -> None:
        super().__init__(offsets, f"{LOCATION} indptr")
        self._begin = begin
        self.dtype = np.dtype(np.int64)
        self.nbytes = 8 * self.size

    def __getitem__(self, where: Any) -> Array:
        return super().__getitem__(where).astype(np.int64) - self._begin


def _id_column(
    tables: list[pd.DataFrame], likely: tuple[str, ...], *, others: bool = True
) -> str | None:
    """Return the column that tells the rows of every table apart by text, the likeliest first."""
    names = [str(name) for name in tables[0].columns]
    candidates = [name for name in likely if name in names]
    candidates += [name for name in names if others and name not in candidates]
    return next(
        (name for name in candidates if all(_tells_apart(table, name) for table in tables)), None
    )


def _tells_apart(table: pd.DataFrame, name: str) -> bool:
    if name not in table.columns or not table[name].is_unique:
        return False
    return all(isinstance(each, str) and bool(each) for each in table[name])
