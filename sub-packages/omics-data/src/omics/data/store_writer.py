"""`StoreWriter`: writes one generation of a store, block by block, in bounded memory.

- Counts go out as bytes; the rare large ones as 255 plus an entry of the escape table. Should
  more than 5% need that, `finish` rewrites the values in 16 or 32 bits, again block by block.
- Every block is checked whatever its source claims: what is in a store can be trusted.
- Nothing has its final name before `finish`: the generation is built in a temporary folder,
  fsynced, renamed, and becomes visible when `CURRENT` is swapped, the last step.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xxhash

from omics.data.atomic_files import (
    LOCK_NAME,
    fsync_folder,
    fsync_tree,
    remove_path,
    write_bytes,
    writer_lock,
)
from omics.data.errors import ExistingPathError, InputDataError, OmicsError, UsageError
from omics.data.frame_file import write_frame
from omics.data.gather import encode_counts
from omics.data.genes import GeneTable
from omics.data.mapped_file import read_small
from omics.data.row_statistics import sums_by_cell, sums_by_gene
from omics.data.store_format import (
    CHECKSUMS_NAME,
    CHUNK_BYTES,
    COUNTS,
    CURRENT_NAME,
    FLOATS,
    MANIFEST_NAME,
    MAX_COUNT,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    canonical_json,
    current_line,
    data_layout,
    file_seed,
    generation_name,
    parse_current,
)

if TYPE_CHECKING:
    from types import TracebackType

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

MAX_ESCAPE_SHARE = 0.05
RECODE_ITEMS = 4 * 1024 * 1024


class StoreWriter:
    """Writes a new store, or a new generation of one.

    Use it as a context manager: `append` the cells block by block, then `finish`. Leaving the
    block without `finish` removes everything that was written.

    Args:
        path: the store folder.
        genes_frame: var, one row per gene; its index holds the gene ids.
        value_kind: `counts` (whole numbers from 1 to 2**32 - 1) or `float` (kept as float32).
        overwrite: replace the store at `path`.
        provenance: where the data comes from, as plain JSON.

    Raises:
        ExistingPathError: `path` holds a store and `overwrite` is False, or holds other things.
        StoreLockedError: another process writes there.
        InputDataError: gene ids are not unique, or a var column cannot be kept.
        UsageError: `value_kind` or `provenance` is not as described.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        genes_frame: pd.DataFrame,
        value_kind: str = COUNTS,
        overwrite: bool = False,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        if value_kind not in {COUNTS, FLOATS}:
            raise UsageError(f"value_kind is {value_kind!r}; it must be {COUNTS!r} or {FLOATS!r}.")
        self._provenance = dict(provenance or {})
        try:
            canonical_json(self._provenance)
        except (TypeError, ValueError) as error:
            raise UsageError(f"provenance must be plain JSON: {error}.") from None
        self.path = Path(path)
        self._genes = GeneTable([str(name) for name in genes_frame.index])
        self._genes_frame = genes_frame
        self._value_kind = value_kind
        self._overwrite = overwrite
        self._cleanup = contextlib.ExitStack()
        self._closed = True
        self.num_cells = 0
        self.num_entries = 0

    def __enter__(self) -> Self:
        """Take the lock and begin a new generation."""
        with self._cleanup:
            self._begin()
            self._cleanup = self._cleanup.pop_all()
        self._closed = False
        return self

    def _begin(self) -> None:
        _refuse_foreign(self.path, overwrite=self._overwrite)
        created = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._cleanup.enter_context(writer_lock(self.path))
        if created:
            self._cleanup.callback(self._remove_store_folder)
        _refuse_foreign(self.path, overwrite=self._overwrite)
        self._store_uuid, self._generation = _next_generation(self.path)
        self._folder = self.path / f".{generation_name(self._generation)}.tmp"
        _remove_leftovers(self.path)
        self._folder.mkdir()
        self._cleanup.callback(shutil.rmtree, self._folder, ignore_errors=True)
        write_frame(self._genes_frame, self._folder / "var.parquet", "var")
        self._files: dict[str, _ChecksummedFile] = {}
        for name, dtype in self._first_layout().items():
            self._files[name] = self._create(name, dtype)
        self._files["offsets.bin"].write(np.zeros(1, np.int64))
        self._largest = 0
        self._gene_sums = np.zeros(len(self._genes), self._sum_dtype)
        self._gene_detection = np.zeros(len(self._genes), np.int64)

    @property
    def _sum_dtype(self) -> type[np.int64 | np.float64]:
        return np.int64 if self._value_kind == COUNTS else np.float64

    def _first_layout(self) -> dict[str, str]:
        """Return the files that grow with every block, and their types."""
        layout = data_layout(
            n_cells=0,
            n_genes=len(self._genes),
            nnz=0,
            value_kind=self._value_kind,
            value_dtype="uint8" if self._value_kind == COUNTS else "float32",
            num_escapes=0,
        )
        return {name: dtype for name, (dtype, _) in layout.items() if not name.startswith("gene_")}

    def _create(self, name: str, dtype: str) -> _ChecksummedFile:
        seed = file_seed(self._store_uuid, self._generation, name)
        file = _ChecksummedFile(self._folder / name, dtype, seed)
        self._cleanup.callback(file.close)
        return file

    def append(self, indptr: Array, genes: Array, values: Array) -> None:
        """Add a block of cells.

        Args:
            indptr: integers [n + 1], from 0 to nnz; where each cell begins in the block.
            genes: integers [nnz], positions in `genes_frame`, ascending within a cell.
            values: [nnz], none of them zero.

        Raises:
            InputDataError: the block is not as described; the message names the cell. The
                writer can no longer be finished then.
        """
        if self._closed:
            raise UsageError(_CLOSED)
        indptr, genes, values = np.asarray(indptr), np.asarray(genes), np.asarray(values)
        try:
            indptr = _check_structure(indptr, genes, values)
            _check_genes(indptr, genes, len(self._genes))
            positions = genes.astype(np.int64)
            if self._value_kind == COUNTS:
                self._write_counts(indptr, positions, values)
            else:
                self._write_floats(indptr, positions, values)
        except _BlockError as error:
            self._closed = True
            raise error.located(indptr, self.num_cells) from None
        self._files["offsets.bin"].write(indptr[1:] + self.num_entries)
        self._files["genes.bin"].write(genes)
        self.num_cells += len(indptr) - 1
        self.num_entries += len(values)

    def _write_counts(self, indptr: Array, genes: Array, values: Array) -> None:
        values = _compilable(values)
        codes = np.empty(len(values), np.uint8)
        cell_sums = np.zeros(len(indptr) - 1, np.int64)
        sums = (self._gene_sums, self._gene_detection, cell_sums)
        escapes = encode_counts(indptr, genes, values, codes=codes, sums=sums)
        if len(escapes) and escapes[0] < 0:
            entry = -1 - int(escapes[0])
            raise _BlockError(f"{values[entry]} is not a count from 1 to {MAX_COUNT}", entry)
        self._files["counts.bin"].write(codes)
        self._files["cell_sums.bin"].write(cell_sums)
        if len(escapes):
            large = values[escapes].astype(np.uint32)
            self._largest = max(self._largest, int(large.max()))
            self._files["escape_positions.bin"].write(escapes + self.num_entries)
            self._files["escape_counts.bin"].write(large)

    def _write_floats(self, indptr: Array, genes: Array, values: Array) -> None:
        stored = _check_floats(values)
        self._files["values.bin"].write(stored)
        self._files["cell_sums.bin"].write(sums_by_cell(indptr, stored))
        self._gene_sums += sums_by_gene(genes, stored, len(self._genes))
        self._gene_detection += np.bincount(genes, minlength=len(self._genes))

    def finish(self, obs: pd.DataFrame) -> None:
        """Write obs and everything else, then make the store visible.

        Args:
            obs: one row per cell, in the order they were appended; its index holds their names.

        Raises:
            InputDataError: obs has another number of rows, or a column cannot be kept.
        """
        if self._closed:
            raise UsageError(_CLOSED)
        if len(obs) != self.num_cells:
            raise InputDataError(
                f"obs has {len(obs)} rows for {self.num_cells} cells in the matrix. The source "
                "contradicts itself; mend or export it again."
            )
        write_frame(obs, self._folder / "obs.parquet", "obs")
        self._closed = True
        escapes = self._files.get("escape_counts.bin")
        if escapes is not None and escapes.num_items > MAX_ESCAPE_SHARE * self.num_entries:
            self._recode_counts()
        for name, values in (
            ("gene_sums.bin", self._gene_sums),
            ("gene_detection.bin", self._gene_detection),
        ):
            self._files[name] = self._create(name, str(values.dtype))
            self._files[name].write(values)
        self._publish(self._write_manifest())

    def _recode_counts(self) -> None:
        """Replace bytes and escapes by wider counts."""
        dtype = "uint16" if self._largest < 2**16 else "uint32"
        old = {name: self._files.pop(name) for name in _ESCAPED_FILES}
        for file in old.values():
            file.close()
        positions = _read_only(old["escape_positions.bin"].path, np.int64)
        large = _read_only(old["escape_counts.bin"].path, np.uint32)
        codes = _read_only(old["counts.bin"].path, np.uint8)
        recoded = self._create("counts.bin.wide", dtype)
        recoded.seed = file_seed(self._store_uuid, self._generation, "counts.bin")
        for begin in range(0, self.num_entries, RECODE_ITEMS):
            block = codes[begin : begin + RECODE_ITEMS].astype(np.uint32)
            first, last = np.searchsorted(positions, (begin, begin + len(block)))
            block[positions[first:last] - begin] = large[first:last]
            recoded.write(block)
        recoded.close()
        for file in old.values():
            file.path.unlink()
        recoded.rename(self._folder / "counts.bin")
        self._files["counts.bin"] = recoded

    def _write_manifest(self) -> str:
        for file in self._files.values():
            file.close()
        for name in ("obs.parquet", "var.parquet"):
            self._files[name] = self._read_checksums(name)
        checksums = [self._files[name].checksums for name in sorted(self._files)]
        packed = np.array([each for file in checksums for each in file], dtype="<u8").tobytes()
        (self._folder / CHECKSUMS_NAME).write_bytes(packed)
        entries = {name: file.entry() for name, file in self._files.items()}
        checksums_digest = hashlib.sha256(packed).hexdigest()
        entries[CHECKSUMS_NAME] = FileEntry("uint64", len(packed), checksums_digest)
        manifest = Manifest(
            store_uuid=self._store_uuid,
            generation=self._generation,
            n_cells=self.num_cells,
            n_genes=len(self._genes),
            nnz=self.num_entries,
            value_kind=self._value_kind,
            gene_digest=self._genes.digest,
            chunk_bytes=CHUNK_BYTES,
            files=entries,
            provenance=self._provenance,
            written_by=_written_by(),
        ).to_bytes()
        if len(manifest) > MAX_MANIFEST_BYTES:
            raise UsageError(f"provenance takes more than {MAX_MANIFEST_BYTES} bytes.")
        (self._folder / MANIFEST_NAME).write_bytes(manifest)
        return hashlib.sha256(manifest).hexdigest()

    def _read_checksums(self, name: str) -> _ChecksummedFile:
        """Return the checksums of a file that another library wrote."""
        seed = file_seed(self._store_uuid, self._generation, name)
        file = _ChecksummedFile(self._folder / name, "parquet", seed, existing=True)
        file.close()
        return file

    def _publish(self, manifest_digest: str) -> None:
        """Make the generation durable, then visible, then remove the ones before it."""
        fsync_tree(self._folder)
        self._folder.rename(self.path / generation_name(self._generation))
        fsync_folder(self.path)
        write_bytes(self.path / CURRENT_NAME, current_line(self._generation, manifest_digest))
        fsync_folder(self.path.resolve().parent)
        _remove_leftovers(self.path, keep=generation_name(self._generation))

    def _remove_store_folder(self) -> None:
        """Remove the folder this writer made, unless it holds a store now."""
        if not (self.path / CURRENT_NAME).exists():
            (self.path / LOCK_NAME).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # Something else has been put there meanwhile.
                self.path.rmdir()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the lock; remove what was not finished."""
        self._cleanup.close()


_CLOSED = (
    "This writer is closed: cells are added inside its `with` block, before finish, and not after "
    "a block that was refused."
)
_GENERATION = re.compile(r"gen-([1-9][0-9]*)")
_LEFTOVER = re.compile(r"\.gen-[1-9][0-9]*\.tmp|\.CURRENT\.[0-9a-f]+\.tmp")
_ESCAPED_FILES = ("counts.bin", "escape_positions.bin", "escape_counts.bin")


class _ChecksummedFile:
    """A file that is written once from its beginning, with the checksums of its chunks."""

    def __init__(self, path: Path, dtype: str, seed: int, *, existing: bool = False) -> None:
        self.path = path
        self.dtype = dtype
        self.seed = seed
        self.size = 0
        self.checksums: list[int] = []
        self._hash: Any = None
        self._whole = hashlib.sha256() if existing else None
        self._file = path.open("rb" if existing else "wb")
        if existing:
            while data := self._file.read(CHUNK_BYTES):
                self._whole.update(data)  # type: ignore[union-attr]
                self._add(memoryview(data))

    @property
    def num_items(self) -> int:
        return self.size // np.dtype(self.dtype).itemsize

    def write(self, values: Array) -> None:
        """Append values, cast to the file's type (callers have checked that they fit)."""
        stored = np.ascontiguousarray(values, dtype=np.dtype(self.dtype).newbyteorder("<"))
        if stored.size:
            data = stored.view(np.uint8).data
            self._file.write(data)
            self._add(data)

    def _add(self, data: memoryview) -> None:
        while len(data):
            room = CHUNK_BYTES - self.size % CHUNK_BYTES
            if self._hash is None:
                self._hash = xxhash.xxh3_64(seed=(self.seed + len(self.checksums)) % 2**64)
            part = data[:room]
            self._hash.update(part)
            self.size += len(part)
            if len(part) == room:
                self._end_chunk()
            data = data[room:]

    def _end_chunk(self) -> None:
        self.checksums.append(self._hash.intdigest())
        self._hash = None

    def close(self) -> None:
        """End the last chunk and close the file; a second call does nothing."""
        if not self._file.closed:
            self._file.close()
            if self._hash is not None:
                self._end_chunk()

    def rename(self, path: Path) -> None:
        self.path = self.path.rename(path)

    def entry(self) -> FileEntry:
        whole = None if self._whole is None else self._whole.hexdigest()
        return FileEntry(self.dtype, self.size, whole)


