"""A table of cells or genes as one Parquet file that gives back the pandas frame it was made of.

- Page checksums are written and checked; the chunk checksums of the store cover the rest.
- The index (obs or var names) is the column `_index`, a name that AnnData reserves as well.
- Parquet keeps neither unused categories nor their order or type, so a categorical is written
  as its values, and its categories as JSON in the schema metadata under the key `omics`.
- Columns are read one at a time: an atlas has hundreds, training needs two.
- Categories and strings are held as codes (4 bytes a row) and turned into values only for the rows
  that are asked for; a whole column as values is there for whoever asks for that.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, OmicsError, UnknownNameError, nearest
from omics.data.storage.store_format import damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa

    from omics.data.storage.mapped_file import MappedFile

Array = np.ndarray[Any, np.dtype[Any]]

INDEX_COLUMN = "_index"
METADATA_KEY = b"omics"
_TEXT_DTYPES = ("object", "string", "str")
_NUMBER_KINDS = "biuf"


def write_frame(frame: pd.DataFrame, path: Path, what: str) -> None:
    """Write a frame so that `FrameTable` gives it back.

    Args:
        frame: scalar columns with unique string names; an index of strings (others are turned
            into strings).
        path: the file to create.
        what: `obs` or `var`, for messages.

    Raises:
        InputDataError: a column or the index cannot be kept exactly; the message names it.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    _check_columns(frame, what)
    columns: dict[str, Any] = {INDEX_COLUMN: _index_values(frame, what)}
    categories: dict[str, dict[str, Any]] = {}
    for name in frame.columns:
        column: Any = frame[name].reset_index(drop=True)
        if str(column.dtype) == "category":
            categories[name] = _describe_categories(column, name, what)
            column = _values_of_categorical(column)
        columns[name] = column
    table = _to_arrow(pd.DataFrame(columns), what)
    index_name = None if frame.index.name is None else str(frame.index.name)
    record = {"index_name": index_name, "categories": categories}
    metadata = dict(table.schema.metadata or {})
    metadata[METADATA_KEY] = json.dumps(record, sort_keys=True, allow_nan=False).encode("ascii")
    with path.open("wb") as stream:  # pyarrow takes no path whose bytes are not UTF-8.
        pq.write_table(
            table.replace_schema_metadata(metadata),
            stream,
            compression="zstd",
            write_page_checksum=True,
            version="2.6",
        )


