"""Format v1 of the store: names, types, manifest and checksums. See docs/store-format.md.

- A store is a folder of generations; `CURRENT` names one and holds the digest of its manifest,
  the manifest holds the digest of the checksum list, which covers every other byte.
- The manifest is data: parsed with strict types into a frozen record, every size derived again.
- File names come from this module's tables, never from the manifest, so no path can escape.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omics.data.errors import CorruptStoreError, StoreVersionError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

FORMAT_NAME = "omics-store"
FORMAT_VERSION = 1
NEEDS = "omics-data>=0.1.0"

CURRENT_NAME = "CURRENT"
MANIFEST_NAME = "MANIFEST.json"
CHECKSUMS_NAME = "checksums.bin"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024

CHUNK_BYTES = 256 * 1024
ESCAPE = 255
MAX_COUNT = 2**32 - 1

COUNTS = "counts"
FLOATS = "float"
PLAIN = "plain"
PACKED = "packed"
LAYOUTS = (PLAIN, PACKED)

ITEM_BYTES = {
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
    "float32": 4,
    "float64": 8,
    "parquet": 1,
}

_CURRENT_LINE = re.compile(r"gen-([1-9][0-9]{0,8}) ([0-9a-f]{64})\n")
_HEX_32 = re.compile(r"[0-9a-f]{32}")
_HEX_64 = re.compile(r"[0-9a-f]{64}")
_NEEDS = re.compile(r"omics-data>=[0-9]{1,6}(\.[0-9]{1,6}){0,3}")


def generation_name(generation: int) -> str:
    """Return the folder name of a generation, such as `gen-1`."""
    return f"gen-{generation}"


def damaged(path: Path, found: str) -> CorruptStoreError:
    """Return the error for bytes that are not the ones that were written.

    Args:
        path: the damaged file.
        found: what is wrong with it, as a clause such as `holds 3 of 8 bytes`.
    """
    return CorruptStoreError(
        f"{path} {found}. The store is damaged: convert it again from its source (with "
        "overwriting allowed), or copy this store again from where it is whole."
    )


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the manifest says of one file.

    Attributes:
        dtype: of its little-endian items (`int64`, `uint16`, ...), or `parquet`.
        size: in bytes.
        sha256: of the whole file (hex); None for the large files, which have chunk checksums.
    """

    dtype: str
    size: int
    sha256: str | None = None

    @property
    def num_items(self) -> int:
        """How many items the file holds."""
        return self.size // ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a reader must know before it touches the data.

    Attributes:
        store_uuid: 32 hex digits, kept over the generations of a store.
        generation: counts from 1.
        n_cells: rows.
        n_genes: columns.
        nnz: stored entries.
        value_kind: `counts` or `float`.
        layout: `plain` or `packed`.
        rank_digest: of the medians that `rank_genes.bin` is sorted by; None without that file.
        gene_digest: of the gene ids, see `omics.data.genes`.
        chunk_bytes: of the checksummed chunks.
        files: every file of the generation except the manifest itself.
        provenance: where the data came from; plain JSON.
        written_by: the writer's name and version.
    """

    store_uuid: str
    generation: int
    n_cells: int
    n_genes: int
    nnz: int
    value_kind: str
    layout: str
    rank_digest: str | None
    gene_digest: str
    chunk_bytes: int
    files: dict[str, FileEntry]
    provenance: dict[str, Any]
    written_by: str

    @property
    def value_file(self) -> str | None:
        """The name of the file that holds one value per entry; None in the packed layout."""
        return None if self.layout == PACKED else value_file(self.value_kind)

    @property
    def has_escapes(self) -> bool:
        """Whether some counts live in the escape table."""
        return "escape_counts.bin" in self.files and self.files["escape_counts.bin"].size > 0

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the manifest."""
        files = {
            name: {"dtype": entry.dtype, "bytes": entry.size}
            | ({"sha256": entry.sha256} if entry.sha256 else {})
            for name, entry in self.files.items()
        }
        return canonical_json(
            {
                "format": FORMAT_NAME,
                "format_version": FORMAT_VERSION,
                "needs": NEEDS,
                "written_by": self.written_by,
                "store_uuid": self.store_uuid,
                "generation": self.generation,
                "n_cells": self.n_cells,
                "n_genes": self.n_genes,
                "nnz": self.nnz,
                "value_kind": self.value_kind,
                "layout": self.layout,
                "rank_digest": self.rank_digest,
                "gene_digest": self.gene_digest,
                "chunk_bytes": self.chunk_bytes,
                "files": files,
                "provenance": self.provenance,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> Manifest:
        """Parse a manifest whose digest has been checked.

        Args:
            data: the file's content.
            path: the file, for messages.

        Raises:
            StoreVersionError: it was written by a newer version of the format.
            CorruptStoreError: it is not a manifest, or contradicts itself.
        """
        try:
            record = json.loads(data, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"is not valid JSON ({error})") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT_NAME:
            raise damaged(path, f"does not say format {FORMAT_NAME!r}")
        _check_version(record, path)
        fields = _Fields(record, path)
        files = fields.take("files", dict)
        manifest = cls(
            store_uuid=fields.matching("store_uuid", _HEX_32),
            generation=fields.count("generation"),
            n_cells=fields.count("n_cells"),
            n_genes=fields.count("n_genes"),
            nnz=fields.count("nnz"),
            value_kind=fields.take("value_kind", str),
            layout=fields.take("layout", str),
            rank_digest=fields.optional("rank_digest", _HEX_64),
            gene_digest=fields.matching("gene_digest", _HEX_64),
            chunk_bytes=fields.count("chunk_bytes"),
            files={name: _file_entry(name, files[name], path) for name in files},
            provenance=fields.take("provenance", dict),
            written_by=fields.take("written_by", str),
        )
        fields.refuse_rest({"format", "format_version", "needs"})
        manifest._check(path)
        return manifest

    def _check(self, path: Path) -> None:
        """Refuse a manifest whose parts do not fit each other."""
        if self.value_kind not in {COUNTS, FLOATS}:
            raise damaged(path, f"says value_kind {self.value_kind!r}")
        if self.layout not in LAYOUTS or (self.layout == PACKED and self.value_kind != COUNTS):
            raise damaged(path, f"says layout {self.layout!r} of {self.value_kind}")
        if self.chunk_bytes < 8 or self.chunk_bytes % 8 or self.generation < 1:
            raise damaged(path, "says an impossible chunk size or generation")
        if self.value_file is not None and self.value_file not in self.files:
            raise damaged(path, f"does not list {self.value_file}")
        none = FileEntry("uint32", 0)
        layout = data_layout(
            n_cells=self.n_cells,
            n_genes=self.n_genes,
            nnz=self.nnz,
            value_kind=self.value_kind,
            layout=self.layout,
            ranked=self.rank_digest is not None,
            value_dtype=None if self.value_file is None else self.files[self.value_file].dtype,
            num_escapes=self.files.get("escape_counts.bin", none).num_items,
            packed_bytes=self.files.get("packed.bin", none).size,
        )
        expected = {*layout, "obs.parquet", "var.parquet", CHECKSUMS_NAME}
        if expected != set(self.files):
            odd = ", ".join(sorted(expected ^ set(self.files)))
            raise damaged(path, f"lists too many or too few files ({odd})")
        for name, (dtype, items) in layout.items():
            entry = self.files[name]
            if entry.dtype != dtype or entry.size != items * ITEM_BYTES[dtype]:
                raise damaged(path, f"says {entry.size} bytes of {entry.dtype} for {name}")
        num_chunks = sum(self.num_chunks(name) for name in self.checksummed_files())
        if self.files[CHECKSUMS_NAME].size != 8 * num_chunks:
            raise damaged(path, f"says a wrong size for {CHECKSUMS_NAME}")
        for name in ("obs.parquet", "var.parquet", CHECKSUMS_NAME):
            if self.files[name].sha256 is None:
                raise damaged(path, f"has no sha256 of {name}")

    def checksummed_files(self) -> list[str]:
        """Return the files covered by chunk checksums, in the order of `checksums.bin`."""
        return sorted(name for name in self.files if name != CHECKSUMS_NAME)

    def num_chunks(self, name: str) -> int:
        """Return how many chunks a file has; the last may be short, an empty file has none."""
        return -(-self.files[name].size // self.chunk_bytes)


def value_file(value_kind: str) -> str:
    """Return the name of the file that holds one value per entry."""
    return "counts.bin" if value_kind == COUNTS else "values.bin"


def gene_dtype(n_genes: int) -> str:
    """Return the smallest type that holds every gene position (at least 16 bits)."""
    return "uint16" if n_genes <= 2**16 else "uint32"


def data_layout(
    *,
    n_cells: int,
    n_genes: int,
    nnz: int,
    value_kind: str,
    layout: str,
    ranked: bool,
    value_dtype: str | None,
    num_escapes: int,
    packed_bytes: int,
) -> dict[str, tuple[str, int]]:
    """Return the binary files of a generation with their types and numbers of items.

    Args:
        n_cells: rows.
        n_genes: columns.
        nnz: stored entries.
        value_kind: `counts` or `float`.
        layout: `plain` or `packed`.
        ranked: whether there is a rank view.
        value_dtype: of the plain layout: `uint8` (with escapes), `uint16`, `uint32`, or `float32`.
        num_escapes: how many counts live in the escape table.
        packed_bytes: size of `packed.bin`.

    Returns:
        `{file name: (dtype, number of items)}`, without `checksums.bin` and the Parquet files.
    """
    sum_dtype = "int64" if value_kind == COUNTS else "float64"
    files = {
        "offsets.bin": ("int64", n_cells + 1),
        "cell_sums.bin": (sum_dtype, n_cells),
        "gene_sums.bin": (sum_dtype, n_genes),
        "gene_detection.bin": ("int64", n_genes),
        "gene_medians.bin": ("float64", n_genes),
    }
    if layout == PACKED:
        files["packed.bin"] = ("uint8", packed_bytes)
        files["packed_offsets.bin"] = ("int64", n_cells + 1)
    else:
        allowed = ("uint8", "uint16", "uint32") if value_kind == COUNTS else ("float32",)
        files["genes.bin"] = (gene_dtype(n_genes), nnz)
        known = value_dtype if value_dtype is not None and value_dtype in allowed else allowed[-1]
        files[value_file(value_kind)] = (known, nnz)
    if layout == PACKED or value_dtype == "uint8":
        files["escape_positions.bin"] = ("int64", num_escapes)
        files["escape_counts.bin"] = ("uint32", num_escapes)
    if ranked:
        files["rank_genes.bin"] = (gene_dtype(n_genes), nnz)
    return files


def rank_digest(medians: Array) -> str:
    """Return the digest of the medians that a rank view is sorted by.

    Args:
        medians: float64 [genes of the store], 0 for a gene without a median.
    """
    return hashlib.sha256(medians.astype("<f8").tobytes()).hexdigest()


def file_seed(store_uuid: str, generation: int, name: str) -> int:
    """Return the seed of a file's first chunk; chunk `i` adds `i`, modulo 2**64.

    A chunk that is stale, or stands in another place, file or store, then fails.

    Args:
        store_uuid: of the store.
        generation: of the file's folder.
        name: of the file.
    """
    text = f"{store_uuid}\n{generation}\n{name}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted keys, no spaces, ASCII only and a final newline.

    Args:
        value: plain data.

    Raises:
        ValueError: it holds NaN or an infinity.
        TypeError: it holds something that is not plain data.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii") + b"\n"


def current_line(generation: int, manifest_digest: str) -> bytes:
    """Return the content of `CURRENT`."""
    return f"{generation_name(generation)} {manifest_digest}\n".encode("ascii")


def parse_current(data: bytes, path: Path) -> tuple[int, str]:
    """Return the generation and the manifest digest that `CURRENT` names.

    Args:
        data: its content.
        path: the file, for messages.

    Raises:
        CorruptStoreError: it is not one such line.
    """
    match = _CURRENT_LINE.fullmatch(data.decode("latin-1"))
    if match is None:
        raise damaged(path, "is not a line of a generation and a digest")
    return int(match[1]), match[2]


def _check_version(record: Mapping[str, Any], path: Path) -> None:
    version = record.get("format_version")
    if type(version) is not int or version < FORMAT_VERSION:
        raise damaged(path, f"says format version {version!r}")
    if version == FORMAT_VERSION:
        return
    needs = record.get("needs")
    known = needs if isinstance(needs, str) and _NEEDS.fullmatch(needs) else "omics-data"
    raise StoreVersionError(
        f"{path} has store format version {version}; this omics-data reads version "
        f"{FORMAT_VERSION}. Update it: pip install --upgrade '{known}'."
    )


class _Fields:
    """Takes typed values out of a parsed JSON object, each once."""

    def __init__(self, record: Mapping[str, Any], path: Path) -> None:
        self._rest = dict(record)
        self._path = path

    def take(self, key: str, kind: type) -> Any:
        value = self._rest.pop(key, None)
        if type(value) is not kind:
            raise damaged(self._path, f"has no {key} of type {kind.__name__}")
        return value

    def count(self, key: str) -> int:
        value: int = self.take(key, int)
        if not 0 <= value < 2**62:
            raise damaged(self._path, f"says {key} {value}")
        return value

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        value: str = self.take(key, str)
        if not pattern.fullmatch(value):
            raise damaged(self._path, f"says {key} {value[:80]!r}")
        return value

    def optional(self, key: str, pattern: re.Pattern[str]) -> str | None:
        if key in self._rest and self._rest[key] is None:
            return self._rest.pop(key)
        return self.matching(key, pattern)

    def refuse_rest(self, allowed: set[str]) -> None:
        rest = sorted(set(self._rest) - allowed)
        if rest:
            raise damaged(self._path, f"has unknown keys ({', '.join(rest)[:200]})")


def _file_entry(name: str, record: object, path: Path) -> FileEntry:
    if not isinstance(record, dict):
        raise damaged(path, f"describes {name[:80]!r} by no object")
    fields = _Fields(record, path)
    dtype = fields.take("dtype", str)
    if dtype not in ITEM_BYTES:
        raise damaged(path, f"says dtype {dtype[:80]!r}")
    sha256 = fields.matching("sha256", _HEX_64) if "sha256" in record else None
    entry = FileEntry(dtype, fields.count("bytes"), sha256)
    fields.refuse_rest(set())
    return entry


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key is given twice")
    return record
