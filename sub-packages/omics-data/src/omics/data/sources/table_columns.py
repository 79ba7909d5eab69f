"""Brings the cell and gene tables of any source into a form that a store keeps.

- Byte strings become text, numbers get the byte order of the machine, names become text.
- Columns that Parquet cannot hold are an error that names them; nothing is dropped or guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]


def text_of(value: Any) -> str:
    """Return an attribute as text, whether it is stored as bytes or not.

    Args:
        value: of an attribute.
    """
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def listed(names: Iterable[str]) -> str:
    """Return names for a message: sorted, quoted, at most ten of them.

    Args:
        names: any number.
    """
    found = sorted(names)
    shown = ", ".join(repr(name) for name in found[:10])
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return (shown or "nothing") + more


def decoded(values: Array) -> Array:
    """Return byte strings as text; other values as they are.

    Args:
        values: [n], of any type.

    Raises:
        UnicodeDecodeError: a byte string is not UTF-8.
    """
    if values.dtype.kind == "S" or (
        values.dtype.kind == "O" and len(values) and isinstance(values[0], bytes)
    ):
        return np.array([value.decode() for value in values.tolist()], dtype=object)
    return values


def plain_table(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the table with every column in a form that Parquet holds.

    Args:
        frame: as its file gives it.
        name: of the table and its file, for messages.

    Returns:
        The same columns, named by text and decoded, under an index of text.

    Raises:
        InputDataError: a name occurs twice or is missing, or Parquet cannot hold a column.
    """
    import pandas as pd

    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise InputDataError(f"The table {name} has two columns called {twice!r}; rename one.")
    plain = {str(column): _plain_column(frame[column], name) for column in frame.columns}
    missing = np.flatnonzero(np.asarray(frame.index.isna()))
    if len(missing):
        raise InputDataError(f"The table {name} has no name in row {missing[0]}; give it one.")
    if pd.api.types.infer_dtype(frame.index) == "string":
        index = pd.Index(frame.index.to_numpy(object), dtype=object)
    else:
        index = pd.Index([_name(value, name) for value in frame.index], dtype=object)
    # Under the old index first: columns would be matched with a new one by its labels.
    table = pd.DataFrame(plain, index=frame.index)
    table.index = index.rename(frame.index.name)
    return table


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
            column[:] = decoded(values)
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
