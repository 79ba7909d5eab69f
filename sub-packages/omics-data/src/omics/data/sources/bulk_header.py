"""Finds out how a text matrix is written: separator, header, id column, notes beside the ids.

- The header and the first lines are looked at, nothing else; the values are read by `bulk_values`.
- Columns between the ids and the first values (a description, the length, the position of a gene,
  the tissue of a sample) are notes about the row: known names, or columns of text. A column of text
  further right is a mistake and is left to the reader to report.
- GCT 1.2, tables of R (no name above the ids) and of featureCounts (comment lines) are understood;
  the per-sample output of RSEM, Salmon and kallisto is named as what it is.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError
from omics.data.sources.ensembl_names import is_ensembl
from omics.data.sources.hdf5_safety import describe_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

GZIP_MAGIC = b"\x1f\x8b"
PEEKED_LINES = 50
MAX_LINE_BYTES = 64 * 2**20
MAX_COMMENTS = 10_000
SNIFFED_BYTES = 4 * 2**20
SEPARATORS = ("\t", ",", ";", " ")
# What stands for a missing value.
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "-")

NOTE_COLUMNS = frozenset(
    {
        "description", "gene_name", "gene_symbol", "symbol", "hgnc_symbol", "external_gene_name",
        "gene_description", "entrez", "entrezid", "entrez_id", "entrez_gene_id", "gene_biotype",
        "biotype", "gene_type", "chr", "chrom", "chromosome", "seqname", "start", "end", "strand",
        "length", "gene_length", "effective_length", "transcript_id(s)", "transcript_id",
    }
)  # fmt: skip
# Columns that together tell the output of one sample by one program.
_PER_SAMPLE = (
    ("RSEM", {"expected_count", "tpm"}, "expected_count"),
    ("kallisto", {"est_counts", "tpm"}, "est_counts"),
    ("Salmon", {"numreads", "tpm"}, "NumReads"),
)
# Genes that nearly every table of expression has, by symbol.
_COMMON_GENES = frozenset(
    {"ACTB", "GAPDH", "TP53", "EEF1A1", "RPLP0", "RPL13A", "B2M", "TUBB", "HPRT1", "MYC", "VIM"}
)
_MANY_COMMON = 3
_NUMBER = re.compile(
    r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?inf(inity)?", re.IGNORECASE
)
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")
_READ_ERRORS = (OSError, EOFError, zlib.error)


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """How a text matrix is written.

    Attributes:
        path: the file.
        gzipped: it is compressed.
        separator: between the cells of a line.
        first_line: the number (from 0) of the first line of values.
        columns: the name of every column, the one of the ids first.
        num_notes: how many columns behind the ids are notes about the row.
        ids: the ids of the first lines.
        longest: bytes of the longest of the first lines.
        is_gct: it is a GCT file.
        declared: rows and columns of values that a GCT file declares.
    """

    path: Path
    gzipped: bool
    separator: str
    first_line: int
    columns: tuple[str, ...]
    num_notes: int
    ids: tuple[str, ...]
    longest: int
    is_gct: bool = False
    declared: tuple[int, int] | None = None

    @property
    def value_names(self) -> tuple[str, ...]:
        """The names of the columns of values."""
        return self.columns[1 + self.num_notes :]

    @property
    def note_names(self) -> tuple[str, ...]:
        """The names of the columns of notes."""
        return self.columns[1 : 1 + self.num_notes]


def looks_like_text_table(path: Path) -> bool:
    """Tell from its first bytes whether a file is a table of numbers in text form.

    Args:
        path: an existing file.
    """
    try:
        with open_text(path) as stream:
            head = stream.read(SNIFFED_BYTES)
    except _READ_ERRORS:
        return False
    if not head or b"\0" in head or head.lstrip().startswith((b"<", b"{", b"%%MatrixMarket")):
        return False
    if head.startswith((b"#1.2", b"#1.3")):
        return True
    lines = head.decode(errors="replace").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    return _is_matrix(lines[: PEEKED_LINES + 1])


def _is_matrix(lines: list[str]) -> bool:
    """Tell a matrix from another table: behind ids and notes about them, there are numbers only."""
    separator = _separator(lines[0]) if lines else None
    if separator is None:
        return False
    columns = [name.strip() for name in _split(lines[0], separator)]
    cells = [_split(line, separator) for line in lines[1:]]
    if cells and len(cells[0]) == len(columns) + 1:
        columns = ["", *columns]
    notes = _count_notes(columns, cells)
    described = [name for name in columns[1 : 1 + notes] if name.lower() not in NOTE_COLUMNS]
    if described and genes_in_rows([row[0] for row in cells], columns[1 + notes :]):
        # Text of all kinds beside the ids: a table about samples, unless genes stand in its header.
        return False
    return any(_is_row(row, columns, notes) for row in cells)


def _is_row(cells: list[str], columns: list[str], notes: int) -> bool:
    values = [cell.strip() for cell in cells[1 + notes :]]
    return (
        len(cells) == len(columns)
        and any(is_number(value) for value in values)
        and all(is_number(value) or value in MISSING for value in values)
    )


def genes_in_rows(ids: Sequence[str], names: Sequence[str]) -> bool:
    """Tell whether genes stand in the rows of a matrix, not in its columns.

    Args:
        ids: of some rows.
        names: of all columns of values.

    Returns:
        False if the columns are called like genes and the rows are not.
    """
    if any(is_ensembl(name) for name in ids):
        return True
    ensembl = sum(is_ensembl(name) for name in names)
    common = len(_COMMON_GENES & {name.upper() for name in names})
    return not (2 * ensembl >= max(len(names), 1) or common >= _MANY_COMMON)


def open_text(path: Path) -> Any:
    """Open a text file as bytes, unpacking gzip.

    Args:
        path: the file.
    """
    with path.open("rb") as stream:
        packed = stream.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if packed else path.open("rb")


def read_layout(path: Path) -> TextLayout:
    """Find out how a text matrix is written, from its first lines.

    Args:
        path: the file, plain or gzip.

    Returns:
        The layout.

    Raises:
        InputDataError: it is empty, has no header or no values, or is no matrix.
    """
    try:
        with path.open("rb") as stream:
            gzipped = stream.read(2) == GZIP_MAGIC
        with open_text(path) as stream:
            before, lines = _first_lines(path, stream)
    except _READ_ERRORS as error:
        raise InputDataError(
            f"{path} cannot be read ({error}). It was cut short or damaged: fetch it again."
        ) from error
    declared, is_gct = None, bool(before) and before[0].startswith("#1.")
    if is_gct:
        declared, before, lines = _gct_dimensions(path, before, lines)
    header, rows, skipped = _header(path, before, lines)
    separator = "\t" if is_gct else _separator(header)
    if separator is None:
        raise InputDataError(
            f"{path} has no columns: its header is {header[:60]!r}. A matrix in text form has one "
            "column of ids and one per sample, with tabs or commas between them."
        )
    columns = [name.strip() for name in _split(header, separator)]
    cells = [_split(row, separator) for row in rows]
    if not cells:
        raise InputDataError(f"{path} has a header and no rows.")
    if len(cells[0]) == len(columns) + 1:
        # R leaves the corner empty, without a separator for it.
        columns = ["", *columns]
    _refuse_per_sample(path, columns)
    notes = 1 if is_gct else _count_notes(columns, cells)
    _check_columns(path, columns, cells, notes)
    return TextLayout(
        path=path,
        gzipped=gzipped,
        separator=separator,
        first_line=skipped,
        columns=tuple(columns),
        num_notes=notes,
        ids=tuple(row[0] for row in cells if row),
        longest=max(len(line) for line in (header, *rows)),
        is_gct=is_gct,
        declared=declared,
    )


def _first_lines(path: Path, stream: Any) -> tuple[list[str], list[str]]:
    """Return the leading comment lines and the lines behind them, without line ends."""
    before: list[str] = []
    lines: list[str] = []
    while len(lines) <= PEEKED_LINES and len(before) < MAX_COMMENTS:
        raw = stream.readline(MAX_LINE_BYTES + 1)
        if not raw:
            break
        if len(raw) > MAX_LINE_BYTES:
            raise InputDataError(
                f"{path} has a line longer than {MAX_LINE_BYTES:,} bytes; it is no matrix in text form."
            )
        try:
            text = raw.decode("utf-8-sig" if not before + lines else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            number = len(before) + len(lines) + 1
            raise InputDataError(
                f"Line {number} of {path} is not text in UTF-8 ({error.reason}). Save it as UTF-8."
            ) from error
        if not lines and (text.startswith("#") or not text.strip()):
            before.append(text)
        else:
            lines.append(text)
    if not lines:
        with open_text(path) as again:
            looks = describe_bytes(again.read(512))
        raise InputDataError(f"{path} holds no matrix: it looks like {looks}.")
    return before, lines


def _gct_dimensions(
    path: Path, before: list[str], lines: list[str]
) -> tuple[tuple[int, int], list[str], list[str]]:
    version = before[0].strip()
    if version != "#1.2":
        raise InputDataError(
            f"{path} is a GCT file of version {version[1:]}; version 1.2 is read. Save it as 1.2, "
            "without rows and columns of annotations."
        )
    numbers = re.findall(r"[^\t ]+", lines[0])
    if len(numbers) != 2 or not all(each.isdecimal() and len(each) < 12 for each in numbers):
        raise InputDataError(
            f"{path} is a GCT file, but its line {len(before) + 1} is {lines[0][:60]!r} where the "
            "numbers of rows and columns belong."
        )
    if len(lines) < 2:
        raise InputDataError(f"{path} is a GCT file that ends before its header.")
    return (int(numbers[0]), int(numbers[1])), [*before, lines[0]], lines[1:]


def _header(path: Path, before: list[str], lines: list[str]) -> tuple[str, list[str], int]:
    """Return the header, the lines of values behind it and the number of the first of those."""
    separator = _separator(lines[0])
    if separator is not None and before and before[-1].startswith("#"):
        cells = _split(lines[0], separator)
        commented = before[-1].lstrip("#").strip(" ")
        # A header behind a comment sign: as wide as the first line, which holds numbers already.
        if (
            len(_split(commented, separator)) == len(cells)
            and len(cells) > 1
            and any(_NUMBER.fullmatch(cell.strip()) for cell in cells[1:])
        ):
            return commented, lines, len(before)
    if separator is not None and _is_data(_split(lines[0], separator)):
        raise InputDataError(
            f"{path} has no header: its line {len(before) + 1} begins with values "
            f"({lines[0][:60]!r}). Add a line with the names of the columns."
        )
    return lines[0], [line for line in lines[1:] if line.strip()], len(before) + 1


def _is_data(cells: list[str]) -> bool:
    """Tell a line of values from a header: samples may be called 1, 2, 3, but not 0.5 or twice."""
    values = [cell.strip() for cell in cells[1:]]
    numbers = [value for value in values if _NUMBER.fullmatch(value)]
    return bool(values) and len(numbers) == len(values) and len(set(values)) < len(values)


def _separator(header: str) -> str | None:
    return next((each for each in SEPARATORS if len(_split(header, each)) > 1), None)


def _split(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return line.split(separator)


def _refuse_per_sample(path: Path, columns: list[str]) -> None:
    names = {name.lower() for name in columns}
    for program, needed, column in _PER_SAMPLE:
        if needed <= names:
            raise InputDataError(
                f"{path} is the output of {program} for one sample, not a matrix: its columns are "
                f"{', '.join(columns)}. Join the column {column} of all samples into one table "
                "(genes in rows, one column per sample). These are estimates with fractions, no "
                "counts: whether to round them is your decision."
            )


def _count_notes(columns: list[str], cells: list[list[str]]) -> int:
    count = 0
    for position in range(1, len(columns)):
        known = columns[position].lower() in NOTE_COLUMNS
        if not known and not _is_text([row[position] for row in cells if len(row) > position]):
            break
        count += 1
    return count


def _is_text(values: list[str]) -> bool:
    given = [value.strip() for value in values if value.strip() not in MISSING]
    return bool(given) and not any(is_number(value) for value in given)


def is_number(text: str) -> bool:
    """Tell whether a cell was meant as a number, be it with a comma for the point.

    Args:
        text: of the cell.
    """
    return bool(_NUMBER.fullmatch(text) or _DECIMAL_COMMA.fullmatch(text))


def _check_columns(path: Path, columns: list[str], cells: list[list[str]], notes: int) -> None:
    names = columns[1 + notes :]
    if not names:
        raise InputDataError(
            f"{path} has no column of values: {len(columns)} columns "
            f"({', '.join(repr(each) for each in columns[:5])}), all of them text."
        )
    if len(set(columns)) != len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise InputDataError(
            f"{path} has two columns called {twice!r}. Give every column a name of its own."
        )
    numbered = [row[0] for row in cells if row]
    counted = [str(number) for number in range(len(numbered))]
    if columns[0] in {"", "Unnamed: 0"} and numbered == counted and notes:
        raise InputDataError(
            f"The first column of {path} numbers the rows, and the ids stand in the column "
            f"{columns[1]!r} behind it. Write the table without its index (in pandas: index=False)."
        )
