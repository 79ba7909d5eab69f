"""A set of shards: cells for streaming from a folder or bucket, readable by litdata and by us.

- The shards and `index.json` are litdata's own format (chunks of items of kind `bytes`), written
  directly: it is a page of numbers, and so neither writing nor reading loads torch.
- Beside them: `omics.json` (the manifest, written last: without it there is no set), `blocks.bin`
  (u32 size of every block), `var.parquet` (the genes). litdata has no checksums and waits a
  minute for a chunk that is missing; here sizes are compared when the set is opened, and every
  block is checked before it is used.
- The manifest names its files, and they are taken from a list of known patterns, so no path can
  lead out of the folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from omics.data.errors import CorruptStoreError, InputDataError, StoreVersionError
from omics.data.genes import GeneTable
from omics.data.sharding.shard_blocks import BlockLayout, DamagedBlockError, ObsColumn, decode_block
from omics.data.sharding.shard_storage import absent, cut_short, shard_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from omics.data.cell_batch import CellBatch
    from omics.data.sharding.shard_storage import ShardFolder

Array = np.ndarray[Any, np.dtype[Any]]

FORMAT_NAME = "omics-shards"
FORMAT_VERSION = 1
MANIFEST_NAME = "omics.json"
INDEX_NAME = "index.json"
BLOCKS_NAME = "blocks.bin"
GENES_NAME = "var.parquet"
MAX_MANIFEST_BYTES = 256 * 2**20
# litdata's offsets within a chunk are u32.
MAX_SHARD_BYTES = 2**31

_SIDE_FILES = (BLOCKS_NAME, GENES_NAME, INDEX_NAME)
_SHARD_FILE = re.compile(r"chunk-[0-9a-f]{8}-[0-9]{1,9}\.bin")
_HEX = re.compile(r"[0-9a-f]+")
_COLUMN_DTYPES = re.compile(r"[<|](b1|[iu][1248]|f[248]|[mM]8\[[a-z]{1,2}\])")


@dataclass(frozen=True, kw_only=True)
class SideFile:
    """A small file of the set.

    Attributes:
        size: in bytes.
        digest: its XXH3 (128 bit) as hex.
    """

    size: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard.

    Attributes:
        file: its name.
        size: in bytes.
        cells: how many it holds.
    """

    file: str
    size: int
    cells: int


