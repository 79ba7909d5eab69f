"""`write_shards`: cells of a store become a set of shards in a folder or bucket.

- A local set is written beside its target and renamed. In a bucket nothing can be renamed: shards
  get names that no other set has, and the manifest comes last, so a set that was not finished is
  refused, and an old one stays readable until the new manifest has replaced its own.
- Cells are gathered from the store in the order asked for; with `shuffle` that is one random order
  of all cells, which every epoch's shuffling of blocks builds on.
- Memory: four times the size of a shard (64 MB by default: filled, put together, two being sent),
  8 bytes per cell for the order, and the obs columns that travel along.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import tempfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from omics.data.atomic_files import new_folder
from omics.data.errors import (
    ConfigError,
    ExistingPathError,
    InputDataError,
    MissingPathError,
    UsageError,
)
from omics.data.sharding.shard_blocks import BlockLayout, ObsColumn, encode_block
from omics.data.sharding.shard_storage import LocalFolder, shard_folder
from omics.data.sharding.shards import (
    BLOCKS_NAME,
    GENES_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    MAX_SHARD_BYTES,
    Shard,
    ShardManifest,
    ShardSet,
    SideFile,
    chunk_header,
    open_shards,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from omics.data.sharding.shard_storage import ShardFolder
    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

DEFAULT_BLOCK_CELLS = 256
DEFAULT_SHARD_BYTES = 64 * 2**20
MAX_CATEGORIES = 1_000_000
_SENT_AT_ONCE = 2


def write_shards(
    store: CellStore,
    target: str | os.PathLike[str],
    *,
    rows: Array | None = None,
    obs: Sequence[str] = (),
    block_cells: int = DEFAULT_BLOCK_CELLS,
    cells_per_shard: int | None = None,
    shard_bytes: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> ShardSet:
    """Write cells of a store as shards that litdata and `ShardLoader` read.

    Args:
        store: where the cells come from.
        target: a folder, `s3://bucket/folder`, or an address of another fsspec file system.
        rows: int64 [n], which cells, in order; None takes all.
        obs: columns that travel with the cells.
        block_cells: cells of a block, the unit that is read and shuffled.
        cells_per_shard: cells of a shard; give this or `shard_bytes`.
        shard_bytes: a shard is closed once it is this large (64 MiB by default).
        shuffle: write the cells in a random order.
        seed: of that order; the same seed gives the same order.
        overwrite: replace a set of shards that is at the target.
        on_progress: called with the number of cells just written.

    Returns:
        The new set, open.

    Raises:
        ConfigError: sizes or a seed that make no sense.
        UsageError: both sizes of a shard are given, or rows outside the store.
        UnknownNameError: there is no such obs column.
        InputDataError: no cells, or an obs column with too many different values.
        ExistingPathError: the target exists and may not be replaced, or is something else.
    """
    if cells_per_shard is not None and shard_bytes is not None:
        raise UsageError("Give the cells of a shard or its bytes, not both.")
    limit = DEFAULT_SHARD_BYTES if shard_bytes is None else shard_bytes
    if min(block_cells, limit, 1 if cells_per_shard is None else cells_per_shard, seed + 1) < 1:
        raise ConfigError("Sizes of blocks and shards must be at least 1, a seed at least 0.")
    if limit > MAX_SHARD_BYTES // 2:
        raise ConfigError(f"A shard may have up to {MAX_SHARD_BYTES // 2:,} bytes, not {limit:,}.")
    order = _order(store, rows, shuffle=shuffle, seed=seed)
    columns, values = _obs_columns(store, obs, order)
    plan = _Plan(
        store=store,
        order=order,
        obs=values,
        layout=BlockLayout(
            uuid=secrets.token_bytes(16),
            num_genes=store.shape[1],
            genes_dtype=np.dtype("<u2" if store.shape[1] <= 2**16 else "<u4"),
            count_dtype=store.count_dtype,
            columns=columns,
        ),
        block_cells=min(block_cells, cells_per_shard or block_cells),
        cells_per_shard=cells_per_shard,
        shard_bytes=None if cells_per_shard is not None else limit,
        provenance={
            "store_digest": store.digest,
            "cells": "all" if rows is None else "some",
            "shuffle": shuffle,
            "seed": seed if shuffle else None,
        },
        on_progress=on_progress or (lambda _cells: None),
    )
    folder = shard_folder(target)
    if isinstance(folder, LocalFolder):
        _require_free(folder, overwrite=overwrite)
        with new_folder(folder.path, overwrite=overwrite) as temporary:
            _write_all(plan, LocalFolder(temporary))
    else:
        old = _require_free(folder, overwrite=overwrite)
        _write_all(plan, folder)
        kept = {shard.file for shard in open_shards(target).manifest.shards}
        for file in sorted(old - kept - {MANIFEST_NAME, INDEX_NAME, BLOCKS_NAME, GENES_NAME}):
            folder.remove(file)
    return open_shards(target)


class _Plan:
    """What is written: cells, layout, and how they are cut."""

    def __init__(
        self,
        *,
        store: CellStore,
        order: Array,
        obs: dict[str, Array],
        layout: BlockLayout,
        block_cells: int,
        cells_per_shard: int | None,
        shard_bytes: int | None,
        provenance: dict[str, Any],
        on_progress: Callable[[int], None],
    ) -> None:
        self.store = store
        self.order = order
        self.obs = obs
        self.layout = layout
        self.block_cells = block_cells
        self.cells_per_shard = cells_per_shard
        self.shard_bytes = shard_bytes
        self.provenance = provenance
        self.on_progress = on_progress

    def shards(self) -> Iterator[tuple[list[bytes], int]]:
        """Yield (blocks, cells) of one shard after the other."""
        blocks: list[bytes] = []
        cells = size = number = begin = 0
        while begin < len(self.order):
            room = self.block_cells
            if self.cells_per_shard is not None:
                room = min(room, self.cells_per_shard - cells)
            block = self._block(begin, min(begin + room, len(self.order)), number)
            if size + len(block) > MAX_SHARD_BYTES:
                raise ConfigError(
                    f"A shard may have up to {MAX_SHARD_BYTES:,} bytes: ask for fewer cells per "
                    "block or shard."
                )
            taken = min(room, len(self.order) - begin)
            blocks.append(block)
            cells, size, number, begin = (
                cells + taken,
                size + len(block),
                number + 1,
                begin + taken,
            )
            if self.cells_per_shard is not None:
                full = cells >= self.cells_per_shard
            else:
                full = size >= (self.shard_bytes or 0)
            if full:
                yield blocks, cells
                blocks, cells, size = [], 0, 0
        if blocks:
            yield blocks, cells

    def _block(self, begin: int, end: int, number: int) -> bytes:
        batch = self.store.take(self.order[begin:end])
        batch.obs = {name: values[begin:end] for name, values in self.obs.items()}
        return encode_block(batch, self.layout, number=number)


def _write_all(plan: _Plan, folder: ShardFolder) -> None:
    """Write shards, then side files, then the manifest."""
    name = plan.layout.uuid.hex()[:8]
    shards: list[Shard] = []
    sizes: list[Array] = []
    sent: deque[tuple[Future[None], int]] = deque()

    def wait() -> None:
        done, cells = sent.popleft()
        done.result()
        plan.on_progress(cells)

    with ThreadPoolExecutor(_SENT_AT_ONCE, thread_name_prefix="omics-shards") as threads:
        try:
            for blocks, cells in plan.shards():
                lengths = np.array([len(block) for block in blocks], np.int64)
                data = _chunk(blocks, lengths)
                shard = Shard(file=f"chunk-{name}-{len(shards)}.bin", size=len(data), cells=cells)
                shards.append(shard)
                sizes.append(lengths)
                sent.append((threads.submit(folder.write, shard.file, data), cells))
                del blocks, data
                if len(sent) == _SENT_AT_ONCE:
                    wait()
            while sent:
                wait()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    files = {
        BLOCKS_NAME: np.concatenate(sizes).astype("<u4").tobytes(),
        GENES_NAME: _gene_bytes(plan.store),
        INDEX_NAME: _litdata_index(shards, sizes),
    }
    for file, content in files.items():
        folder.write(file, content)
    manifest = ShardManifest(
        layout=plan.layout,
        gene_digest=plan.store.genes.digest,
        value_kind=plan.store.value_kind,
        block_cells=plan.block_cells,
        shards=tuple(shards),
        side_files={
            file: SideFile(size=len(content), digest=xxhash.xxh3_128_hexdigest(content))
            for file, content in files.items()
        },
        provenance=plan.provenance,
    )
    folder.write(MANIFEST_NAME, manifest.to_bytes())


def _chunk(blocks: list[bytes], lengths: Array) -> bytes:
    """Return a litdata chunk: header, then each item as its size (u32) and its bytes."""
    parts = [chunk_header(lengths)]
    for block in blocks:
        parts += [len(block).to_bytes(4, "little"), block]
    return b"".join(parts)


def _litdata_index(shards: list[Shard], sizes: list[Array]) -> bytes:
    """Return the index.json by which litdata finds the chunks and knows that items are bytes."""
    chunks = [
        {
            "chunk_bytes": shard.size,
            "chunk_size": len(lengths),
            "dim": None,
            "filename": shard.file,
        }
        for shard, lengths in zip(shards, sizes, strict=True)
    ]
    config = {
        "chunk_bytes": max(shard.size for shard in shards),
        "chunk_size": None,
        "compression": None,
        "data_format": ["bytes"],
        # How torch writes down the structure of an item that is one value.
        "data_spec": '[1, {"type": null, "context": null, "children_spec": []}]',
        "encryption": None,
        "item_loader": "PyTreeLoader",
    }
    return json.dumps({"chunks": chunks, "config": config}, sort_keys=True).encode("ascii")


def _gene_bytes(store: CellStore) -> bytes:
    import pandas as pd

    from omics.data.storage.frame_file import write_frame

    frame = pd.DataFrame(
        dict(store.genes.columns), index=pd.Index(store.genes.ids.tolist(), dtype=object)
    )
    with tempfile.TemporaryDirectory(prefix="omics-") as scratch:
        path = Path(scratch, GENES_NAME)
        write_frame(frame, path, "var")
        return path.read_bytes()


def _order(store: CellStore, rows: Array | None, *, shuffle: bool, seed: int) -> Array:
    order = np.arange(len(store), dtype=np.int64) if rows is None else np.asarray(rows)
    if order.ndim != 1 or order.dtype.kind not in "iu":
        raise UsageError(f"rows must be a one-dimensional array of integers, not {order.dtype}.")
    if len(order) == 0:
        raise InputDataError("There are no cells to write: the store or the list of rows is empty.")
    if int(order.min()) < 0 or int(order.max()) >= len(store):
        raise UsageError(f"rows must be from 0 to {len(store) - 1:,}, the cells of the store.")
    if shuffle:
        return np.random.Generator(np.random.PCG64(seed)).permutation(order)
    return order


def _obs_columns(
    store: CellStore, names: Sequence[str], order: Array
) -> tuple[tuple[ObsColumn, ...], dict[str, Array]]:
    """Return the columns, and their values in the order of the cells, as blocks hold them."""
    store.take([], obs=names)  # An unknown column is an error before the long part.
    columns, held = [], {}
    for name in names:
        values = store.obs[name]
        if values.dtype.kind in "biufmM":
            plain = values[order]
            little = plain.dtype.newbyteorder("<").str
            columns.append(ObsColumn(name=name, dtype=little))
        else:
            categories, codes = _coded(name, values)
            plain = codes[order]
            columns.append(ObsColumn(name=name, dtype="<i4", categories=categories))
        held[name] = plain
    return tuple(columns), held


def _coded(name: str, values: Array) -> tuple[tuple[Any, ...], Array]:
    import pandas as pd

    codes, found = pd.factorize(pd.Series(values, dtype=object), sort=False)
    categories = tuple(
        each.item() if isinstance(each, np.generic) else each for each in found.tolist()
    )
    if len(categories) > MAX_CATEGORIES:
        raise InputDataError(
            f"The obs column {name!r} has {len(categories):,} different values; text of which "
            f"nearly every cell has its own (above {MAX_CATEGORIES:,}) does not travel with "
            "shards. Every batch brings `rows`, by which it is found in the store."
        )
    strange = [
        each
        for each in categories
        if not isinstance(each, str | int | float | bool)
        or (isinstance(each, float) and not math.isfinite(each))
    ]
    if strange:
        raise InputDataError(
            f"The obs column {name!r} holds {strange[0]!r}, which is neither text nor a finite number."
        )
    return categories, codes.astype(np.int32)


def _require_free(folder: ShardFolder, *, overwrite: bool) -> set[str]:
    """Return the names at the target, or refuse to write there."""
    if isinstance(folder, LocalFolder) and not folder.path.exists():
        if not folder.path.absolute().parent.is_dir():
            raise MissingPathError(f"There is no folder {folder.path.absolute().parent}.")
        return set()
    there: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError):
        there = folder.sizes()
    if isinstance(folder, LocalFolder):
        there |= {each.name: 0 for each in folder.path.iterdir()} if folder.path.is_dir() else {}
    if there and MANIFEST_NAME not in there and not _unfinished(there):
        raise ExistingPathError(
            f"{folder.name} holds something else than shards; choose another target."
        )
    if (there or isinstance(folder, LocalFolder)) and not overwrite:
        raise ExistingPathError(f"{folder.name} exists; choose another target or add --overwrite.")
    return set(there)


def _unfinished(names: dict[str, int]) -> bool:
    """Say whether these are the files of a set that was never finished."""
    sides = {INDEX_NAME, BLOCKS_NAME, GENES_NAME}
    return all(name in sides or name.startswith("chunk-") for name in names)