class _BlockError(Exception):
    """What is wrong with a block, and at which of its entries."""

    def __init__(self, found: str, entry: int | None = None) -> None:
        super().__init__(found)
        self.found = found
        self.entry = entry

    def located(self, indptr: Array, cells_before: int) -> InputDataError:
        """Return the error for users, naming the cell."""
        where = f"in the block that begins at cell {cells_before}"
        if self.entry is not None:
            cell = int(np.searchsorted(indptr, self.entry, side="right")) - 1 + cells_before
            where = f"in cell {cell}"
        return InputDataError(
            f"{self.found}, {where}. The matrix is not what a store can hold; mend the source."
        )


def _check_structure(indptr: Array, genes: Array, values: Array) -> Array:
    if any(array.ndim != 1 for array in (indptr, genes, values)) or len(indptr) == 0:
        raise _BlockError("The arrays of a block are not one-dimensional")
    if indptr.dtype.kind not in "iu" or genes.dtype.kind not in "iu":
        raise _BlockError(f"indptr is {indptr.dtype}, genes {genes.dtype}; both must be integers")
    indptr = indptr.astype(np.int64)
    if len(genes) != len(values) or indptr[0] != 0 or indptr[-1] != len(genes):
        raise _BlockError(
            f"indptr runs from {indptr[0]} to {indptr[-1]} for {len(genes)} genes and "
            f"{len(values)} values"
        )
    if (indptr[1:] < indptr[:-1]).any():
        raise _BlockError("indptr decreases")
    return indptr


