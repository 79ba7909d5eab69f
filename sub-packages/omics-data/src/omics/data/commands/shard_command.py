"""The verb `omics-data shard`: cells of a store become shards for streaming."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omics.data.command_line import print_json, progress, say
from omics.data.commands.shared_options import AsJson
from omics.data.errors import UsageError

if TYPE_CHECKING:
    from omics.data.storage.store import CellStore


def add_to(app: typer.Typer) -> None:
    """Add the verb to a console command.

    Args:
        app: from `make_app`.
    """
    app.command(name="shard")(shard)


def shard(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A store folder.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A folder to create, or s3://BUCKET/FOLDER.")
    ],
    *,
    cells_per_shard: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Close a shard after this many cells.")
    ] = None,
    shard_bytes: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Close a shard at this many bytes; 64 MiB if neither is given."
        ),
    ] = None,
    block_cells: Annotated[
        int, typer.Option(min=1, metavar="N", help="Cells that are read and shuffled as one.")
    ] = 256,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:NAME", help="Only the cells of a split, such as split.parquet:train."
        ),
    ] = None,
    obs: Annotated[
        list[str] | None,
        typer.Option(metavar="COL", help="An obs column that travels along; may be repeated."),
    ] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Write the cells in one random order.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the order: same seed, same order.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the shards that are at the target.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write cells of a store as shards that stream from a folder or a bucket, for litdata or us."""
    from omics.data.sharding.shard_writer import write_shards
    from omics.data.storage.store import open_store

    opened = open_store(store)
    chosen = None if rows is None else _rows_of(rows, opened)
    with progress("sharding", len(opened) if chosen is None else len(chosen)) as advance:
        written = write_shards(
            opened,
            target,
            rows=chosen,
            obs=obs or (),
            block_cells=block_cells,
            cells_per_shard=cells_per_shard,
            shard_bytes=shard_bytes,
            shuffle=shuffle,
            seed=seed,
            overwrite=overwrite,
            on_progress=advance,
        )
    manifest = written.manifest
    if as_json:
        print_json(
            {
                "target": written.folder.name,
                "cells": len(written),
                "blocks": written.num_blocks,
                "shards": len(manifest.shards),
                "bytes": manifest.num_bytes,
                "obs": list(written.columns),
                "uuid": manifest.layout.uuid.hex(),
            }
        )
        return
    say(
        f"wrote {written.folder.name}: {len(written):,} cells in {len(manifest.shards):,} shards "
        f"of {written.num_blocks:,} blocks in all, {manifest.num_bytes:,} bytes"
    )


def _rows_of(text: str, store: CellStore) -> Any:
    from omics.data.splits import load_split

    path, colon, name = text.rpartition(":")
    if not colon or not path:
        raise UsageError(
            f"--rows {text!r} names no split; give FILE:NAME, as in split.parquet:train."
        )
    return load_split(path, store).rows(name)