class FrameTable:
    """The table of the cells (`obs`) or genes (`var`) of a store; columns are read on demand.

    Args:
        source: the Parquet file.
        num_rows: how many rows it must have.
    """

    def __init__(self, source: MappedFile, num_rows: int) -> None:
        self._source = source
        self._num_rows = num_rows
        self._columns: tuple[str, ...] | None = None
        self._types: dict[str, pa.DataType] = {}
        self._record: dict[str, Any] = {}
        self._cache: dict[str, Array] = {}
        self._coded: dict[str, tuple[Array, Array]] = {}
        self._tables: dict[str, Array] = {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._num_rows

    def __contains__(self, name: object) -> bool:
        """Return whether a column of this name exists."""
        return name in self.columns

    @property
    def columns(self) -> tuple[str, ...]:
        """The column names, in order, without the index."""
        if self._columns is None:
            self._read_schema()
        assert self._columns is not None
        return self._columns

    @property
    def names(self) -> Array:
        """Object [n] of strings: the index (obs_names or var_names)."""
        return self._values(INDEX_COLUMN)

    def __getitem__(self, name: str) -> Array:
        """Return one column as plain values.

        Args:
            name: the column.

        Returns:
            [n]. Strings, and integers or booleans of which some are missing, are objects with
            None for missing; missing floats are NaN, missing times NaT. Categories are turned
            into their values.

        Raises:
            UnknownNameError: there is no such column.
            CorruptStoreError: the bytes of the column are damaged.
        """
        self._require(name)
        return self._values(name)

    def codes(self, name: str) -> tuple[Array, Array]:
        """Return one column as numbers of its distinct values, without an object per row.

        Args:
            name: the column, of any type.

        Returns:
            int32 [n] codes, -1 for missing, and the values [k] that they number: the categories of
            a categorical in their order, also unused ones; else the distinct values, ascending.
            Both are kept and read-only. Takes 4 bytes of memory a row.

        Raises:
            UnknownNameError: there is no such column.
            CorruptStoreError: the bytes of the column are damaged.
        """
        self._require(name)
        if name not in self._coded:
            codes, values = self._read_codes(name)
            codes.flags.writeable = values.flags.writeable = False
            self._coded[name] = codes, values
        return self._coded[name]

    def take(self, name: str, rows: Array) -> Array:
        """Return some values of one column.

        Args:
            name: the column.
            rows: integers [m] from 0 to len - 1.

        Returns:
            [m], the same as `self[name][rows]`; of a column of categories or strings only codes
            are held in memory.

        Raises:
            UnknownNameError: there is no such column.
            CorruptStoreError: the bytes of the column are damaged.
        """
        self._require(name)
        if not self._is_coded(name):
            return self._values(name)[rows]
        codes, values = self.codes(name)
        if name not in self._tables:
            self._tables[name] = _decoding_table(values, codes)
        return self._tables[name][codes[rows]]

    def _require(self, name: str) -> None:
        if name not in self.columns:
            raise UnknownNameError(
                f"{self._source.path} has no column {name!r}.{nearest(name, self.columns)}"
            )

    def _is_coded(self, name: str) -> bool:
        return name in self._record["categories"] or self._is_text(name)

    def _is_text(self, name: str) -> bool:
        import pyarrow as pa

        return pa.types.is_string(self._types[name]) or pa.types.is_large_string(self._types[name])

    def to_pandas(self) -> pd.DataFrame:
        """Return the whole table as it was written: categoricals kept, index = names."""
        table = self._read(None)
        categories = self._record["categories"]
        frame = _guarded(self._source.path, table.drop(list(categories)).to_pandas)
        index = frame.pop(INDEX_COLUMN)
        for position, name in enumerate(self.columns):
            if name in categories:
                frame.insert(position, name, self._categorical(table.column(name), name))
        frame.index = _text_index(index, self._record["index_name"])
        return frame

    def _values(self, name: str) -> Array:
        if name not in self._cache:
            values = self._plain_values(name)
            values.flags.writeable = False
            self._cache[name] = values
        return self._cache[name]

    def _plain_values(self, name: str) -> Array:
        if name in self.columns and name in self._record["categories"]:
            codes, values = self.codes(name)
            return _decoding_table(values, codes)[codes]
        return _plain_column(self._read([name]).column(name))

    def _read_codes(self, name: str) -> tuple[Array, Array]:
        texts = [name] if self._is_text(name) else []
        column = self._read([name], texts).column(name)
        if name in self._record["categories"]:
            found = self._categorical(column, name)
            return np.array(found.codes, np.int32), _category_values(found.categories)
        return _guarded(self._source.path, lambda: _distinct(column))

    def _categorical(self, column: pa.ChunkedArray, name: str) -> pd.Categorical:
        """Return a column of values as the categorical it was written from."""
        import pandas as pd

        described = self._record["categories"][name]
        categories = _category_index(described)
        encoded = _encoded(column)
        known = categories.get_indexer(pd.Index(encoded.dictionary.to_pandas()))
        if (known < 0).any():
            raise damaged(self._source.path, f"holds values of {name!r} outside its categories")
        codes = np.append(known, -1)[_indices(encoded)]
        return pd.Categorical.from_codes(codes, categories, ordered=described["ordered"])

    def _read_schema(self) -> None:
        file = _guarded(self._source.path, self._open)
        names = file.schema_arrow.names
        if file.metadata.num_rows != self._num_rows or names[:1] != [INDEX_COLUMN]:
            raise damaged(self._source.path, f"is not a table of {self._num_rows} rows with names")
        metadata = file.schema_arrow.metadata or {}
        self._record = _parse_record(metadata.get(METADATA_KEY, b""), names, self._source.path)
        self._types = {field.name: field.type for field in file.schema_arrow}
        self._columns = tuple(names[1:])

    def _read(self, names: list[str] | None, texts: Sequence[str] = ()) -> pa.Table:
        """Read columns; categories of text, and `texts`, come as dictionaries."""
        _ = self.columns
        texts = [
            *texts,
            *(
                name
                for name, described in self._record["categories"].items()
                if described["dtype"] in _TEXT_DTYPES and (names is None or name in names)
            ),
        ]
        return _guarded(
            self._source.path,
            lambda: self._open(read_dictionary=texts).read(columns=names, use_threads=False),
        )

    def _open(self, **options: Any) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(
            self._source.reader(), page_checksum_verification=True, pre_buffer=False, **options
        )


def _check_columns(frame: pd.DataFrame, what: str) -> None:
    if frame.columns.nlevels != 1 or frame.index.nlevels != 1:
        raise InputDataError(f"{what} has a MultiIndex. Use one level of names.")
    for name in frame.columns:
        if not isinstance(name, str):
            raise InputDataError(f"A column of {what} is named {name!r}. Names must be strings.")
        if name == INDEX_COLUMN:
            raise InputDataError(
                f"A column of {what} is named {INDEX_COLUMN!r}, which is reserved for the "
                "names. Rename it in the source."
            )
    if not frame.columns.is_unique:
        repeated = frame.columns[frame.columns.duplicated()][0]
        raise InputDataError(f"{what} has two columns named {repeated!r}. Rename one of them.")


def _index_values(frame: pd.DataFrame, what: str) -> Array:
    if frame.index.hasnans:
        raise InputDataError(f"A name in the index of {what} is missing. Give every row a name.")
    names = frame.index.to_numpy(dtype=object)
    if set(map(type, names.tolist())) <= {str}:
        return np.asarray(names)
    return np.array([str(name) for name in names], dtype=object)


def _text_index(names: Any, index_name: str | None) -> pd.Index:
    import pandas as pd

    return pd.Index(names.to_numpy(), name=index_name)


def _describe_categories(column: Any, name: str, what: str) -> dict[str, Any]:
    """Return the JSON record of a categorical's categories."""
    categories = column.cat.categories
    dtype = str(categories.dtype)
    values = categories.tolist()
    text = dtype in _TEXT_DTYPES and all(isinstance(value, str) for value in values)
    number = getattr(categories.dtype, "kind", "O") in _NUMBER_KINDS
    finite = not number or bool(np.isfinite(np.asarray(values, np.float64)).all())
    if not (text or number) or not finite:
        raise InputDataError(
            f"The categories of column {name!r} of {what} are of type {dtype} (or mixed). Only "
            "strings, booleans and finite numbers can be kept: turn them into strings."
        )
    return {"dtype": dtype, "ordered": bool(column.cat.ordered), "values": values}


def _category_index(described: dict[str, Any]) -> pd.Index:
    import pandas as pd

    try:
        return pd.Index(described["values"], dtype=described["dtype"])
    except TypeError:  # `str` of pandas 3, read by pandas 2.
        return pd.Index(described["values"], dtype=object)


def _written_dtype(column: Any) -> str:
    """Return the dtype in which the values of a categorical are written."""
    categories = column.cat.categories
    if str(categories.dtype) in _TEXT_DTYPES:
        return "category" if len(categories) else "string"
    return {"b": "boolean", "f": "Float64", "i": "Int64", "u": "UInt64"}[categories.dtype.kind]


def _values_of_categorical(column: Any) -> Any:
    """Return the values of a categorical column, exactly, with missing ones masked."""
    import pandas as pd

    dtype = _written_dtype(column)
    if dtype in {"category", "string"}:
        return column.astype(dtype)
    # By codes: pandas' own conversion passes through float64, which large integers do not survive.
    codes = column.cat.codes.to_numpy()
    missing = codes < 0
    table = column.cat.categories.to_numpy()
    if not len(table):
        return pd.Series([None] * len(codes), dtype=dtype)
    kind = {"boolean": np.bool_, "Float64": np.float64, "Int64": np.int64, "UInt64": np.uint64}
    values = table[np.where(missing, 0, codes)].astype(kind[dtype])
    masked = {
        "boolean": pd.arrays.BooleanArray,
        "Float64": pd.arrays.FloatingArray,
        "Int64": pd.arrays.IntegerArray,
        "UInt64": pd.arrays.IntegerArray,
    }
    return pd.Series(masked[dtype](values, missing))


def _to_arrow(frame: pd.DataFrame, what: str) -> pa.Table:
    import pyarrow as pa

    try:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError) as error:
        reason = "; ".join(str(part) for part in error.args)
        raise _unkept(f"A column of {what}", reason) from None
    for field in table.schema:
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            raise _unkept(f"Column {field.name!r} of {what}", f"it holds {field.type} values")
    return table


