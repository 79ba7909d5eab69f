"""Tables that are written part by part, as Parquet or CSV, and appear when they are whole.

- The suffix of the path decides. Parquet has page checksums and keeps the schema's metadata; CSV has
  a header, numbers with as many digits as they need, and nothing (not `nan`) where there is none.
- A spreadsheet runs text that begins like a formula: in CSV such text gets an apostrophe in front,
  in cells and in the header. Parquet holds every name as it is.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol, Self

from omics.data.atomic_files import replace_file
from omics.data.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa

    from omics.models import GeneEmbedding

SUFFIXES = (".parquet", ".csv")
# With the full-width forms of these characters.
_FORMULA = "^[=+@\\t\\r\\n\uff1d\uff0b\uff20\uff0d-]"


class TableFile(Protocol):
    """An open table."""

    def write_table(self, table: pa.Table) -> None:
        """Add rows; their schema is that of the file."""
        ...


@contextlib.contextmanager
def open_table(path: Path, schema: pa.Schema) -> Iterator[TableFile]:
    """Let a caller write a table part by part.

    Args:
        path: `.parquet` or `.csv`; replaced if it exists.
        schema: of all parts.

    Yields:
        What takes the parts. If the block raises, `path` keeps its content.

    Raises:
        UsageError: another suffix.
    """
    import pyarrow.parquet as pq

    check_suffix(path)
    with replace_file(path) as temporary:
        if path.suffix == ".csv":
            with _CsvFile(temporary, schema) as file:
                yield file
        else:
            with pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer:
                yield writer


def check_suffix(path: Path) -> None:
    """Refuse a path that is no table.

    Args:
        path: of a file to write.

    Raises:
        UsageError: neither `.parquet` nor `.csv`.
    """
    if path.suffix not in SUFFIXES:
        hint = nearest(path.suffix, SUFFIXES)
        raise UsageError(f"{path} is no name of a table: it ends with {path.suffix!r}.{hint}")


def write_genes(path: Path, embedding: GeneEmbedding, metadata: Mapping[str, str]) -> None:
    """Write one row for each gene: `gene`, `symbol`, `num_cells`, `e0`, `e1`, ...

    Args:
        path: `.parquet` or `.csv`; replaced if it exists.
        embedding: of the genes.
        metadata: kept in the schema of a Parquet file.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {
        "gene": pa.array(embedding.genes, pa.string()),
        "symbol": pa.array(embedding.symbols, pa.string()),
        "num_cells": embedding.num_cells,
        **{f"e{i}": embedding.vectors[:, i] for i in range(embedding.vectors.shape[1])},
    }
    table = pa.table(columns).replace_schema_metadata(dict(metadata))
    with open_table(path, table.schema) as file:
        file.write_table(table)


def plain_text(values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return text that no spreadsheet takes for a formula.

    Args:
        values: strings.

    Returns:
        The strings, with an apostrophe before those that begin with `=`, `+`, `-`, `@`, a tab or a
        line break, or the full-width forms of these.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    marked = pc.binary_join_element_wise(pa.scalar("'"), values, pa.scalar(""))
    return pc.if_else(pc.match_substring_regex(values, _FORMULA), marked, values)


class _CsvFile:
    """A CSV file that takes tables."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa
        import pyarrow.csv as pacsv

        text = [pa.types.is_string(kind) or pa.types.is_dictionary(kind) for kind in schema.types]
        header = plain_text(pa.array(schema.names, pa.string())).to_pylist()
        types = [pa.string() if t else k for t, k in zip(text, schema.types, strict=True)]
        self._text = text
        self._schema = pa.schema(list(zip(header, types, strict=True)))
        self._writer = pacsv.CSVWriter(path, self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write_table(self, table: pa.Table) -> None:
        """Add rows."""
        import pyarrow as pa
        import pyarrow.compute as pc

        columns = []
        for is_text, column in zip(self._text, table.columns, strict=True):
            if is_text:
                columns.append(plain_text(column.cast(pa.string())))
            elif pa.types.is_floating(column.type):
                columns.append(pc.if_else(pc.is_nan(column), None, column))
            else:
                columns.append(column)
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