def _check_genes(indptr: Array, genes: Array, num_genes: int) -> None:
    if len(genes) == 0:
        return
    if int(genes.min()) < 0 or int(genes.max()) >= num_genes:
        entry = int(np.flatnonzero((genes < 0) | (genes >= num_genes))[0])
        raise _BlockError(f"Gene position {genes[entry]} is outside 0..{num_genes - 1}", entry)
    rising = np.empty(len(genes), np.bool_)
    rising[0] = True
    np.greater(genes[1:], genes[:-1], out=rising[1:])
    begins = indptr[:-1]
    rising[begins[begins < len(genes)]] = True
    if not rising.all():
        entry = int(np.flatnonzero(~rising)[0])
        raise _BlockError(f"Gene position {genes[entry]} follows {genes[entry - 1]}", entry)


def _compilable(values: Array) -> Array:
    """Return values in one of the few types that `encode_counts` is compiled for."""
    kind = values.dtype.kind
    if kind not in "iufb":
        raise _BlockError(f"Values of type {values.dtype} are not counts")
    if kind == "f":
        return values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64, copy=False)
    return values.astype(np.int64, copy=False)


def _check_floats(values: Array) -> Array:
    if values.dtype.kind not in "iufb":
        raise _BlockError(f"Values of type {values.dtype} are not numbers")
    with np.errstate(over="ignore"):
        stored = values.astype(np.float32)
    bad = ~np.isfinite(stored) | (values == 0)
    if bad.any():
        entry = int(np.flatnonzero(bad)[0])
        raise _BlockError(f"{values[entry]} is not a finite float32 other than zero", entry)
    return stored