@dataclass(frozen=True, kw_only=True)
class ShardManifest:
    """Everything a reader must know before it touches a shard.

    Attributes:
        layout: of the blocks; its uuid names the set.
        gene_digest: of the gene ids, see `omics.data.genes`.
        value_kind: `counts` or `float`.
        block_cells: cells of every block but the last of each shard.
        shards: in the order in which their cells were written.
        side_files: the other files, without the manifest itself.
        provenance: the store, its rows, order and seed; plain JSON.
    """

    layout: BlockLayout
    gene_digest: str
    value_kind: str
    block_cells: int
    shards: tuple[Shard, ...]
    side_files: dict[str, SideFile]
    provenance: dict[str, Any]

    @property
    def num_cells(self) -> int:
        """How many cells the set holds."""
        return sum(shard.cells for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """The size of all shards."""
        return sum(shard.size for shard in self.shards)

    def cells_of_blocks(self) -> Array:
        """Return int64 [blocks], how many cells each block holds."""
        parts = [_cells_of_blocks(shard.cells, self.block_cells) for shard in self.shards]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def to_bytes(self) -> bytes:
        """Return the manifest as canonical JSON that holds its own digest."""
        plain: dict[str, Any] = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "uuid": self.layout.uuid.hex(),
            "num_genes": self.layout.num_genes,
            "gene_digest": self.gene_digest,
            "genes_dtype": self.layout.genes_dtype.str,
            "count_dtype": self.layout.count_dtype.str,
            "value_kind": self.value_kind,
            "block_cells": self.block_cells,
            "obs": [
                {
                    "name": column.name,
                    "dtype": column.dtype,
                    "categories": column.categories and list(column.categories),
                }
                for column in self.layout.columns
            ],
            "shards": [[shard.file, shard.size, shard.cells] for shard in self.shards],
            "files": {name: [each.size, each.digest] for name, each in self.side_files.items()},
            "provenance": self.provenance,
        }
        return _canonical({**plain, "digest": hashlib.sha256(_canonical(plain)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> ShardManifest:
        """Return the manifest after checking its digest and every value.

        Args:
            data: the file.
            place: the folder or address, for messages.

        Raises:
            CorruptStoreError: the bytes are not those that were written.
            StoreVersionError: a newer version of the format.
        """
        damaged = CorruptStoreError(
            f"{MANIFEST_NAME} in {place} is damaged. Copy the shards again from where they are "
            "whole, or write them again with omics-data shard."
        )
        try:
            plain = json.loads(data)
            digest = plain.pop("digest")
            if hashlib.sha256(_canonical(plain)).hexdigest() != digest:
                raise damaged
            if plain["format"] != FORMAT_NAME or type(plain["version"]) is not int:
                raise damaged
            if plain["version"] > FORMAT_VERSION:
                raise StoreVersionError(
                    f"The shards in {place} have format version {plain['version']}; this version "
                    f"reads up to {FORMAT_VERSION}. Update omics-data."
                )
            return _parsed(cls, plain)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, CorruptStoreError | StoreVersionError):
                raise
            raise damaged from None


def _parsed(cls: type[ShardManifest], plain: dict[str, Any]) -> ShardManifest:
    columns = tuple(
        ObsColumn(
            name=str(each["name"]),
            dtype=_matching(_COLUMN_DTYPES, each["dtype"]),
            categories=None if each["categories"] is None else tuple(each["categories"]),
        )
        for each in plain["obs"]
    )
    layout = BlockLayout(
        uuid=bytes.fromhex(plain["uuid"]),
        num_genes=_natural(plain["num_genes"]),
        genes_dtype=np.dtype(_among(plain["genes_dtype"], "<u2", "<u4")),
        count_dtype=np.dtype(_among(plain["count_dtype"], "|u1", "<u2", "<u4", "<f4")),
        columns=columns,
    )
    if len(layout.uuid) != 16 or not set(plain["files"]) == set(_SIDE_FILES):
        raise ValueError("uuid or files")
    shards = tuple(
        Shard(file=_matching(_SHARD_FILE, file), size=_natural(size), cells=_natural(cells))
        for file, size, cells in plain["shards"]
    )
    return cls(
        layout=layout,
        gene_digest=_matching(_HEX, plain["gene_digest"]),
        value_kind=_among(plain["value_kind"], "counts", "float"),
        block_cells=max(_natural(plain["block_cells"]), 1),
        shards=shards,
        side_files={
            name: SideFile(size=_natural(size), digest=_matching(_HEX, digest))
            for name, (size, digest) in plain["files"].items()
        },
        provenance=dict(plain["provenance"]),
    )


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a natural number")
    return value


def _among(value: Any, *allowed: str) -> str:
    if value not in allowed:
        raise ValueError("not an allowed value")
    return str(value)


def _matching(pattern: re.Pattern[str], value: Any) -> str:
    if pattern.fullmatch(value) is None:
        raise ValueError("not of the expected form")
    return str(value)


def _canonical(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, sort_keys=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def _cells_of_blocks(cells: int, block_cells: int) -> Array:
    found = np.full(-(-cells // block_cells), block_cells, np.int64)
    if cells % block_cells:
        found[-1] = cells % block_cells
    return found


def open_shards(address: str | os.PathLike[str]) -> ShardSet:
    """Open a set of shards: read its manifest and compare the size of every file.

    Args:
        address: a path, `s3://bucket/folder`, or an address of another fsspec file system.

    Raises:
        MissingPathError: nothing is there.
        InputDataError: what is there is not a set of shards, or its writing was not finished.
        CorruptStoreError: a file is missing, has another size, or is damaged.
        StoreVersionError: a newer version of the format.
        ResourceError: the place cannot be reached.
        MissingExtraError: the package that reads the address is not installed.
    """
    return ShardSet(shard_folder(address))


class ShardSet:
    """An open set of shards; use `open_shards`.

    Attributes:
        folder: where it lies.
        manifest: what is in it.
        block_cells: int64 [blocks], the cells of each block.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: ShardFolder) -> None:
        self.folder = folder
        sizes = folder.sizes()
        if MANIFEST_NAME not in sizes:
            what = "litdata shards that omics-data did not write" if INDEX_NAME in sizes else "none"
            raise InputDataError(
                f"{folder.name} is not a set of shards: it has no {MANIFEST_NAME} ({what}, or "
                "their writing was not finished). Write one: omics-data shard STORE TARGET."
            )
        if sizes[MANIFEST_NAME] > MAX_MANIFEST_BYTES:
            raise CorruptStoreError(f"{MANIFEST_NAME} in {folder.name} is too large to be one.")
        data = folder.read(MANIFEST_NAME, 0, sizes[MANIFEST_NAME])
        self.manifest = ShardManifest.from_bytes(data, folder.name)
        self._compare_sizes(sizes)
        self._place_blocks()

    def _compare_sizes(self, sizes: dict[str, int]) -> None:
        wanted = {shard.file: shard.size for shard in self.manifest.shards}
        wanted |= {name: each.size for name, each in self.manifest.side_files.items()}
        for name, size in wanted.items():
            if name not in sizes:
                raise absent(self.folder.name, name)
            if sizes[name] < size:
                raise cut_short(self.folder.name, name, sizes[name], size)
            if sizes[name] != size:
                raise self._damaged(name, f"holds {sizes[name]:,} bytes where {size:,} belong")

    def _place_blocks(self) -> None:
        manifest = self.manifest
        self.block_cells = manifest.cells_of_blocks()
        sizes = np.frombuffer(self._side_file(BLOCKS_NAME), "<u4").astype(np.int64)
        if len(sizes) != len(self.block_cells):
            raise self._damaged(BLOCKS_NAME, "does not fit the manifest")
        blocks = [-(-shard.cells // manifest.block_cells) for shard in manifest.shards]
        self._shard_of = np.repeat(np.arange(len(blocks)), blocks)
        self._begin = np.empty(len(sizes), np.int64)
        self._size = sizes
        first = 0
        for count, shard in zip(blocks, manifest.shards, strict=True):
            part = slice(first, first + count)
            self._begin[part] = 4 * (count + 2) + np.cumsum(sizes[part] + 4) - sizes[part]
            if 4 * (count + 2) + int((sizes[part] + 4).sum()) != shard.size:
                raise self._damaged(BLOCKS_NAME, f"does not fit {shard.file}")
            first += count

    def _side_file(self, name: str) -> bytes:
        expected = self.manifest.side_files[name]
        data = self.folder.read(name, 0, expected.size)
        if xxhash.xxh3_128_hexdigest(data) != expected.digest:
            raise self._damaged(name, "does not match its digest")
        return data

    def _damaged(self, file: str, found: str) -> CorruptStoreError:
        return CorruptStoreError(
            f"{file} in {self.folder.name} {found}. The shards are damaged: copy them again from "
            "where they are whole, or write them again with omics-data shard."
        )

    def __len__(self) -> int:
        """Return the number of cells."""
        return int(self.block_cells.sum())

    @property
    def num_blocks(self) -> int:
        """How many blocks the set has."""
        return len(self.block_cells)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the obs columns that travel with the cells."""
        return tuple(column.name for column in self.manifest.layout.columns)

    @cached_property
    def genes(self) -> GeneTable:
        """The gene table: ids and the columns of var."""
        import pyarrow.parquet as pq

        from omics.data.storage.frame_file import INDEX_COLUMN

        table = pq.read_table(io.BytesIO(self._side_file(GENES_NAME)))
        columns = {
            name: table.column(name).to_pandas().to_numpy()
            for name in table.column_names
            if name != INDEX_COLUMN
        }
        found = GeneTable(table.column(INDEX_COLUMN).to_pylist(), columns)
        if found.digest != self.manifest.gene_digest:
            raise self._damaged(GENES_NAME, "holds other genes than the manifest says")
        return found

    def read_block(self, number: int, *, obs: Sequence[str] = ()) -> CellBatch:
        """Return the cells of one block, every byte of it checked.

        Args:
            number: of the block, from 0.
            obs: columns to bring along.

        Raises:
            CorruptStoreError: the block is missing, cut short or damaged.
            ResourceError: the place cannot be reached.
        """
        shard = self.manifest.shards[int(self._shard_of[number])]
        data = self.folder.read(shard.file, int(self._begin[number]), int(self._size[number]))
        return self._decoded(data, number, obs)

    def _decoded(self, data: bytes | memoryview, number: int, obs: Sequence[str]) -> CellBatch:
        cells = int(self.block_cells[number])
        try:
            return decode_block(
                data, self.manifest.layout, number=number, cells=cells, obs=list(obs)
            )
        except DamagedBlockError as error:
            shard = self.manifest.shards[int(self._shard_of[number])]
            raise self._damaged(shard.file, f"has block {number}, which {error}") from None

    def decode(self, item: bytes | memoryview, number: int) -> CellBatch:
        """Return the cells of an item that litdata has read.

        Args:
            item: what a litdata `StreamingDataset` over this set gave.
            number: its position in the dataset.

        Raises:
            CorruptStoreError: its bytes are not those that were written.
        """
        return self._decoded(item, number, self.columns)

    def verify(self) -> int:
        """Check every byte of every file, those that only litdata reads included.

        Returns:
            The number of bytes checked. A shard at a time is in memory.

        Raises:
            CorruptStoreError: something is damaged; the message names the file.
        """
        total = 0
        for name in self.manifest.side_files:
            total += len(self._side_file(name))
        _ = self.genes
        first = 0
        for shard in self.manifest.shards:
            data = memoryview(self.folder.read(shard.file, 0, shard.size))
            blocks = range(first, first + -(-shard.cells // self.manifest.block_cells))
            for number in blocks:
                begin, size = int(self._begin[number]), int(self._size[number])
                self._decoded(data[begin : begin + size], number, self.columns)
                if data[begin - 4 : begin] != np.uint32(size).tobytes():
                    raise self._damaged(shard.file, f"has another size for block {number}")
            header = chunk_header(self._size[blocks.start : blocks.stop])
            if data[: len(header)] != header:
                raise self._damaged(shard.file, "has a header that does not fit its blocks")
            first = blocks.stop
            total += shard.size
        return total


def chunk_header(sizes: Array) -> bytes:
    """Return the begin of a litdata chunk: number of items, and where each begins and ends.

    Args:
        sizes: int64 [n], of the blocks, without the 4 bytes that say the size of each.
    """
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes + 4, out=offsets[1:])
    offsets += 4 * (len(sizes) + 2)
    return np.concatenate([[len(sizes)], offsets]).astype("<u4").tobytes()
