"""Takes a bionemo SCDL folder apart: its binary header, its raw arrays, its blocks of tables.

- The types of the arrays stand in the header alone, so a folder without a sound header is refused:
  the wrong type reads as other numbers, without any error (what the reference reader does).
- Every length is checked against the size of its file before a value is read. An array that was
  cast or extended behind the back of its header is refused for the same reason.
- `metadata.json` is not looked at: it keeps the number of rows of the first file of a merged
  folder. The labels of blocks are pickled in older versions and are not looked at either.
- Files are mapped read-only; a folder on a read-only disk will do.
"""

from __future__ import annotations

import io
import os
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, OmicsError
from omics.data.storage.mapped_file import open_regular

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

HEADER_NAME = "header.sch"
MAGIC = b"SCDL"
MAX_VERSION = (0, 1)
MAX_HEADER_BYTES = 64 * 2**20
MAX_NAME_BYTES = 4096
MAX_TABLE_BYTES = 8 * 2**30
FILES = {"DATA": "data.npy", "ROWPTR": "row_ptr.npy", "COLPTR": "col_ptr.npy"}
GENE_FOLDERS = ("var_features", "features")
CELL_FOLDER = "obs_features"

_NETWORK_ORDER = 1
_MAPPED_BACKEND = 1
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("u2"),
    3: np.dtype("u4"),
    4: np.dtype("u8"),
    5: np.dtype("f2"),
    6: np.dtype("f4"),
    7: np.dtype("f8"),
}
_TABLE_FILE = re.compile(r"dataframe_([0-9]{1,9})\.parquet")


@dataclass(frozen=True, kw_only=True)
class ScdlTables:
    """The tables of genes or of cells of a folder.

    Attributes:
        ends: for each table, the row of the matrix after the last one it belongs to.
        files: its Parquet file.
    """

    ends: tuple[int, ...]
    files: tuple[Path, ...]


def read_header(folder: Path) -> dict[str, tuple[int, np.dtype[Any]]]:
    """Return length and type of every array that the header of a folder lists.

    Args:
        folder: of the dataset.

    Returns:
        `{name: (length, dtype)}` with at least DATA, ROWPTR and COLPTR.

    Raises:
        InputDataError: there is no header, it is damaged, or of a version that is not known.
    """
    path = folder / HEADER_NAME
    if not path.is_file():
        raise InputDataError(
            f"{folder} has no {HEADER_NAME}, which alone says of what type the values in data.npy "
            "are; any guess could turn them into other numbers. Make the folder again from its "
            ".h5ad file with bionemo-scdl 0.1 or newer, or convert that file itself."
        )
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise InputDataError(f"{path} is larger than {MAX_HEADER_BYTES:,} bytes: no SCDL header.")
    arrays = _parse_header(path, _Fields(path, path.read_bytes()))
    for name in FILES:
        if name not in arrays:
            raise InputDataError(
                f"{path} does not list the array {name}; it lists {', '.join(arrays) or 'none'}."
            )
    return arrays