def _unkept(column: str, reason: str) -> InputDataError:
    return InputDataError(
        f"{column} cannot be kept ({reason[:300]}). Turn it into one type of number, string or "
        "category in the source, or remove it."
    )


def _parse_record(data: bytes, names: list[str], path: Path) -> dict[str, Any]:
    """Return the checked record of index name and categories from the schema metadata."""
    try:
        record = json.loads(data)
        index_name, categories = record["index_name"], record["categories"]
        sound = (index_name is None or isinstance(index_name, str)) and all(
            name in names
            and type(each["ordered"]) is bool
            and type(each["values"]) is list
            and isinstance(each["dtype"], str)
            for name, each in categories.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise damaged(path, "has no sound record of its categories")
    return dict(record)


def _category_values(categories: pd.Index) -> Array:
    values = categories.to_numpy()
    if values.dtype.kind in _NUMBER_KINDS:
        return np.array(values)
    return np.array([*categories.tolist(), None], dtype=object)[:-1]


def _decoding_table(values: Array, codes: Array) -> Array:
    """Return values [k + 1] by code; the last is that of missing ones, if there are any."""
    if values.dtype.kind == "f":
        return np.append(values, np.nan)
    if values.dtype.kind in _NUMBER_KINDS and (codes >= 0).all():
        return values
    table = np.empty(len(values) + 1, dtype=object)
    table[:-1] = values.tolist()
    return table


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Return a column as one dictionary-encoded array."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.unify_dictionaries().combine_chunks()


def _indices(encoded: pa.DictionaryArray) -> Array:
    return np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False))


