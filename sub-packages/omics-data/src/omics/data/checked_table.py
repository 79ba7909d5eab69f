"""Parquet tables that say what they were made of, and notice when their bytes have changed.

- Page checksums do not cover the Parquet footer, so record and content have a digest of their own.
- The record (method, seed, digest of the store, ...) is JSON in the schema metadata, beside the data
  it explains; the key tells one kind of table from another.
- A table with a column `cell` can be held against a store: the names decide, not the number of rows.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import CorruptStoreError, InputDataError, MissingPathError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

_DIGEST = "digest"


def write_checked_table(
    path: str | Path, columns: Mapping[str, Any], record: Mapping[str, Any], *, kind: str
) -> None:
    """Write columns as one Parquet file, atomically, with a record of where they come from.

    Args:
        path: the file to create or replace; its folder must exist.
        columns: `{name: [n]}`, numpy arrays of numbers or booleans, or of strings (None is missing).
        record: plain JSON.
        kind: names this sort of table, such as `omics_selection`.

    Raises:
        OSError: the file system refused; what was at `path` is untouched.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from omics.data.atomic_files import replace_file

    table = pa.table({name: _arrow(values) for name, values in columns.items()})
    said = {**record, _DIGEST: _digest(table, record)}
    metadata = {kind.encode(): json.dumps(said, sort_keys=True, allow_nan=False).encode()}
    with replace_file(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            temporary,
            compression="zstd",
            write_page_checksum=True,
        )


def read_checked_table(
    path: str | Path, *, kind: str, made_by: str
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read a table of `write_checked_table`.

    Args:
        path: the file.
        kind: the sort of table it must be.
        made_by: the command that makes such a table, for messages.

    Returns:
        The columns (strings as objects, None for missing) and the record.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is another kind of file.
        CorruptStoreError: its bytes are damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise MissingPathError(f"There is no table {path}; make it with {made_by}.")
    with path.open("rb") as stream:
        if stream.read(4) != b"PAR1":
            raise InputDataError(f"{path} is not a Parquet file; make the table with {made_by}.")
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        said = json.loads((table.schema.metadata or {}).get(kind.encode(), b"null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise _damaged(path, reason, made_by) from error
    if not isinstance(said, dict) or not isinstance(said.get(_DIGEST), str):
        raise InputDataError(
            f"{path} is a Parquet file but not a table of {made_by}; give one that was made by it."
        )
    record = {name: value for name, value in said.items() if name != _DIGEST}
    if _digest(table, record) != said[_DIGEST]:
        raise _damaged(path, "its content does not match its digest", made_by)
    columns = {
        name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names
    }
    return columns, record


def require_cells(
    path: str | Path, store: CellStore, *, rows: Array, cells: Array, made_by: str
) -> None:
    """Refuse a table of the cells of another store.

    Args:
        path: of the table, for messages.
        store: whose cells it should name.
        rows: int64 [n], the rows of the table's cells.
        cells: [n], their names.
        made_by: the command that makes such a table.

    Raises:
        InputDataError: a row is not in the store, or holds a cell of another name.
    """
    again = f"Make it again for this store with {made_by}."
    if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(store)):
        raise InputDataError(
            f"{path} is of another store: it names row {int(rows.max()):,}, and {store.path} has "
            f"{len(store):,} cells. {again}"
        )
    differs = np.flatnonzero(store.obs.names[rows] != cells)
    if len(differs):
        row = int(rows[differs[0]])
        raise InputDataError(
            f"{path} is of another store: its cell of row {row} is {cells[differs[0]]!r}, that of "
            f"{store.path} is {store.obs.names[row]!r}. {again}"
        )


def _damaged(path: Path, found: str, made_by: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"The table {path} is damaged ({found}); make it again with {made_by}."
    )


def _arrow(values: Any) -> Any:
    import pyarrow as pa

    array = np.asarray(values)
    return pa.array(array, pa.string() if array.dtype.kind in "OU" else None)


def _digest(table: pa.Table, record: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of the record, the column names and every value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = hashlib.sha256(json.dumps(dict(record), sort_keys=True).encode())
    for name in table.column_names:
        column = table.column(name)
        found.update(json.dumps([name, str(column.type), len(column)]).encode())
        found.update(np.packbits(column.is_null().to_numpy()).tobytes())
        if pa.types.is_string(column.type):
            lengths = pc.fill_null(pc.binary_length(column), 0)
            found.update(lengths.to_numpy().astype("<i8").tobytes())
            for chunk in column.chunks:
                # A joined chunk may begin in the middle of its buffer; a filtered one does not.
                whole = pc.drop_null(chunk)
                offsets = np.frombuffer(whole.buffers()[1], "<i4")[
                    whole.offset : whole.offset + len(whole) + 1
                ]
                if len(whole) and whole.buffers()[2] is not None:
                    data = memoryview(whole.buffers()[2])
                    found.update(data[int(offsets[0]) : int(offsets[-1])])
        else:
            values = column.to_numpy(zero_copy_only=False)
            found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()