def _read_only(path: Path, dtype: type[np.generic]) -> Array:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r")


def _refuse_foreign(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that holds a store we may not replace, or anything that is not a store."""
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise ExistingPathError(f"{path} exists and is not a folder. Choose another path.")
    names = [each.name for each in path.iterdir()]
    generations = [name for name in names if _GENERATION.fullmatch(name)]
    if generations:
        if not overwrite:
            raise ExistingPathError(
                f"{path} holds a store already. Choose another path or allow overwriting (--overwrite)."
            )
        return
    foreign = [name for name in names if name != LOCK_NAME and not _LEFTOVER.fullmatch(name)]
    if foreign:
        raise ExistingPathError(
            f"{path} exists and is not a store (it holds {foreign[0]!r}). Choose another path."
        )


def _next_generation(path: Path) -> tuple[str, int]:
    """Return the store's uuid (a new one if it has none) and the next free generation."""
    numbers = [
        int(match[1]) for each in path.iterdir() if (match := _GENERATION.fullmatch(each.name))
    ]
    current = path / CURRENT_NAME
    try:
        generation, _ = parse_current(read_small(current, 200), current)
        manifest_path = path / generation_name(generation) / MANIFEST_NAME
        manifest = Manifest.from_bytes(read_small(manifest_path, MAX_MANIFEST_BYTES), manifest_path)
    except OmicsError:  # No store yet, or a damaged one that is about to be replaced.
        return secrets.token_hex(16), max(numbers, default=0) + 1
    return manifest.store_uuid, max(numbers) + 1


def _remove_leftovers(path: Path, keep: str | None = None) -> None:
    """Remove what crashed writers left and, given the current generation, all older ones."""
    for each in path.iterdir():
        old = keep is not None and each.name != keep and _GENERATION.fullmatch(each.name)
        if old or _LEFTOVER.fullmatch(each.name):
            remove_path(each)


def _written_by() -> str:
    from importlib.metadata import version

    return f"omics-data {version('omics-data')}"
