"""`SelectionTable`: the cells that were chosen and how, kept as Parquet.

- It names the store, the method with all its settings, and the seed; it is refused for a store
  whose cells of these rows have other names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.checked_table import read_checked_table, require_cells, write_checked_table
from omics.data.errors import InputDataError

if TYPE_CHECKING:
    from pathlib import Path

    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

_KIND = "omics_selection"
_MADE_BY = "omics-data select"


@dataclass(frozen=True, eq=False, kw_only=True)
class SelectionTable:
    """Some cells of a store.

    Attributes:
        rows: int64 [m], for `Loader(rows=...)`; ascending, or for `farthest-first` and `by-quality`
            in the order in which they were chosen, best first.
        cells: object [m], their names.
        method: plain JSON: `kind`, and what it was given.
        seed: of the random part.
        store_digest: of the store it was made from.
        gene_digest: of that store's gene table.
    """

    rows: Array
    cells: Array
    method: dict[str, Any]
    seed: int
    store_digest: str
    gene_digest: str

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.rows)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the table atomically, as Parquet with columns `row` and `cell`.

        Args:
            path: the file.
            overwrite: replace a file that is there.

        Raises:
            ExistingPathError: `path` exists and may not be replaced.
            MissingPathError: its folder does not exist.
        """
        from omics.data.atomic_files import require_free

        record = {
            "method": self.method,
            "seed": self.seed,
            "store_digest": self.store_digest,
            "gene_digest": self.gene_digest,
        }
        columns = {"row": self.rows, "cell": self.cells}
        write_checked_table(require_free(path, overwrite=overwrite), columns, record, kind=_KIND)


def load_selection(path: str | Path, store: CellStore | None = None) -> SelectionTable:
    """Read a table of `SelectionTable.save`.

    Args:
        path: the file.
        store: if given, the rows must be cells of this store.

    Returns:
        The selection.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is another kind of file, or of another store.
        CorruptStoreError: its bytes are damaged.
    """
    columns, record = read_checked_table(path, kind=_KIND, made_by=_MADE_BY)
    if set(columns) != {"row", "cell"} or columns["row"].dtype != np.int64:
        raise InputDataError(f"{path} has not the columns of a selection; make it with {_MADE_BY}.")
    table = SelectionTable(
        rows=columns["row"],
        cells=columns["cell"],
        method=record["method"],
        seed=record["seed"],
        store_digest=record["store_digest"],
        gene_digest=record["gene_digest"],
    )
    if store is not None and table.store_digest != store.digest:
        require_cells(path, store, rows=table.rows, cells=table.cells, made_by=_MADE_BY)
    return table
