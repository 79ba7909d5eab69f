"""What `omics-train predict` writes: tables with one row a cell, in input order, streamed.

- `embeddings` always; with label heads `predictions` (the class and its probability, the labels
  joined by `|`, or the value of a number), and for all but numbers `probabilities` (columns
  `<label>_<class>`, and the nodes of a hierarchy) and `logits`. At the level of genes `gene_embeddings` (one row a gene) in place of `embeddings`, and on request
  `gene_embeddings_per_cell`.
- Parquet: `row`, `cell`, `reason` (why a cell has no numbers; empty where it has), then values. CSV:
  a header, `cell`, then values: what `read_csv(..., index_col=0)` makes a matrix of.
- Rows wait in memory until there are 16 MB of a table, then they are written and forgotten; the
  tables appear under their names when they are complete.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from omics.eval.table_files import TableFile, open_table
from omics.models.inference import REASONS
from omics.models.label_answers import (
    best_class,
    is_number,
    label_sets,
    probabilities,
    probability_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from omics.models import InferenceBatch
    from omics.models.gene_embedding import GeneNames
    from omics.tokenizers import LabelSpec

Array = np.ndarray[Any, np.dtype[Any]]

EMBEDDINGS = "embeddings"
GENES = "gene_embeddings"
GENES_PER_CELL = "gene_embeddings_per_cell"
PREDICTIONS = "predictions"
PROBABILITIES = "probabilities"
LOGITS = "logits"
ALL_TABLES = (EMBEDDINGS, GENES, GENES_PER_CELL, PREDICTIONS, PROBABILITIES, LOGITS)
WAITING_BYTES = 16 << 20


def table_names(labels: Sequence[LabelSpec], *, level: str, per_cell: bool) -> list[str]:
    """Return the tables of a prediction.

    Args:
        labels: what is predicted of each cell.
        level: `cell` or `gene`.
        per_cell: whether genes get a row in each cell, too.
    """
    names = [EMBEDDINGS] if level == "cell" else [GENES]
    if per_cell:
        names.append(GENES_PER_CELL)
    if labels:
        names.append(PREDICTIONS)
    if not all(is_number(spec) for spec in labels):
        names += [PROBABILITIES, LOGITS]
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is written of the results of a bundle.

    Attributes:
        tables: of `table_names`; `gene_embeddings` is not made here.
        cells: names of all cells of the store, by row.
        labels: what is predicted of each cell.
        width: of an embedding of a cell.
        gene_width: of the vector of a gene.
        genes: names of the tokens, where genes get a row in each cell.
        metadata: kept in the schema of each Parquet file, such as the bundle's digest.
    """

    tables: Sequence[str]
    cells: Array
    labels: Sequence[LabelSpec]
    width: int
    gene_width: int
    genes: GeneNames
    metadata: Mapping[str, str]

    @contextlib.contextmanager
    def writer(self, folder: Path, suffixes: Sequence[str]) -> Iterator[PredictionWriter]:
        """Let a caller write the tables batch by batch.

        Args:
            folder: where they go; files of an earlier prediction are replaced.
            suffixes: `.parquet`, `.csv`.

        Yields:
            What takes the batches. If the block raises, no table appears.
        """
        with contextlib.ExitStack() as stack:
            tables = {
                name: stack.enter_context(
                    _open(folder, name, suffixes, self.columns(name), self.metadata)
                )
                for name in self.tables
                if name != GENES
            }
            yield PredictionWriter(self, tables)

    def columns(self, table: str) -> list[_Column]:
        """Return the columns of a table.

        Args:
            table: of `tables`.
        """
        cell = [_Column(["row"], pa.int64(), in_csv=False), _Column(["cell"], pa.string())]
        reason = _Column(["reason"], pa.string(), values=REASONS, in_csv=False)
        if table == EMBEDDINGS:
            return _unique([*cell, reason, _wide(self.width)])
        if table == GENES_PER_CELL:
            gene = _Column(["gene"], pa.string(), values=self.genes.genes)
            return _unique([*cell, gene, _wide(self.gene_width)])
        values: list[_Column] = []
        for spec in self.labels:
            if table == PREDICTIONS:
                values += _answer_columns(spec)
            elif not is_number(spec):
                ends = spec.classes if table == LOGITS else probability_names(spec)
                values.append(_Column([f"{spec.name}_{each}" for each in ends], pa.float32()))
        return _unique([*cell, reason, *values])


