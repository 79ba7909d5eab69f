"""Tokens of a whole store as a Parquet table: one row per cell, in store order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omics.data.atomic_files import replace_file
from omics.data.loading.loader import Loader
from omics.tokenizers.store_binding import bind_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from omics.data.storage.store import CellStore
    from omics.data.storage.store_collection import StoreCollection
    from omics.data.transforms import Transform
    from omics.tokenizers.bound_tokenizer import CellTokenizer
    from omics.tokenizers.gene_lookup import GeneCoverage

CELLS_PER_GROUP = 4096
METADATA_PREFIX = "omics_tokenizers."


def write_tokens(
    store: CellStore | StoreCollection,
    tokenizer: CellTokenizer,
    path: Path,
    *,
    transforms: Sequence[Transform] = (),
    on_progress: Callable[[int], None] | None = None,
) -> GeneCoverage:
    """Write the tokens of every cell of a store.

    Columns are `cell`, `input_ids` (list of int32, the field of the genes), and one list for each
    further field, under its name: float32 of values, int32 of bins. The metadata names the store,
    the kind of tokenizer and its vocabulary.

    Args:
        store: of raw counts.
        tokenizer: of cells; matched to the store by id or symbol.
        path: the Parquet file, written whole or not at all.
        transforms: that make the fields which the tokenizer reads; training-only ones are skipped.
        on_progress: called with the number of cells just written.

    Returns:
        How well the store's genes were known.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    reader, bound = bind_store(tokenizer, store, transforms=transforms)
    names = store.obs.names
    genes, *others = tokenizer.fields
    kinds = [pa.float32() if field.kind == "continuous" else pa.int32() for field in others]
    metadata = {
        "tokenizer": tokenizer.kind,
        "vocabulary_digest": tokenizer.vocabulary.digest,
        "store_digest": store.digest,
    }
    schema = pa.schema(
        [
            ("cell", pa.string()),
            ("input_ids", pa.large_list(pa.int32())),
            *((f.name, pa.large_list(kind)) for f, kind in zip(others, kinds, strict=True)),
        ],
        metadata={METADATA_PREFIX + key: value for key, value in metadata.items()},
    )
    with (
        replace_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer,
    ):
        for cells in Loader(reader, batch_size=CELLS_PER_GROUP, transforms=transforms):
            tokens = bound.encode(cells)
            columns = [pa.array(names[cells.rows], pa.string())]
            columns += [
                pa.LargeListArray.from_arrays(tokens.offsets, tokens.fields[field.name])
                for field in (genes, *others)
            ]
            writer.write_table(pa.table(columns, schema=schema))
            if on_progress is not None:
                on_progress(len(cells))
    return bound.coverage
