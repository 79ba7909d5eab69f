"""Reads the small tables that users give about genes: aliases, orthologs, lists of genes.

- Plain text, tab- or comma-separated, UTF-8; lines that begin with `#` and empty lines are passed
  over. Tables are also taken as Python mappings or sequences, so that code needs no file.
- A table with a header is read by the names of its columns; without one it must have exactly two
  columns, in order. Nothing is guessed from the content.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from omics.data.errors import InputDataError, MissingPathError

MAX_TABLE_BYTES = 256 * 2**20
LIST_HEADERS = frozenset(
    {
        "gene", "genes", "gene_id", "gene_ids", "gene_name", "gene_symbol", "symbol", "ensembl_id",
        "feature_id", "feature_name", "id", "index",
    }
)  # fmt: skip

Pairs = list[tuple[str, str]]
PairTable = str | Path | Mapping[str, str] | Sequence[tuple[str, str]]
GeneList = str | Path | Sequence[str]


def read_pairs(table: PairTable, columns: tuple[str, str]) -> Pairs:
    """Return the rows of a table of two columns.

    Args:
        table: a file, a mapping from the first to the second, or pairs.
        columns: the names of the two columns in a header.

    Returns:
        (first, second) of each row, without the rows where either is empty.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is no such table; the message names the line.
    """
    if isinstance(table, Mapping):
        return [(str(a), str(b)) for a, b in table.items() if a and b]
    if not isinstance(table, str | Path):
        return [(str(a), str(b)) for a, b in table if a and b]
    path = Path(table)
    rows = table_rows(path)
    if not rows:
        raise InputDataError(f"{path} is empty; it must hold the columns {' and '.join(columns)}.")
    header = [cell.strip().lower() for cell in rows[0][1]]
    if set(columns) <= set(header):
        first, second = (header.index(name) for name in columns)
        rows = rows[1:]
    elif len(header) == 2:
        first, second = 0, 1
    else:
        raise InputDataError(
            f"{path} has {len(header)} columns and no header naming {columns[0]!r} and "
            f"{columns[1]!r} (line {rows[0][0]} is {', '.join(header)[:100]!r}). Name these two, or "
            "keep just two columns, in this order."
        )
    pairs: Pairs = []
    for line, cells in rows:
        if len(cells) <= max(first, second):
            raise InputDataError(
                f"Line {line} of {path} has {len(cells)} columns where {len(header)} belong. Mend "
                "that line."
            )
        pair = cells[first].strip(), cells[second].strip()
        if all(pair):
            pairs.append(pair)
    return pairs


def read_gene_list(genes: GeneList) -> list[str]:
    """Return the genes of a list, each once, in their order.

    Args:
        genes: a file (one gene a line, or a table whose first column holds them, with or without
            a header), or the genes themselves.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is no text, or holds no gene.
    """
    if isinstance(genes, str | Path):
        path = Path(genes)
        found = [cells[0].strip() for _, cells in table_rows(path)]
        if found and found[0].lower() in LIST_HEADERS:
            found = found[1:]
        what = str(path)
    else:
        found, what = [str(name) for name in genes], "The list of genes"
    unique = [name for name in dict.fromkeys(found) if name]
    if not unique:
        raise InputDataError(f"{what} holds no gene. Give one gene a line.")
    return unique


def read_medians(path: str | Path) -> dict[str, float]:
    """Return the medians of genes from a table.

    Args:
        path: a file with a header that names `median` and a column of gene ids (`gene`,
            `gene_id`, `ensembl_id`, ...), or with two columns, ids and medians, and no header.

    Returns:
        The median by gene id, without the rows where either is empty.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is no such table, or a median is no number above 0.
    """
    rows = table_rows(Path(path))
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    ids = next((name for name in header if name in LIST_HEADERS), "gene")
    medians: dict[str, float] = {}
    for gene, text in read_pairs(path, (ids, "median")):
        try:
            medians[gene] = float(text)
        except ValueError:
            medians[gene] = math.nan
        if not 0 < medians[gene] < math.inf:
            raise InputDataError(f"{path} has the median {text[:40]!r} for {gene!r}: not above 0.")
    return medians


def table_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return (line number, cells) of the lines of a file that say something.

    Args:
        path: a file of tab- or comma-separated text.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is no text in UTF-8, no table, or far too large.
    """
    if not path.is_file():
        raise MissingPathError(f"There is no file {path}.")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise InputDataError(
            f"{path} has {path.stat().st_size:,} bytes; a table of genes has a few megabytes. Is it "
            "the right file?"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputDataError(
            f"{path} is not text in UTF-8 (byte {error.start}). Give a TSV or CSV file."
        ) from None
    told = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    separator = "\t" if told and "\t" in told[0][1] else ","
    try:
        cells = list(csv.reader((line for _, line in told), delimiter=separator))
    except csv.Error as error:
        raise InputDataError(f"{path} is not a table of text ({error}).") from None
    if len(cells) != len(told):
        raise InputDataError(f"{path} has a quoted value that goes over several lines. Mend it.")
    return [(line, row) for (line, _), row in zip(told, cells, strict=True)]
