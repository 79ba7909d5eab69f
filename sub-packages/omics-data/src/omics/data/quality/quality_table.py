"""`QualityTable`: what quality control found, one row per cell, saved as a folder and read again.

- `qc.parquet` has a row for every cell, removed or not: metrics, a column per rule, `keep`.
- `genes.parquet` has a row for every gene, `qc.json` the thresholds, numbers and remarks.
- The tables know the store they were made of and are refused for one with other cells.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.checked_table import read_checked_table, require_cells, write_checked_table
from omics.data.errors import CorruptStoreError, MissingPathError
from omics.data.quality.thresholds import FAILS

if TYPE_CHECKING:
    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

CELLS_NAME = "qc.parquet"
GENES_NAME = "genes.parquet"
SUMMARY_NAME = "qc.json"
_CELLS_KIND = "omics_quality"
_GENES_KIND = "omics_quality_genes"
_MADE_BY = "omics-data qc"


@dataclass(frozen=True, eq=False, kw_only=True)
class QualityTable:
    """The result of quality control.

    Attributes:
        names: object [n], of the cells, in the order of the store.
        cells: [n] each: the metrics of `QualityMetrics`, `batch` if a column was given,
            `doublet_score` if asked for, one bool column `fails_RULE` per rule, `keep` (no rule
            fails) and `quality_score`.
        genes: [g] each: `gene`, `symbol`, the metrics, `keep` (found in enough cells), and what
            `highly_variable_genes` found if asked for.
        summary: plain JSON: thresholds with their bounds, cells per rule, medians, remarks, seed,
            digests.
    """

    names: Array
    cells: dict[str, Array]
    genes: dict[str, Array]
    summary: dict[str, Any]

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.names)

    @property
    def rows(self) -> Array:
        """int64 rows of the cells that no rule leaves out, ascending; for `Loader(rows=...)`."""
        return np.flatnonzero(self.cells["keep"]).astype(np.int64)

    @property
    def rules(self) -> tuple[str, ...]:
        """The names of the rules that were applied."""
        return tuple(name.removeprefix(FAILS) for name in self.cells if name.startswith(FAILS))

    def save(self, folder: str | Path, *, overwrite: bool = False, figures: bool = True) -> None:
        """Write tables, summary and figures into a folder that appears whole or not at all.

        Args:
            folder: to create.
            overwrite: replace what is there.
            figures: draw PNG figures too.

        Raises:
            ExistingPathError: `folder` exists and may not be replaced.
            MissingPathError: its parent does not exist.
            MissingExtraError: figures are wanted and matplotlib is not installed.
        """
        from omics.data.atomic_files import new_folder, write_bytes

        target = Path(folder)
        if not target.absolute().parent.is_dir():
            raise MissingPathError(f"There is no folder {target.absolute().parent} to write to.")
        record = {
            name: self.summary[name] for name in ("store_digest", "gene_digest", "seed", "batch")
        }
        with new_folder(target, overwrite=overwrite) as place:
            columns = {"row": np.arange(len(self)), "cell": self.names, **self.cells}
            write_checked_table(place / CELLS_NAME, columns, record, kind=_CELLS_KIND)
            write_checked_table(place / GENES_NAME, self.genes, record, kind=_GENES_KIND)
            text = json.dumps(self.summary, indent=2, sort_keys=True, allow_nan=False)
            write_bytes(place / SUMMARY_NAME, text.encode() + b"\n")
            if figures:
                from omics.data.quality.quality_figures import draw_figures

                for name, picture in draw_figures(self).items():
                    write_bytes(place / name, picture)


def load_quality(path: str | Path, store: CellStore | None = None) -> QualityTable:
    """Read what `QualityTable.save` wrote.

    Args:
        path: the folder, or its `qc.parquet`.
        store: if given, the table must be of this store's cells.

    Returns:
        The table.

    Raises:
        MissingPathError: there is no such table.
        InputDataError: it is another kind of table, or of another store.
        CorruptStoreError: its bytes are damaged.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    cells, record = read_checked_table(
        folder / CELLS_NAME if path.is_dir() else path, kind=_CELLS_KIND, made_by=_MADE_BY
    )
    genes, _ = read_checked_table(folder / GENES_NAME, kind=_GENES_KIND, made_by=_MADE_BY)
    try:
        summary = json.loads((folder / SUMMARY_NAME).read_bytes())
    except FileNotFoundError:
        raise MissingPathError(f"{folder} has no {SUMMARY_NAME}; run {_MADE_BY} again.") from None
    except ValueError as error:
        raise CorruptStoreError(
            f"{folder / SUMMARY_NAME} is damaged ({error}); run {_MADE_BY} again."
        ) from error
    rows, names = cells.pop("row"), cells.pop("cell")
    if store is not None and record["store_digest"] != store.digest:
        require_cells(path, store, rows=rows, cells=names, made_by=_MADE_BY)
    return QualityTable(names=names, cells=cells, genes=genes, summary=summary)
