"""One block of a shard: some cells as flat arrays, with a checksum over every byte.

- A block is what litdata calls an item, of its kind `bytes`: no pickle, no Python object per cell.
- Header (56 bytes, little-endian): magic `OMCB`, u16 version, u16 code of the count type, u32
  cells, u32 escapes, u64 entries, u64 number of the block in its set, 16 bytes uuid of the set,
  u64 XXH3 (64 bit) of the header before it and of everything after it. A block of another set or
  another place is found out like a flipped bit.
- Then, each padded to 8 bytes: rows i64 [cells], lengths u32 [cells], escape positions u32, escape
  counts u32, genes [entries], counts [entries], and the obs columns [cells] in their order.
- Counts take the smallest of u8, u16 and u32 for each block; the largest value of a type stands
  for a count that is in the escapes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from omics.data.cell_batch import CellBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_VERSION = 1
MAGIC = b"OMCB"
HEADER = struct.Struct("<4sHHIIQQ16sQ")
_HASHED_HEADER = HEADER.size - 8
_CODED: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    5: np.dtype("<f4"),
}
_FLOATS = 5
_ESCAPE_BYTES = 8
_ALIGNMENT = 8


class DamagedBlockError(ValueError):
    """What is wrong with a block, as a clause; the reader says where."""


@dataclass(frozen=True, kw_only=True)
class ObsColumn:
    """An obs column that travels with the cells.

    Attributes:
        name: of the column.
        dtype: of its values in the blocks, little-endian, such as `<i8`; codes if it has
            categories.
        categories: the values that the codes stand for, -1 being none; None if the values are
            in the blocks themselves.
    """

    name: str
    dtype: str
    categories: tuple[Any, ...] | None = None

    @cached_property
    def table(self) -> Array:
        """Object [categories + 1]: what each code stands for; the last, None, is for -1."""
        found = np.empty(len(self.categories or ()) + 1, dtype=object)
        found[:-1] = list(self.categories or ())
        return found


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """What all blocks of a set have in common.

    Attributes:
        uuid: of the set, 16 bytes.
        num_genes: of its gene table.
        genes_dtype: of gene positions.
        count_dtype: of the counts that are handed out.
        columns: of obs, in the order of the blocks.
    """

    uuid: bytes
    num_genes: int
    genes_dtype: np.dtype[Any]
    count_dtype: np.dtype[Any]
    columns: tuple[ObsColumn, ...]

    def sections(
        self, cells: int, escapes: int, entries: int, code: int
    ) -> tuple[list[tuple[np.dtype[Any], int, int]], int]:
        """Return (dtype, items, first byte) of every array of a block, and the block's size."""
        parts: list[tuple[np.dtype[Any], int]] = [
            (np.dtype("<i8"), cells),
            (np.dtype("<u4"), cells),
            (np.dtype("<u4"), escapes),
            (np.dtype("<u4"), escapes),
            (self.genes_dtype, entries),
            (_CODED[code], entries),
        ]
        parts += [(np.dtype(column.dtype), cells) for column in self.columns]
        placed, begin = [], HEADER.size
        for dtype, items in parts:
            placed.append((dtype, items, begin))
            begin += -(-items * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        return placed, begin


def encode_block(batch: CellBatch, layout: BlockLayout, *, number: int) -> bytes:
    """Return cells as the bytes of a block.

    Args:
        batch: the cells; `batch.obs` holds the columns as the blocks hold them (codes).
        layout: of the set.
        number: of the block in its set, from 0.
    """
    code, coded, positions, large = _coded_counts(batch.counts)
    arrays = [batch.rows, batch.lengths, positions, large, batch.genes, coded]
    arrays += [batch.obs[column.name] for column in layout.columns]
    entries = len(batch.genes)
    sections, size = layout.sections(len(batch), len(large), entries, code)
    block = bytearray(size)
    for (dtype, items, begin), values in zip(sections, arrays, strict=True):
        np.frombuffer(block, dtype, items, begin)[:] = values
    fields = (MAGIC, BLOCK_VERSION, code, len(batch), len(large), entries, number, layout.uuid)
    HEADER.pack_into(block, 0, *fields, 0)
    HEADER.pack_into(block, 0, *fields, _checksum(memoryview(block)))
    return bytes(block)


def decode_block(
    data: bytes | memoryview, layout: BlockLayout, *, number: int, cells: int, obs: Sequence[str]
) -> CellBatch:
    """Return the cells of a block after checking every byte of it.

    Args:
        data: the block; it is not copied where its arrays can be used as they are.
        layout: of the set.
        number: which block of the set it must be.
        cells: how many cells it must hold.
        obs: columns to bring along.

    Raises:
        DamagedBlockError: the bytes are not those that were written.
    """
    view = memoryview(data)
    if len(view) < HEADER.size:
        raise DamagedBlockError(f"holds {len(view)} bytes, fewer than its header has")
    magic, version, code, count, escapes, entries, found, uuid, checksum = HEADER.unpack_from(view)
    if checksum != _checksum(view):
        raise DamagedBlockError("does not match its checksum")
    if (magic, version, uuid, found, count) != (MAGIC, BLOCK_VERSION, layout.uuid, number, cells):
        raise DamagedBlockError("is a block of another place or another set of shards")
    if code not in _CODED:
        raise DamagedBlockError(f"has counts of the unknown type {code}")
    sections, size = layout.sections(cells, escapes, entries, code)
    if size != len(view):
        raise DamagedBlockError(f"holds {len(view)} bytes where {size} belong")
    arrays = [np.frombuffer(view, dtype, items, begin) for dtype, items, begin in sections]
    rows, lengths, positions, large, genes, coded = arrays[:6]
    indptr = np.zeros(cells + 1, np.int64)
    np.cumsum(lengths, out=indptr[1:])
    if indptr[-1] != entries or (entries and int(genes.max()) >= layout.num_genes):
        raise DamagedBlockError("holds lengths or genes that do not fit")
    if escapes and int(positions.max()) >= entries:
        raise DamagedBlockError("holds an escape that does not fit")
    counts = coded.astype(layout.count_dtype, copy=False)
    if escapes:
        counts = counts.copy() if counts is coded else counts
        counts[positions] = large
    return CellBatch(
        indptr=indptr,
        genes=genes,
        counts=counts,
        rows=rows,
        num_genes=layout.num_genes,
        obs=_obs_values(layout, arrays[6:], obs),
    )


def _obs_values(layout: BlockLayout, held: list[Array], wanted: Sequence[str]) -> dict[str, Array]:
    found = {}
    for column, values in zip(layout.columns, held, strict=True):
        if column.name not in wanted:
            continue
        if column.categories is not None:
            if len(values) and not -1 <= values.min() <= values.max() < len(column.categories):
                raise DamagedBlockError(f"holds a code of {column.name!r} that stands for nothing")
            found[column.name] = column.table[values]
        else:
            found[column.name] = values
    return {name: found[name] for name in wanted}


def _coded_counts(counts: Array) -> tuple[int, Array, Array, Array]:
    """Return the code of the smallest type, the coded counts, and positions and values left out."""
    none = np.empty(0, np.uint32)
    if counts.dtype.kind == "f":
        return _FLOATS, counts, none, none
    counts = counts.astype(np.uint32, copy=False)
    best = (4, len(counts) * 4)
    for width in (2, 1):
        escape = 256**width - 1
        size = len(counts) * width + _ESCAPE_BYTES * int(np.count_nonzero(counts >= escape))
        best = (width, size) if size < best[1] else best
    width = best[0]
    if width == 4:
        return width, counts, none, none
    escape = 256**width - 1
    positions = np.flatnonzero(counts >= escape)
    return width, np.minimum(counts, escape), positions, counts[positions]


def _checksum(block: memoryview) -> int:
    digest = xxhash.xxh3_64(block[:_HASHED_HEADER])
    digest.update(block[HEADER.size :])
    return digest.intdigest()
