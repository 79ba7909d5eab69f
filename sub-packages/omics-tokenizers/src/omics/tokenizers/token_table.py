"""Tokens of a whole store as a Parquet table: one row per cell, in store order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omics.data.atomic_files import replace_file
from omics.data.loading.loader import Loader
from omics.data.transforms import LogNormalize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from omics.data.storage.store import CellStore
    from omics.tokenizers.gene_tokenizer import GeneCoverage, GeneTokenizer

CELLS_PER_GROUP = 4096


def write_tokens(
    store: CellStore,
    tokenizer: GeneTokenizer,
    path: Path,
    *,
    target_sum: float = 1e4,
    on_progress: Callable[[int], None] | None = None,
) -> GeneCoverage:
    """Write columns `cell`, `input_ids` (list of int32) and `expression` (list of float32).

    Args:
        store: of raw counts.
        tokenizer: matched to the store by id or symbol.
        path: the Parquet file, written whole or not at all.
        target_sum: counts per cell after normalisation, before log1p.
        on_progress: called with the number of cells just written.

    Returns:
        How well the store's genes were known.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    bound = tokenizer.bind(store.genes)
    names = store.obs.names
    schema = pa.schema(
        {
            "cell": pa.string(),
            "input_ids": pa.large_list(pa.int32()),
            "expression": pa.large_list(pa.float32()),
        }
    )
    steps = [LogNormalize(target_sum=target_sum)]
    with (
        replace_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer,
    ):
        for cells in Loader(store, batch_size=CELLS_PER_GROUP, transforms=steps):
            tokens = bound.encode(cells)
            names_here = pa.array(names[cells.rows], pa.string())
            ids, values = (
                pa.LargeListArray.from_arrays(tokens.offsets, tokens.fields[field])
                for field in ("genes", "expression")
            )
            writer.write_table(pa.table([names_here, ids, values], schema=schema))
            if on_progress is not None:
                on_progress(len(cells))
    return bound.coverage