class PredictionWriter:
    """Takes the batches of an inference loop."""

    def __init__(self, prediction: Prediction, tables: Mapping[str, _Table]) -> None:
        self._prediction = prediction
        self._tables = tables

    def add(self, batch: InferenceBatch) -> None:
        """Write the results of some cells.

        Args:
            batch: of the inference loop.
        """
        for name, table in self._tables.items():
            table.add(self._values(name, batch))

    def _values(self, table: str, batch: InferenceBatch) -> list[Array]:
        cells = self._prediction.cells
        if table == GENES_PER_CELL:
            assert batch.genes is not None
            rows = np.repeat(batch.rows, np.diff(batch.genes.offsets))
            return [rows, cells[rows], batch.genes.tokens, batch.genes.vectors]
        values = [batch.rows, cells[batch.rows], batch.reasons]
        if table == EMBEDDINGS:
            return [*values, batch.embeddings]
        for spec in self._prediction.labels:
            if table == PREDICTIONS:
                values += _answers(spec, batch)
            elif not is_number(spec):
                logits = batch.logits[spec.name]
                values.append(logits if table == LOGITS else probabilities(spec, batch))
        return values


@dataclass(frozen=True, slots=True)
class _Column:
    """One column, or the many of a matrix.

    Attributes:
        names: of the columns.
        kind: of all of them.
        values: what numbers stand for, -1 for nothing; None for the numbers themselves.
        in_csv: whether CSV has it.
    """

    names: Sequence[str]
    kind: pa.DataType
    values: Sequence[str] | Array | None = None
    in_csv: bool = True

    def arrays(self, parts: Sequence[Array]) -> list[pa.Array]:
        """Return the columns of collected parts, [n] or [n, columns] each."""
        joined = np.concatenate(parts)
        if self.values is not None:
            codes = pa.array(joined, pa.int32(), mask=joined < 0)
            meant = pa.array(list(self.values), pa.string())
            return [meant.take(codes)]
        if joined.ndim == 1:
            return [pa.array(joined, self.kind)]
        # One copy that has each column in one piece; its rows are then taken as they are.
        return [pa.array(column, self.kind) for column in np.ascontiguousarray(joined.T)]


class _Table:
    """Rows of one table, written to all of its files when there are enough of them."""

    def __init__(self, columns: Sequence[_Column], files: Mapping[Path, TableFile]) -> None:
        self._columns = columns
        self._files = files
        self._waiting: list[list[Array]] = []
        self._bytes = 0

    def add(self, values: list[Array]) -> None:
        self._waiting.append(values)
        self._bytes += sum(each.nbytes for each in values)
        if self._bytes >= WAITING_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        arrays = [
            column.arrays(parts)
            for column, parts in zip(self._columns, zip(*self._waiting, strict=True), strict=True)
        ]
        for path, file in self._files.items():
            schema = _schema(self._columns, path.suffix)
            kept = [
                array
                for column, found in zip(self._columns, arrays, strict=True)
                if column.in_csv or path.suffix != ".csv"
                for array in found
            ]
            file.write_table(pa.Table.from_arrays(kept, schema=schema))
        self._waiting = []
        self._bytes = 0


@contextlib.contextmanager
def _open(
    folder: Path,
    name: str,
    suffixes: Sequence[str],
    columns: Sequence[_Column],
    metadata: Mapping[str, str],
) -> Iterator[_Table]:
    with contextlib.ExitStack() as stack:
        files = {}
        for suffix in suffixes:
            schema = _schema(columns, suffix).with_metadata(dict(metadata))
            path = folder / f"{name}{suffix}"
            files[path] = stack.enter_context(open_table(path, schema))
        table = _Table(columns, files)
        yield table
        table.flush()


def _schema(columns: Sequence[_Column], suffix: str) -> pa.Schema:
    kept = [column for column in columns if column.in_csv or suffix != ".csv"]
    return pa.schema([(name, column.kind) for column in kept for name in column.names])


def _wide(width: int) -> _Column:
    return _Column([f"e{i}" for i in range(width)], pa.float32())


def _answer_columns(spec: LabelSpec) -> list[_Column]:
    if is_number(spec):
        return [_Column([spec.name], pa.float32())]
    if spec.kind == "multilabel":
        return [_Column([spec.name], pa.string())]
    sure = _Column([f"{spec.name}_probability"], pa.float32())
    return [_Column([spec.name], pa.string(), values=spec.classes), sure]


def _answers(spec: LabelSpec, batch: InferenceBatch) -> list[Array]:
    if is_number(spec):
        return [batch.logits[spec.name][:, 0]]
    return [label_sets(spec, batch)] if spec.kind == "multilabel" else [*best_class(spec, batch)]


def _unique(columns: list[_Column]) -> list[_Column]:
    """Return the columns under different names: a label may be called `cell`, or `a_b` beside `a`."""
    taken: set[str] = set()
    renamed = []
    for column in columns:
        names = []
        for name in column.names:
            free, number = name, 2
            while free in taken:
                free, number = f"{name}_{number}", number + 1
            taken.add(free)
            names.append(free)
        renamed.append(_Column(names, column.kind, column.values, column.in_csv))
    return renamed
