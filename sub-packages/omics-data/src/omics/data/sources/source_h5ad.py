"""An `.h5ad` file as a source of cells: its matrices, cell table and gene tables.

- h5py reads the matrices, so nothing is loaded whole and hostile files are refused first
  (`hdf5_safety`); AnnData reads the obs and var tables, so their types are what users see.
- The layouts of AnnData 0.7 and later and the older one (compound tables, `raw.X` at the root,
  `h5sparse_format`) are read.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.sources.anndata_layout import AnnDataLayout, is_array, read_dataframe
from omics.data.sources.hdf5_safety import open_safely, readable
from omics.data.sources.table_columns import decoded, listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd


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


class SourceH5ad(AnnDataLayout):
    """An open `.h5ad` file; see `AnnDataLayout`."""

    format_name = "h5ad"

    def missing_table(self, name: str) -> str:
        """Return the message for a file without obs or var.

        Args:
            name: of the table that is missing.
        """
        return (
            f"{self.path} is an HDF5 file but not an .h5ad file: it has no table {name!r}. It "
            f"holds {listed(self.root)}.{_other_format(self.root)}"
        )

    def read_table(self, node: Any) -> pd.DataFrame:
        """Return a table as AnnData decodes it.

        Args:
            node: a group of columns, or the one compound dataset of AnnData before 0.7.
        """
        return (
            _compound_table(node, self.root.get("uns")) if is_array(node) else read_dataframe(node)
        )


def _other_format(handle: Any) -> str:
    """Name the program that an HDF5 file of another layout seems to come from."""
    if "matrix" in handle and not is_array(handle["matrix"]):
        return (
            " This looks like a 10x Genomics file with parts missing: the group matrix needs "
            "barcodes, data, indices, indptr, shape and features."
        )
    if "row_attrs" in handle and "col_attrs" in handle:
        return " This looks like a loom file without its matrix."
    if "assays" in handle:
        return " This looks like an h5Seurat file: convert it with SeuratDisk."
    if "mod" in handle:
        return " This looks like a MuData (.h5mu) file: write one of its modalities as .h5ad."
    return ""


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
            categories = pd.Index(decoded(np.atleast_1d(stored[()])))
            values = pd.Categorical.from_codes(values, categories=categories)
        else:
            values = decoded(values)
        columns[name] = values
    index = pd.Index(columns.pop(index_name))
    return pd.DataFrame(columns, index=index)
