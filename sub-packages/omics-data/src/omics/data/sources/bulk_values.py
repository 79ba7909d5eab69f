"""Reads the values of a text matrix into a scratch file, in bounded memory, with exact messages.

- pyarrow parses blocks of text; a block becomes rows of float64 at the end of a file without a
  name, which is then mapped. A text matrix has no index, so it is read once, whole, in its order.
- float64 holds every count that a store can hold; nothing is rounded on the way.
- When pyarrow refuses a file, the lines are gone through again, one by one, to say which line and
  which column is wrong.
- Memory: some ten blocks of text, and the ids. Disk: 8 bytes per value while the file is open.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import tempfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, ResourceError
from omics.data.sources.bulk_header import MISSING, TextLayout, is_number, open_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_BYTES = 4 * 2**20
# Left free on the disk of the scratch file.
SPARE_BYTES = 64 * 2**20

# Lines with which counting programs sum up what they did not count.
_SUMMARIES = re.compile(
    r"__(no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)"
    r"|N_(unmapped|multimapping|noFeature|ambiguous)"
)


@dataclass(kw_only=True)
class TextValues:
    """The content of a text matrix.

    Attributes:
        values: float64 [rows, columns of values], mapped from the scratch file.
        ids: the id of each row.
        notes: the columns of notes, `{name: one text per row}`.
        left_out: ids of rows that sum up what a program did not count.
    """

    values: Array
    ids: list[str]
    notes: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def is_summary(name: str) -> bool:
    """Tell whether a name is a line of HTSeq or STAR about reads that were not counted.

    Args:
        name: the id of a row.
    """
    return _SUMMARIES.fullmatch(name) is not None


def read_values(layout: TextLayout, *, scratch: str | Path | None = None) -> TextValues:
    """Read all values of a text matrix.

    Args:
        layout: how it is written.
        scratch: a folder for 8 bytes per value; by default the system's temporary one.

    Returns:
        The values, mapped from a file that is gone when they are.

    Raises:
        InputDataError: a line is too short or too long, or a cell is empty or no number.
        ResourceError: the scratch folder is too small.
    """
    import pyarrow as pa

    found = TextValues(values=np.empty((0, len(layout.value_names))), ids=[])
    notes: dict[str, list[str]] = {name: [] for name in layout.note_names}
    scratch = scratch if scratch is not None else tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=scratch) as file:
        try:
            for batch in _batches(layout):
                ids, texts, values = _without_summaries(found, *batch)
                _require_space(scratch, values.nbytes, layout)
                file.write(np.ascontiguousarray(values).data)
                found.ids += ids
                for name, text in zip(notes, texts, strict=True):
                    notes[name] += text
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, ResourceError):
                raise
            raise _located(layout, error) from error
        file.flush()
        if found.ids:
            shape = (len(found.ids), len(layout.value_names))
            found.values = np.memmap(file, np.float64, mode="r", shape=shape)
    found.notes = notes
    return found


def _without_summaries(
    found: TextValues, ids: list[str], texts: list[list[str]], values: Array
) -> tuple[list[str], list[list[str]], Array]:
    """Leave out the rows that sum up what a program did not count, and note their ids."""
    keep = np.array([not is_summary(name) for name in ids], bool)
    if keep.all():
        return ids, texts, values
    found.left_out += [name for name in ids if is_summary(name)]
    kept = [np.asarray(text, object)[keep].tolist() for text in (ids, *texts)]
    return kept[0], kept[1:], values[keep]


def _require_space(scratch: str | Path, needed: int, layout: TextLayout) -> None:
    free = shutil.disk_usage(scratch).free
    if free < needed + SPARE_BYTES:
        raise ResourceError(
            f"{layout.path} does not fit into the scratch folder {scratch} ({free:,} bytes are "
            "free; a matrix in text form takes 8 bytes per value there while it is open). Set "
            "TMPDIR to a folder on a larger disk."
        )


def _batches(layout: TextLayout) -> Iterator[tuple[list[str], list[list[str]], Array]]:
    """Yield (ids, notes by column, float64 [rows, columns]) of one block of text after the other."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    columns = [f"c{number}" for number in range(len(layout.columns))]
    first_value = 1 + layout.num_notes
    types = {
        name: pa.string() if number < first_value else pa.float64()
        for number, name in enumerate(columns)
    }
    with pa.OSFile(str(layout.path), "rb") as file:
        stream = pa.CompressedInputStream(file, "gzip") if layout.gzipped else file
        reader = arrow_csv.open_csv(
            stream,
            read_options=arrow_csv.ReadOptions(
                use_threads=False,
                block_size=max(BLOCK_BYTES, 4 * layout.longest),
                column_names=columns,
                skip_rows=layout.first_line,
            ),
            parse_options=arrow_csv.ParseOptions(delimiter=layout.separator),
            convert_options=arrow_csv.ConvertOptions(
                column_types=types, null_values=list(MISSING), strings_can_be_null=False
            ),
        )
        with reader:
            for batch in reader:
                texts = [batch.column(number).to_pylist() for number in range(first_value)]
                # One column after the other, turned round once: writing across rows is slow.
                turned = np.empty((len(columns) - first_value, batch.num_rows))
                for number in range(first_value, len(columns)):
                    column = batch.column(number)
                    if column.null_count:
                        raise pa.ArrowInvalid("a value is missing")
                    turned[number - first_value] = column.to_numpy(zero_copy_only=False)
                if not all(texts[0]):
                    raise pa.ArrowInvalid("an id is missing")
                yield texts[0], texts[1:], np.ascontiguousarray(turned.T)


# --- messages ------------------------------------------------------------------------------------


def _located(layout: TextLayout, error: Exception) -> InputDataError:
    """Say which line and column is wrong, by going through the lines one by one."""
    reason = str(error).strip().split("\n", maxsplit=1)[0]
    try:
        found = _first_fault(layout)
    except UnicodeDecodeError as again:
        found = f"it is not text in UTF-8 from line {layout.first_line + 1} on ({again.reason})"
    except (OSError, EOFError, zlib.error, csv.Error) as again:
        found = f"it cannot be read to its end ({again}); it was cut short or damaged"
    return InputDataError(f"{layout.path}: {found or reason}. Mend the file, or write it again.")


def _first_fault(layout: TextLayout) -> str | None:
    with open_text(layout.path) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        for _ in range(layout.first_line):
            text.readline()
        lines = csv.reader(text, delimiter=layout.separator)
        for cells in lines:
            fault = _fault(layout, cells) if cells else None
            if fault:
                return f"line {layout.first_line + lines.line_num}{fault}"
    return None


def _fault(layout: TextLayout, cells: list[str]) -> str | None:
    wanted = len(layout.columns)
    if len(cells) != wanted:
        return f" has {len(cells)} columns where {wanted} belong (it begins {cells[0][:40]!r})"
    if not cells[0]:
        return f", column {layout.columns[0] or 1!r}: the id is missing"
    for position in range(1 + layout.num_notes, wanted):
        cell, name = cells[position], layout.columns[position]
        if cell.strip() in MISSING:
            return (
                f" ({cells[0]}), column {name!r}: the value is missing ({cell!r}); write 0 where "
                "nothing was counted"
            )
        if not is_number(cell.strip()):
            return (
                f" ({cells[0]}), column {name!r}: {cell[:40]!r} is not a number; columns of text "
                "belong between the ids and the first values"
            )
        if "," in cell:
            return f" ({cells[0]}), column {name!r}: {cell!r} has a comma in a number; write a point for decimals, and nothing between thousands"
    return None