class _Fields:
    """Reads the fields of the header one after the other."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self._data = data
        self._position = 0

    def bytes(self, size: int) -> bytes:
        begin = self._position
        if size > len(self._data) - begin:
            raise InputDataError(
                f"{self.path} ends after {len(self._data):,} bytes, in the middle of its header. The "
                "folder was copied in part or damaged: fetch it again."
            )
        self._position += size
        return self._data[begin : self._position]

    def number(self, form: str) -> int:
        return int(struct.unpack(f">{form}", self.bytes(struct.calcsize(form)))[0])

    def text(self) -> str:
        size = self.number("I")
        if size > MAX_NAME_BYTES:
            raise InputDataError(f"{self.path} is damaged: it has a name of {size:,} bytes.")
        try:
            return self.bytes(size).decode()
        except UnicodeDecodeError as error:
            raise InputDataError(f"{self.path} is damaged: a name in it is not text.") from error

    def skip_shape(self) -> None:
        if self.number("B"):
            self.bytes(4 * self.number("I"))


def _parse_header(path: Path, fields: _Fields) -> dict[str, tuple[int, np.dtype[Any]]]:
    if fields.bytes(4) != MAGIC:
        raise InputDataError(f"{path} is not an SCDL header: it does not begin with SCDL.")
    version = tuple(fields.number("B") for _ in range(3))
    if version[:2] > MAX_VERSION:
        shown = ".".join(str(each) for each in version)
        raise InputDataError(
            f"{path} is of version {shown}; versions up to {MAX_VERSION[0]}.{MAX_VERSION[1]} are "
            "read. A newer omics-data may read it."
        )
    order, backend = fields.number("B"), fields.number("I")
    if order != _NETWORK_ORDER or backend != _MAPPED_BACKEND:
        raise InputDataError(
            f"{path} is of byte order {order} and kind {backend}; byte order 1 and kind 1 (mapped "
            "arrays) are the only ones known."
        )
    arrays: dict[str, tuple[int, np.dtype[Any]]] = {}
    for _ in range(fields.number("I")):
        name, length, code = fields.text(), fields.number("Q"), fields.number("I")
        fields.skip_shape()
        if name in arrays:
            raise InputDataError(f"{path} lists the array {name} twice.")
        if code not in _DTYPES:
            if name in FILES:
                raise InputDataError(
                    f"{path}: the array {name} is of type {code}, which is none of numbers."
                )
            continue
        arrays[name] = (length, _DTYPES[code])
    return arrays


def map_array(folder: Path, name: str, header: dict[str, tuple[int, np.dtype[Any]]]) -> Array:
    """Map an array read-only, after comparing the size of its file with the header.

    Args:
        folder: of the dataset.
        name: DATA, ROWPTR or COLPTR.
        header: what `read_header` returned.

    Raises:
        InputDataError: the file is missing, no regular file, or of another size.
    """
    length, dtype = header[name]
    path = folder / FILES[name]
    wanted = length * dtype.itemsize
    try:
        descriptor = open_regular(path)
    except OmicsError as error:
        raise InputDataError(f"The SCDL folder {folder} is not whole: {error}") from error
    try:
        found = os.fstat(descriptor).st_size
        if found != wanted:
            raise InputDataError(_wrong_size(path, found, wanted, length=length, dtype=dtype))
        if not length:
            return np.empty(0, dtype)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return np.memmap(file, dtype, mode="r", shape=(length,))
    finally:
        os.close(descriptor)


def _wrong_size(path: Path, found: int, wanted: int, *, length: int, dtype: np.dtype[Any]) -> str:
    per_value, rest = divmod(found, length) if length else (0, 1)
    fitting = [each.name for each in _DTYPES.values() if rest == 0 and each.itemsize == per_value]
    if found < wanted and not fitting:
        why = "It was copied in part: fetch the folder again."
    else:
        why = (
            "It was cast or extended without its header being told"
            + (
                f" ({found:,} bytes are {length:,} values of {' or '.join(fitting)})"
                if fitting
                else ""
            )
            + ". Make the folder again from its .h5ad files, or convert those."
        )
    return (
        f"{path} has {found:,} bytes, but the header says {length:,} values of type {dtype.name}, "
        f"which are {wanted:,} bytes. {why}"
    )


def find_tables(folder: Path, *, num_cells: int) -> ScdlTables | None:
    """Find the tables in a feature folder and the rows they belong to.

    Args:
        folder: `var_features` or `obs_features`.
        num_cells: rows of the matrix.

    Returns:
        The tables, None where there is no such folder.

    Raises:
        InputDataError: tables are missing, or do not cover the rows.
    """
    if not folder.is_dir():
        return None
    numbered = sorted(
        (int(found[1]), path)
        for path in folder.iterdir()
        if (found := _TABLE_FILE.fullmatch(path.name)) and path.is_file()
    )
    ends = _read_ends(folder / "cumulative_sum_index.npy")
    if [number for number, _ in numbered] != list(range(len(ends))):
        raise InputDataError(
            f"{folder} holds {len(numbered):,} tables (dataframe_*.parquet) where its index lists "
            f"{len(ends):,}. The folder was copied in part: fetch it again."
        )
    ascending = all(before <= after for before, after in zip((0, *ends), ends, strict=False))
    if not ascending or (ends[-1] if ends else 0) != num_cells:
        raise InputDataError(
            f"The tables in {folder} belong to {ends[-1] if ends else 0:,} rows, but the matrix has "
            f"{num_cells:,}. The parts of the folder do not belong together; make it again from its "
            ".h5ad files, or convert those."
        )
    return ScdlTables(ends=ends, files=tuple(path for _, path in numbered))


def _read_ends(path: Path) -> tuple[int, ...]:
    """Read the small numpy array that says where each table ends; it begins with -1."""
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise InputDataError(f"{path} is too large for an index of tables.")
        index = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError) as error:
        raise InputDataError(
            f"{path} cannot be read ({error}); it says which rows a table belongs to. Fetch the "
            "folder again."
        ) from error
    if index.ndim != 1 or index.dtype.kind not in "iu" or len(index) < 1 or int(index[0]) != -1:
        raise InputDataError(f"{path} is not the index of tables of an SCDL folder.")
    return tuple(int(each) for each in index[1:])


def read_table(path: Path, *, limit: int = MAX_TABLE_BYTES) -> pd.DataFrame:
    """Read one Parquet table of a feature folder.

    Args:
        path: the file.
        limit: how many bytes it may take when unpacked.

    Raises:
        InputDataError: it is damaged or too large.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            if size > limit:
                raise InputDataError(
                    f"{path} declares {size:,} bytes; tables above {limit:,} bytes are not read."
                )
            frame: pd.DataFrame = file.read().to_pandas()
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        if isinstance(error, OmicsError):
            raise
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise InputDataError(
            f"{path} cannot be read ({reason}). Fetch the folder again."
        ) from error
    if not frame.columns.is_unique:
        raise InputDataError(f"{path} has two columns of one name.")
    return frame.reset_index(drop=True)
