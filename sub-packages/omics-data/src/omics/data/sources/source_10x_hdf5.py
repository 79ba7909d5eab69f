"""A 10x Genomics `.h5` file (CellRanger 2 and 3 and later) as a source of cells.

- The file is a matrix of features x barcodes in CSC, which is the matrix of cells x genes in CSR:
  it streams as it is.
- CellRanger 2 keeps one group for each genome. One genome is `X`; several of the same barcodes are
  matrices `genomes/NAME`; several of different barcodes need `genome=`.
- CellRanger 3 and later keep all features in one group; gene expression is `X`, other kinds are
  matrices of their own (`tenx_features`).
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UnknownNameError, nearest
from omics.data.sources.gene_subset import GeneSubset
from omics.data.sources.hdf5_layout import hdf5_names
from omics.data.sources.hdf5_safety import open_safely, readable
from omics.data.sources.matrix_blocks import MatrixSource
from omics.data.sources.tenx_features import TenxSource, decoded_names, split_by_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

MAX_TABLE_BYTES = 8 * 2**30

_SHARED = frozenset({"barcodes", "data", "indices", "indptr", "shape"})
_V2 = _SHARED | {"genes"}
_V3 = _SHARED | {"features"}
_V3_NAMES = {"name": "gene_symbol"}


def recognises(path: str | Path) -> bool:
    """Say whether this is an HDF5 file with a group that holds barcodes and a matrix.

    Args:
        path: anything.
    """
    names = hdf5_names(path)
    if names.keys() & {"obs", "var", "row_attrs", "col_attrs"}:
        return False
    return any({"barcodes", "data", "indptr"} <= inside for inside in names.values())


@contextlib.contextmanager
def open_10x_hdf5(path: str | Path, *, genome: str | None = None) -> Iterator[Source10xHdf5]:
    """Open a 10x `.h5` file for reading.

    Args:
        path: the file.
        genome: which genome to read from a CellRanger 2 file of several.

    Yields:
        The source, usable until the end of the block.

    Raises:
        MissingPathError: there is no such file.
        UnknownNameError: there is no such genome.
        InputDataError: the file is damaged, refused for safety, or needs `genome`.
    """
    with open_safely(path) as handle:
        with readable(f"{path}"):
            source = Source10xHdf5(Path(path), handle, genome)
        yield source


class Source10xHdf5(TenxSource):
    """An open 10x `.h5` file; see `TenxSource`.

    Args:
        path: the file.
        handle: it, open.
        genome: of a CellRanger 2 file.
    """

    format_name = "10x HDF5"

    def __init__(self, path: Path, handle: Any, genome: str | None) -> None:
        self.path = path
        self.files = (path,)
        groups = _groups(path, handle, genome)
        (_, first), *others = groups.items()
        barcodes = self._names(first["barcodes"], "barcodes")
        for name, group in others:
            if not np.array_equal(self._names(group["barcodes"], "barcodes"), barcodes):
                raise InputDataError(
                    f"{path} holds several genomes with different barcodes "
                    f"({', '.join(sorted(groups))}), {name!r} among them: choose one with genome=."
                )
        found: dict[str, tuple[MatrixSource | GeneSubset, pd.DataFrame]] = {}
        for name, group in groups.items():
            prefix = "X" if len(groups) == 1 else f"genomes/{name}"
            found.update(self._matrices_of(group, prefix, len(barcodes)))
        super().__init__(str(path), barcodes, {key: each[1] for key, each in found.items()})
        self.matrices = {key: each[0] for key, each in found.items()}

    def _matrices_of(
        self, group: Any, prefix: str, num_cells: int
    ) -> Iterator[tuple[str, tuple[MatrixSource | GeneSubset, pd.DataFrame]]]:
        features = self._features(group)
        shape = [int(each) for each in np.ravel(group["shape"][()])]
        if shape != [len(features), num_cells]:
            raise InputDataError(
                f"{self.path}: the matrix has a shape of {' x '.join(f'{n:,}' for n in shape)}, but "
                f"there are {len(features):,} features and {num_cells:,} barcodes. The file is "
                f"damaged; fetch it again."
            )
        make = partial(
            MatrixSource,
            path=self.path,
            encoding="csr",
            shape=(num_cells, len(features)),
            values=group["data"],
            indices=group["indices"],
            indptr=group["indptr"],
        )
        kinds = split_by_type(features)
        for kind, columns in kinds.items():
            location = prefix if kind == "X" else kind
            whole = make(location=location)
            matrix = whole if len(kinds) == 1 else None
            subset = matrix or GeneSubset(whole=whole, location=location, columns=columns)
            yield location, (subset, features.iloc[columns])

    def _features(self, group: Any) -> pd.DataFrame:
        import h5py
        import pandas as pd

        if "features" not in group:
            ids = self._names(group["genes"], "genes")
            columns: dict[str, Array] = {}
            if "gene_names" in group:
                columns["gene_symbol"] = self._strings(group["gene_names"], "gene names")
        else:
            table = group["features"]
            ids = self._names(table["id"], "features")
            columns = {
                _V3_NAMES.get(name, name): self._strings(table[name], f"features/{name}")
                for name in ("name", "feature_type", "genome", *sorted(table))
                if name in table
                and name not in {"id", "_all_tag_keys"}
                and isinstance(table[name], h5py.Dataset)
            }
        for name, values in columns.items():
            if len(values) != len(ids):
                raise InputDataError(
                    f"{self.path}: the feature column {name!r} has {len(values):,} values for "
                    f"{len(ids):,} features. The file is damaged; fetch it again."
                )
        return pd.DataFrame(columns, index=pd.Index(ids, dtype=object))

    def _names(self, dataset: Any, what: str) -> Array:
        return decoded_names(self._values(dataset, what), what, self.path)

    def _strings(self, dataset: Any, what: str) -> Array:
        values = self._values(dataset, what)
        if values.dtype.kind not in "SO":
            return values
        return np.array(
            [each.decode() if isinstance(each, bytes) else each for each in values.tolist()], object
        )

    def _values(self, dataset: Any, what: str) -> Array:
        size = int(dataset.size) * int(dataset.id.get_type().get_size())
        if dataset.ndim != 1 or size > MAX_TABLE_BYTES:
            raise InputDataError(
                f"{self.path}: its {what} are no list, or take {size:,} bytes, more than are read."
            )
        return np.asarray(dataset[()])


def _groups(path: Path, handle: Any, genome: str | None) -> dict[str, Any]:
    """Return the groups to read: `matrix` of CellRanger 3, or those of the genomes."""
    import h5py

    groups = {name: node for name, node in handle.items() if isinstance(node, h5py.Group)}
    if "matrix" in groups and "features" in groups["matrix"]:
        groups = {"matrix": groups["matrix"]}
    groups = {name: node for name, node in groups.items() if "barcodes" in node}
    for name, node in groups.items():
        missing = sorted((_V3 if "features" in node else _V2) - set(node))
        if missing:
            raise InputDataError(
                f"{path}: the group {name!r} has no {' and no '.join(missing)}, so it is no complete "
                f"10x matrix. The file is cut or was written by another program; fetch it again."
            )
    if not groups:
        raise InputDataError(f"{path} is an HDF5 file without a 10x matrix (a group of barcodes).")
    if genome is None:
        return groups
    if genome not in groups:
        raise UnknownNameError(f"{path} has no genome {genome!r}.{nearest(genome, list(groups))}")
    return {genome: groups[genome]}