def _distinct(column: pa.ChunkedArray) -> tuple[Array, Array]:
    """Return int32 codes [n] and the distinct values [k], ascending."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count == len(column):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        return np.full(len(column), -1, np.int32), np.array(_empty(kind))
    encoded = _encoded(column)
    ascending = pc.sort_indices(encoded.dictionary)
    values = _plain_column(encoded.dictionary.take(ascending))
    if values.dtype.kind == "f":
        values = values[~np.isnan(values)]  # They come last, and are missing values here.
    ranks = np.full(len(ascending) + 1, -1, np.int32)
    ranks[ascending.to_numpy()[: len(values)]] = np.arange(len(values))
    return ranks[_indices(encoded)], values


def _plain_column(column: pa.ChunkedArray | pa.Array) -> Array:
    import pyarrow as pa

    if column.null_count and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        return np.array([*column.to_pylist(), None], dtype=object)[:-1]
    values = column.to_numpy(zero_copy_only=False) if len(column) else _empty(column.type)
    return np.array(values)


def _empty(arrow_type: Any) -> Array:
    import pyarrow as pa

    return pa.array([], arrow_type).to_numpy(zero_copy_only=False)


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """Run a Parquet reader and turn its errors into ours."""
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OmicsError | MemoryError):
            raise
        raise damaged(path, f"cannot be read as Parquet ({str(error)[:200]})") from None
