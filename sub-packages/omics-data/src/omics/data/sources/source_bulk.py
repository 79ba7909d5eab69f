"""Reads a bulk RNA-seq matrix in text form: TSV, CSV or GCT, plain or gzip, counts or TPM.

- A sample is a cell here. Genes may stand in rows (as most tables have them, and GCT always) or in
  columns; which it is shows in the ids, and can be said.
- The file is read once, whole, when it is opened: text has no index. Memory stays bounded (see
  `bulk_values`), whatever the size.
- Nothing is repaired in silence: samples that repeat are refused, genes that repeat are left to
  the conversion, what a spreadsheet made of a gene name and what was left out is in `notes`.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from omics.data.errors import (
    InputDataError,
    MissingPathError,
    UnknownNameError,
    UsageError,
    nearest,
)
from omics.data.sources.bulk_header import (
    TextLayout,
    genes_in_rows,
    looks_like_text_table,
    read_layout,
)
from omics.data.sources.bulk_units import bulk_unit
from omics.data.sources.bulk_values import TextValues, is_summary, read_values
from omics.data.sources.ensembl_names import gene_frame, is_ensembl
from omics.data.sources.memory_matrix import dense_matrix
from omics.data.sources.protocol import FileSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from omics.data.sources.matrix_blocks import MatrixSource

Array = np.ndarray[Any, np.dtype[Any]]
GenesIn = Literal["auto", "rows", "columns"]

LOCATION = "X"
UNIT_BUDGET = 16 * 2**20
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec"
_MANGLED = re.compile(
    rf"[0-9]{{1,2}}-({_MONTHS})|({_MONTHS})-[0-9]{{1,4}}|[0-9]\.[0-9]+E\+[0-9]+", re.IGNORECASE
)
_UNIT_NOTES = {
    "TPM or CPM": "X looks like TPM or CPM: every sample adds up to a million",
    "expected counts": (
        "X looks like expected counts (RSEM, Salmon, kallisto): estimates, mostly whole, some with "
        "fractions. They are no counts; whether to round them is your decision"
    ),
    "logarithms": "X looks like logarithms of values in an unknown unit",
    "FPKM or another unit": "X looks like FPKM, RPKM or another normalised unit",
}


def recognises(path: str | Path) -> bool:
    """Say whether a path is a matrix of numbers in text form, from its first bytes.

    Args:
        path: anything.
    """
    path = Path(path)
    return path.is_file() and looks_like_text_table(path)


@contextlib.contextmanager
def open_bulk(
    path: str | Path, *, genes_in: GenesIn = "auto", scratch: str | Path | None = None
) -> Iterator[SourceBulk]:
    """Open a matrix in text form for reading.

    Args:
        path: a TSV, CSV or GCT file, plain or gzip.
        genes_in: `rows`, `columns`, or `auto`: rows, unless the header holds ids of genes.
        scratch: a folder for 8 bytes per value while it is open; the system's temporary one by
            default.

    Yields:
        The source, usable until the end of the block.

    Raises:
        MissingPathError: there is no such file.
        UsageError: `genes_in` is none of these, or does not fit a GCT file.
        InputDataError: the file is no sound matrix; the message names line and column.
        ResourceError: the scratch folder is too small.
    """
    path = Path(path)
    if genes_in not in {"auto", "rows", "columns"}:
        raise UsageError(f"genes_in is {genes_in!r}; give 'rows', 'columns' or 'auto'.")
    if not path.is_file():
        raise MissingPathError(f"There is no file {path}.")
    layout = read_layout(path)
    if layout.is_gct and genes_in == "columns":
        raise UsageError(f"{path} is a GCT file, which has its genes in rows.")
    in_rows = genes_in == "rows" or layout.is_gct
    if genes_in == "auto" and not layout.is_gct:
        in_rows = genes_in_rows(layout.ids, layout.value_names)
    yield SourceBulk(layout, read_values(layout, scratch=scratch), in_rows=in_rows)


class SourceBulk(FileSource):
    """A matrix in text form; its samples are the cells.

    Args:
        layout: how the file is written.
        content: its values and ids.
        in_rows: genes stand in rows, else in columns.

    Attributes:
        path: the file.
        name: the path as text.
        format_name: `GCT` or `text matrix`.
        files: the file alone.
        num_cells: samples.
        num_genes: genes.
        matrices: `{"X": the matrix}`.
        unreadable: nothing.
        unit: of the values, as `bulk_unit` names it.
        notes: sentences about the file that its user should read.
    """

    def __init__(self, layout: TextLayout, content: TextValues, *, in_rows: bool) -> None:
        self.path = layout.path
        self.name = str(layout.path)
        self.files = (layout.path,)
        self.format_name = "GCT" if layout.is_gct else "text matrix"
        self._check_declared(layout, content)
        columns = list(layout.value_names)
        values = content.values
        if not in_rows and any(is_summary(name) for name in columns):
            kept = [number for number, name in enumerate(columns) if not is_summary(name)]
            content.left_out += [name for name in columns if is_summary(name)]
            columns, values = [columns[number] for number in kept], values[:, kept]
        genes, samples = (content.ids, columns) if in_rows else (columns, content.ids)
        self._require_unique(genes, "genes")
        self._require_unique(samples, "samples")
        self._genes, self._samples = genes, samples
        self._notes_of_genes = content.notes if in_rows else {}
        self._notes_of_samples = {} if in_rows else content.notes
        self.num_cells, self.num_genes = len(samples), len(genes)
        values = values.T if in_rows else values
        self.matrices: dict[str, MatrixSource] = {
            LOCATION: dense_matrix(values, path=layout.path, location=LOCATION)
        }
        self.unreadable: dict[str, str] = {}
        sample = self.matrices[LOCATION].sample(UNIT_BUDGET)
        self.unit = bulk_unit(sample.values, sample.indptr) if sample is not None else "unknown"
        self.notes = self._find_notes(content.left_out)

    def _check_declared(self, layout: TextLayout, content: TextValues) -> None:
        if layout.declared is None:
            return
        found = (len(content.ids) + len(content.left_out), len(layout.value_names))
        if found != layout.declared:
            raise InputDataError(
                f"{self.path} is a GCT file that declares {layout.declared[0]:,} rows and "
                f"{layout.declared[1]:,} samples but holds {found[0]:,} and {found[1]:,}. It was "
                "cut short or edited: fetch it again, or correct its second line."
            )

    def _require_unique(self, names: Sequence[str], what: str) -> None:
        if len(set(names)) == len(names):
            return
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if what == "genes":
            # What becomes of repeated genes is decided at conversion; but dates are no names.
            repeated = [name for name in repeated if _MANGLED.fullmatch(name)]
            if not repeated:
                return
        examples = ", ".join(repr(name) for name in repeated[:3])
        raise InputDataError(
            f"{len(repeated):,} {what} of {self.path} occur more than once ({examples}). "
            + (
                "A spreadsheet program turned names such as MARCH1 and MARC1 into dates: restore "
                "them from the original file."
                if what == "genes"
                else "Give every sample a name of its own."
            )
        )

    def _find_notes(self, left_out: list[str]) -> tuple[str, ...]:
        notes: list[str] = []
        mangled = [name for name in self._genes if _MANGLED.fullmatch(name)]
        if mangled:
            notes.append(
                f"{len(mangled):,} gene ids look like dates or numbers that a spreadsheet program "
                f"made of names ({', '.join(mangled[:3])}); restore them from the original file"
            )
        if left_out:
            notes.append(
                f"{len(left_out):,} lines that sum up reads outside genes were left out "
                f"({', '.join(left_out[:3])})"
            )
        if self.unit in _UNIT_NOTES:
            notes.append(_UNIT_NOTES[self.unit])
        elif self.unit.endswith("(TPM + 1)"):
            notes.append(f"X looks like {self.unit}: undone, every sample adds up to a million")
        return tuple(notes)

    @property
    def obs_columns(self) -> list[str]:
        """The names of the columns of obs: notes about samples that stand in rows."""
        return list(self._notes_of_samples)

    def matrix(self, location: str) -> MatrixSource:
        """Return the matrix.

        Args:
            location: `X`.

        Raises:
            UnknownNameError: it is another name.
        """
        if location not in self.matrices:
            raise UnknownNameError(
                f"{self.path} has no matrix {location!r}." + nearest(location, [*self.matrices])
            )
        return self.matrices[location]

    def obs(self) -> pd.DataFrame:
        """Return the table of samples; its index holds their names."""
        import pandas as pd

        columns = {name: _typed(text) for name, text in self._notes_of_samples.items()}
        frame = pd.DataFrame(columns, index=range(self.num_cells))
        frame.index = pd.Index(self._samples, dtype=object)
        return frame

    def var(self, location: str = LOCATION) -> pd.DataFrame:
        """Return the gene table.

        Args:
            location: `X`; there is no other.

        Returns:
            The index holds Ensembl ids without version where that tells the genes apart, else the
            ids of the file. Columns as in `gene_frame`, then the notes of the file; a description
            of Ensembl ids that is one word throughout is their `gene_symbol`.
        """
        self.matrix(location)
        frame = gene_frame(self._genes)
        for name, text in self._notes_of_genes.items():
            values = _typed(text)
            symbols = name.lower() == "description" and _are_symbols(self._genes, text)
            frame["gene_symbol" if symbols and "gene_symbol" not in frame else name] = (
                values.to_numpy()
            )
        return frame

    def table_bytes(self) -> int:
        """Return about how many bytes the tables take in memory, text not counted."""
        genes = self.num_genes * (4 + len(self._notes_of_genes))
        return 8 * (genes + self.num_cells * (1 + len(self._notes_of_samples)))


def _typed(text: list[str]) -> pd.Series[Any]:
    """Return a column as numbers if all of it are numbers, else as text."""
    import pandas as pd

    column = pd.Series(text, dtype=object)
    try:
        return pd.to_numeric(column)
    except (ValueError, TypeError):
        return column


def _are_symbols(genes: Sequence[str], text: Sequence[str]) -> bool:
    ensembl = sum(is_ensembl(name) for name in genes)
    return 2 * ensembl > len(genes) and not any(" " in each for each in text)
