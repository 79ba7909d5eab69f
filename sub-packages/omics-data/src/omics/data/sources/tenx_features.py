"""The features of 10x Genomics files: gene expression is X, other kinds are matrices of their own.

- One file can hold genes, antibodies, guides and peaks in one matrix. A model of gene counts wants
  the genes, so they are `X`; every other kind is a matrix under its own name, never mixed in.
- Ids are the index of var: they are unique where symbols are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError
from omics.data.sources.found_matrices import FoundMatrices
from omics.data.sources.protocol import FileSource
from omics.data.sources.table_columns import plain_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

GENE_EXPRESSION = "Gene Expression"


class TenxSource(FoundMatrices, FileSource):
    """What the 10x formats share: barcodes, and features of one or several kinds.

    Args:
        name: the path as text.
        barcodes: text [cells].
        tables: the gene table of each matrix, by location.

    Attributes:
        name: the path as text.
        num_cells: barcodes.
        num_genes: features of `X`, or of the first matrix where there is no gene expression.
        matrices: by location: `X` for gene expression, else the kind of feature.
        unreadable: empty unless a matrix cannot be read.
    """

    format_name = "10x"

    def __init__(self, name: str, barcodes: Array, tables: Mapping[str, pd.DataFrame]) -> None:
        self.name = name
        self.num_cells = len(barcodes)
        self.num_genes = len(next(iter(tables.values()), ()))
        self.matrices: dict[str, Any] = {}
        self.unreadable: dict[str, str] = {}
        self._barcodes = barcodes
        self._tables = dict(tables)

    @property
    def obs_columns(self) -> list[str]:
        """None: these formats hold barcodes alone."""
        return []

    def obs(self) -> pd.DataFrame:
        """Return the cell table: no columns, the barcodes as its index.

        Raises:
            InputDataError: a barcode is no text.
        """
        import pandas as pd

        return plain_table(pd.DataFrame(index=self._barcodes), f"of barcodes of {self.name}")

    def var(self, location: str = "X") -> pd.DataFrame:
        """Return the features of a matrix; their ids are the index.

        Args:
            location: of the matrix.

        Raises:
            UnknownNameError: there is no such matrix.
            InputDataError: an id is no text.
        """
        if location not in self._tables:
            self.matrix(location)
        return plain_table(self._tables[location], f"of features of {self.name}")

    def table_bytes(self) -> int:
        """Return about how many bytes the tables take in memory, text not counted."""
        cells = 8 * self.num_cells
        return cells + sum(
            8 * each.shape[0] * (1 + each.shape[1]) for each in self._tables.values()
        )


def split_by_type(features: pd.DataFrame) -> dict[str, Array]:
    """Return where the features of each kind are.

    Args:
        features: with a column `feature_type`; without one, all are genes.

    Returns:
        `{location: int64 positions}`: `X` first if there are genes, then the other kinds.
    """
    if "feature_type" not in features.columns:
        return {"X": np.arange(len(features))}
    types = features["feature_type"].to_numpy()
    found = {GENE_EXPRESSION: np.flatnonzero(types == GENE_EXPRESSION)}
    for kind in dict.fromkeys(types.tolist()):
        found[str(kind)] = np.flatnonzero(types == kind)
    return {
        "X" if kind == GENE_EXPRESSION else kind: positions
        for kind, positions in found.items()
        if len(positions)
    }


def decoded_names(values: Array, what: str, path: Any) -> Array:
    """Return names as text.

    Args:
        values: [n] of bytes or text.
        what: they name, for the message.
        path: of the file, for the message.

    Returns:
        The names [n], as objects.

    Raises:
        InputDataError: a name is not UTF-8, or missing.
    """
    try:
        names = [
            each.decode() if isinstance(each, bytes) else str(each) for each in values.tolist()
        ]
    except UnicodeDecodeError as error:
        raise InputDataError(f"The {what} of {path} are not text in UTF-8 ({error}).") from error
    if "" in names:
        raise InputDataError(
            f"The {what} of {path} lack a name in row {names.index('')}; the file is damaged or was "
            f"edited by hand."
        )
    return np.array(names, dtype=object)
