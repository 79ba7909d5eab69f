"""What `omics-train predict` writes: Parquet tables with one row a cell, in input order.

- Streamed: a batch is written and forgotten; the tables appear under their names when complete.
- `embeddings.parquet` always; with label heads also `predictions.parquet` (class and its
  probability), `probabilities.parquet` and `logits.parquet` (columns `<label>_<class>`).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from omics.data.atomic_files import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from omics.models import InferenceBatch

Array = np.ndarray[Any, np.dtype[Any]]
Columns = dict[str, Any]


def write_predictions(
    folder: Path,
    results: Iterable[InferenceBatch],
    *,
    names: Array,
    labels: Mapping[str, Sequence[str]],
    metadata: Mapping[str, str],
) -> int:
    """Write the tables of a prediction.

    Args:
        folder: where they go; files of an earlier prediction are replaced.
        results: of the inference loop.
        names: names of all cells of the store, indexed by row.
        labels: classes of each label head.
        metadata: kept in the schema of each table, such as the bundle's digest.

    Returns:
        The number of cells written.
    """
    tables = ["embeddings", *(["predictions", "probabilities", "logits"] if labels else [])]
    count = 0
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(_Table(folder / f"{name}.parquet", metadata))
            for name in tables
        }
        for batch in results:
            cells = {"row": batch.rows, "cell": pa.array(names[batch.rows], pa.string())}
            for name, columns in _columns(batch, labels).items():
                writers[name].write({**cells, **columns})
            count += len(batch.rows)
    return count


def softmax(logits: Array) -> Array:
    """Return float32 [n, C] probabilities.

    Args:
        logits: [n, C].
    """
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)


def _columns(batch: InferenceBatch, labels: Mapping[str, Sequence[str]]) -> dict[str, Columns]:
    columns: dict[str, Columns] = {"embeddings": _wide("e", None, batch.embeddings)}
    for label, classes in labels.items():
        logits = batch.logits[label]
        probabilities = softmax(logits)
        best = logits.argmax(axis=1)
        predicted = columns.setdefault("predictions", {})
        predicted[label] = pa.array(list(classes), pa.string()).take(pa.array(best))
        predicted[f"{label}_probability"] = probabilities[np.arange(len(best)), best]
        columns.setdefault("probabilities", {}).update(_wide(f"{label}_", classes, probabilities))
        columns.setdefault("logits", {}).update(_wide(f"{label}_", classes, logits))
    return columns


def _wide(prefix: str, names: Sequence[str] | None, values: Array) -> Columns:
    ends = [str(i) for i in range(values.shape[1])] if names is None else list(names)
    return {f"{prefix}{end}": values[:, index] for index, end in enumerate(ends)}


class _Table:
    """A Parquet file that is written batch by batch and named when it is whole."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.path = path
        self.metadata = dict(metadata)
        self._stack = contextlib.ExitStack()
        self._temporary: Path | None = None
        self._writer: Any = None

    def __enter__(self) -> Self:
        self._temporary = self._stack.enter_context(replace_file(self.path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        self._stack.__exit__(kind, error, trace)

    def write(self, columns: Columns) -> None:
        """Add the rows of one batch."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table: pa.Table = pa.table(columns).replace_schema_metadata(self.metadata)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._temporary, table.schema, write_page_checksum=True)
        self._writer.write_table(table)
