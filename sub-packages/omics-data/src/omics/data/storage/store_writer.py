"""`StoreWriter`: writes one generation of a store, block by block, in bounded memory.

- Counts go out as bytes; the rare large ones as 255 plus an entry of the escape table. Should
  more than 5% need that, `finish` rewrites the values in 16 or 32 bits, again block by block.
- Nothing has its final name before `finish`: the generation is built in a temporary folder,
  fsynced, renamed, and becomes visible when `CURRENT` is swapped, the last step.
- With a `resume_key`, `checkpoint` makes what was written durable and notes how far it is: after a
  crash or an interruption the next writer with the same key goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from omics.data.atomic_files import (
    LOCK_NAME,
    fsync_folder,
    fsync_tree,
    write_bytes,
    writer_lock,
)
from omics.data.errors import InputDataError, UsageError, lacks_memory, nearest
from omics.data.genes import GeneTable
from omics.data.storage.block_checks import BlockError
from omics.data.storage.block_encoding import PACKED_ESCAPE, pack_rows, rank_rows
from omics.data.storage.checksummed_file import ChecksummedFile
from omics.data.storage.coded_blocks import BlockCoder, CodedBlock
from omics.data.storage.early_flushing import EarlyFlushing
from omics.data.storage.frame_file import write_frame
from omics.data.storage.gather import patch_escapes, unpack_rows
from omics.data.storage.gene_statistics import CountStatistics, collected_medians
from omics.data.storage.generation_folder import next_generation, refuse_foreign, remove_leftovers
from omics.data.storage.row_statistics import sums_by_gene
from omics.data.storage.store_format import (
    CHECKSUMS_NAME,
    CHUNK_BYTES,
    COUNTS,
    CURRENT_NAME,
    FLOATS,
    LAYOUTS,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PACKED,
    PLAIN,
    FileEntry,
    Manifest,
    canonical_json,
    current_line,
    data_layout,
    file_seed,
    gene_dtype,
    generation_name,
    rank_digest,
)
from omics.data.storage.writer_journal import JOURNAL_NAME, load_journal, save_journal

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

MAX_ESCAPE_SHARE = 0.05
REREAD_ITEMS = 4 * 1024 * 1024


class StoreWriter:
    """Writes a new store, or a new generation of one.

    Use it as a context manager: `append` the cells block by block, then `finish`. Leaving the
    block without `finish` removes everything that was written (unless an interruption left it
    with a checkpoint).

    Args:
        path: the store folder.
        genes_frame: var, one row per gene; its index holds the gene ids.
        value_kind: `counts` (whole numbers from 1 to 2**32 - 1) or `float` (kept as float32).
        layout: `plain`, or `packed`: about half the bytes for counts, a little slower to read.
        rank_medians: also store the genes of each cell in the order of count / median; the
            median by gene id (genes that are not in it come last in a cell).
        overwrite: replace the store at `path`.
        provenance: where the data comes from, as plain JSON.
        resume_key: stands for all that decides what is written; a writer with the same key goes on
            from the last checkpoint of one that was stopped.

    Attributes:
        coder: makes the blocks that `append_coded` takes; usable by another thread meanwhile.
        num_cells: appended so far, those of a continued writer included.
        num_entries: likewise.
        progress: what the last `checkpoint` of a continued writer was given; None for a new one.

    Raises:
        ExistingPathError: `path` holds a store and `overwrite` is False, or holds other things.
        StoreLockedError: another process writes there.
        InputDataError: gene ids are not unique, or a var column cannot be kept.
        UsageError: `value_kind`, `layout`, `rank_medians` or `provenance` is not as described.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        genes_frame: pd.DataFrame,
        value_kind: str = COUNTS,
        layout: str = PLAIN,
        rank_medians: Mapping[str, float] | None = None,
        overwrite: bool = False,
        provenance: dict[str, Any] | None = None,
        resume_key: str | None = None,
    ) -> None:
        if value_kind not in {COUNTS, FLOATS}:
            raise UsageError(f"value_kind is {value_kind!r}; it must be {COUNTS!r} or {FLOATS!r}.")
        if layout not in LAYOUTS:
            raise UsageError(f"There is no layout {layout!r}.{nearest(layout, LAYOUTS)}")
        if value_kind == FLOATS and (layout == PACKED or rank_medians is not None):
            raise UsageError("The packed layout and the rank view are for counts only.")
        self._provenance = _plain_json(provenance or {})
        self.path = Path(path)
        self._genes = GeneTable([str(name) for name in genes_frame.index])
        self._genes_frame = genes_frame
        self._value_kind = value_kind
        self.coder = BlockCoder(len(self._genes), value_kind)
        self._layout = layout
        self._medians = None if rank_medians is None else _aligned(rank_medians, self._genes)
        self._overwrite = overwrite
        self._resume_key = resume_key
        self._cleanup = contextlib.ExitStack()
        self._closed = True
        self._has_checkpoint = False
        self.num_cells = 0
        self.num_entries = 0
        self.progress: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        """Take the lock and begin a new generation, or continue one."""
        with self._cleanup:
            self._begin()
            self._cleanup = self._cleanup.pop_all()
        self._closed = False
        return self

    def _begin(self) -> None:
        refuse_foreign(self.path, overwrite=self._overwrite)
        created = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        self._cleanup.enter_context(writer_lock(self.path))
        if created:
            self._cleanup.callback(self._remove_store_folder)
        refuse_foreign(self.path, overwrite=self._overwrite)
        self._store_uuid, self._generation = next_generation(self.path)
        self._folder = self.path / f".{generation_name(self._generation)}.tmp"
        self._files: dict[str, ChecksummedFile] = {}
        self._largest = 0
        self._statistics = CountStatistics(len(self._genes))
        self._float_sums = np.zeros(len(self._genes), np.float64)
        self._float_detection = np.zeros(len(self._genes), np.int64)
        self._cleanup.callback(self._remove_unfinished)
        if not self._continue():
            self._begin_generation()
        self._flushing = EarlyFlushing()
        self._cleanup.callback(self._flushing.stop)  # Before the files are closed.

    def _begin_generation(self) -> None:
        remove_leftovers(self.path)
        self._folder.mkdir()
        write_frame(self._genes_frame, self._folder / "var.parquet", "var")
        for name, dtype in self._first_layout().items():
            self._files[name] = self._create(name, dtype)
        for name in ("offsets.bin", "packed_offsets.bin"):
            if name in self._files:
                self._files[name].write(np.zeros(1, np.int64))

    def _remove_unfinished(self) -> None:
        if not self._has_checkpoint:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _first_layout(self) -> dict[str, str]:
        """Return the files that grow with every block, and their types."""
        layout = data_layout(
            n_cells=0,
            n_genes=len(self._genes),
            nnz=0,
            value_kind=self._value_kind,
            layout=self._layout,
            ranked=self._medians is not None,
            value_dtype="uint8" if self._value_kind == COUNTS else "float32",
            num_escapes=0,
            packed_bytes=0,
        )
        return {name: dtype for name, (dtype, _) in layout.items() if not name.startswith("gene_")}

    def _create(self, name: str, dtype: str) -> ChecksummedFile:
        seed = file_seed(self._store_uuid, self._generation, name)
        file = ChecksummedFile(self._folder / name, dtype, seed, CHUNK_BYTES)
        self._cleanup.callback(file.close)
        return file

    # --- checkpoints -----------------------------------------------------------------------------

    def checkpoint(self, progress: dict[str, Any]) -> None:
        """Make everything appended so far durable, for a writer with the same key to go on from.

        Args:
            progress: what the caller needs to go on, as plain JSON.

        Raises:
            UsageError: the writer has no `resume_key`, or is closed.
        """
        if self._closed or self._resume_key is None:
            raise UsageError(
                _CLOSED if self._closed else "Only a writer with a resume_key resumes."
            )
        self._flushing.settle()
        for file in self._files.values():
            file.make_durable()
        record = {
            "key": self._resume_key,
            "store_uuid": self._store_uuid,
            "progress": progress,
            "num_cells": self.num_cells,
            "num_entries": self.num_entries,
            "largest": self._largest,
            "files": {name: [file.dtype, file.size] for name, file in self._files.items()},
        }
        arrays: dict[str, Array] = {
            f"checksums {name}": np.array(file.complete_checksums(), np.uint64)
            for name, file in self._files.items()
        }
        if self._value_kind == COUNTS:
            arrays |= self._statistics.state()
        else:
            arrays["float_sums"] = self._float_sums
            arrays["float_detection"] = self._float_detection
        save_journal(self._folder, record, arrays)
        self._has_checkpoint = True

    def _continue(self) -> bool:
        """Go on from the checkpoint of a writer that was stopped; False if there is none."""
        found = None if self._resume_key is None else load_journal(self._folder)
        if found is None or found[0]["key"] != self._resume_key:
            return False
        record, arrays = found
        self._store_uuid = record["store_uuid"]
        try:
            for name, (dtype, size) in record["files"].items():
                self._files[name] = ChecksummedFile.continued(
                    self._folder / name,
                    dtype,
                    file_seed(self._store_uuid, self._generation, name),
                    CHUNK_BYTES,
                    size=size,
                    checksums=arrays[f"checksums {name}"].tolist(),
                )
                self._cleanup.callback(self._files[name].close)
        except OSError:  # Less is there than was noted: begin anew.
            self._files.clear()
            return False
        if self._value_kind == COUNTS:
            self._statistics.restore(arrays)
        else:
            self._float_sums = arrays["float_sums"]
            self._float_detection = arrays["float_detection"]
        self.num_cells = record["num_cells"]
        self.num_entries = record["num_entries"]
        self._largest = record["largest"]
        self.progress = record["progress"]
        self._has_checkpoint = True
        remove_leftovers(self.path, keep=self._folder.name)
        return True

    # --- blocks ----------------------------------------------------------------------------------

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
            block = self.coder.code(indptr, genes, values)
        except BlockError as error:
            self._closed = True
            raise error.located(indptr, self.num_cells) from None
        self.append_coded(block)

    def append_coded(self, block: CodedBlock) -> None:
        """Add a block of cells that the `coder` of this writer has made.

        Args:
            block: the cells.
        """
        if self._closed:
            raise UsageError(_CLOSED)
        if self._value_kind == COUNTS:
            self._write_counts(block)
        else:
            self._write_floats(block)
        self._files["cell_sums.bin"].write(block.cell_sums)
        self._files["offsets.bin"].write(block.indptr[1:] + self.num_entries)
        self.num_cells += block.num_cells
        self.num_entries += block.num_entries
        self._flushing.note(self._files.values())

    def _write_counts(self, block: CodedBlock) -> None:
        self._statistics.add(block)
        escapes, large = block.escapes, block.large
        if self._layout == PACKED or self._medians is not None:
            counts = block.values.astype(np.uint32)
            counts[escapes] = large
            if self._medians is not None:
                ranked = rank_rows(block.indptr, block.positions, counts, self._medians)
                self._files["rank_genes.bin"].write(ranked)
        if self._layout == PACKED:
            ends = np.empty(block.num_cells, np.int64)
            before = self._files["packed.bin"].size
            self._files["packed.bin"].write(pack_rows(block.indptr, block.positions, counts, ends))
            self._files["packed_offsets.bin"].write(ends + before)
            wide = large >= PACKED_ESCAPE
            escapes, large = escapes[wide], large[wide]
        else:
            self._files["genes.bin"].write(block.positions)
            self._files["counts.bin"].write(block.values)
        if len(escapes):
            self._largest = max(self._largest, int(large.max()))
            self._files["escape_positions.bin"].write(escapes + self.num_entries)
            self._files["escape_counts.bin"].write(large)

    def _write_floats(self, block: CodedBlock) -> None:
        self._files["genes.bin"].write(block.positions)
        self._files["values.bin"].write(block.values)
        positions = block.positions.astype(np.int64)
        self._float_sums += sums_by_gene(positions, block.values, len(self._genes))
        self._float_detection += np.bincount(positions, minlength=len(self._genes))

    # --- the end ---------------------------------------------------------------------------------

    def finish(self, obs: pd.DataFrame, *, provenance: dict[str, Any] | None = None) -> None:
        """Write obs and everything else, then make the store visible.

        Args:
            obs: one row per cell, in the order they were appended; its index holds their names.
            provenance: in place of the one given at the beginning.

        Raises:
            InputDataError: obs has another number of rows, or a column cannot be kept.
        """
        if self._closed:
            raise UsageError(_CLOSED)
        if provenance is not None:
            self._provenance = _plain_json(provenance)
        if len(obs) != self.num_cells:
            raise InputDataError(
                f"obs has {len(obs)} rows for {self.num_cells} cells in the matrix. The source "
                "contradicts itself; mend or export it again."
            )
        self._closed = True
        self._has_checkpoint = False
        (self._folder / JOURNAL_NAME).unlink(missing_ok=True)
        write_frame(obs, self._folder / "obs.parquet", "obs")
        self._flushing.settle()
        self._flushing.stop()
        for file in self._files.values():
            file.close()
        if self._layout == PLAIN and self._value_kind == COUNTS:
            escapes = self._files["escape_counts.bin"].num_items
            if escapes > MAX_ESCAPE_SHARE * self.num_entries:
                self._recode_counts()
        for name, values in self._gene_statistics().items():
            self._files[name] = self._create(name, str(values.dtype))
            self._files[name].write(values)
            self._files[name].close()
        self._publish(self._write_manifest())

    def _recode_counts(self) -> None:
        """Replace bytes and escapes by wider counts."""
        dtype = "uint16" if self._largest < 2**16 else "uint32"
        recoded = self._create("counts.bin.wide", dtype)
        recoded.seed = file_seed(self._store_uuid, self._generation, "counts.bin")
        old = [self._files[name] for name in _ESCAPED_FILES]
        for _, counts in self._written_entries():
            recoded.write(counts)
        recoded.close()
        for file in old:
            file.path.unlink()
            del self._files[file.path.name]
        recoded.rename(self._folder / "counts.bin")
        self._files["counts.bin"] = recoded

    def _gene_statistics(self) -> dict[str, Array]:
        if self._value_kind == COUNTS:
            sums, detection, medians, unknown = self._statistics.finish()
        else:
            sums, detection = self._float_sums, self._float_detection
            medians, unknown = np.zeros(len(self._genes), np.float64), detection > 0
        wanted = np.flatnonzero(unknown)
        medians[wanted] = collected_medians(wanted, detection, self._written_entries)
        return {
            "gene_sums.bin": sums,
            "gene_detection.bin": detection,
            "gene_medians.bin": medians,
        }

    def _written_entries(self) -> Iterator[tuple[Array, Array]]:
        """Yield the genes and values of everything written, block by block, from the disk."""
        if self._layout == PACKED:
            yield from self._packed_entries()
            return
        value_name = "values.bin" if self._value_kind == FLOATS else "counts.bin"
        for begin in range(0, self.num_entries, REREAD_ITEMS):
            end = min(begin + REREAD_ITEMS, self.num_entries)
            values = self._stored(value_name, begin, end)
            if "escape_counts.bin" in self._files:
                values = values.astype(np.uint32)
                positions = self._mapped("escape_positions.bin")
                first, last = np.searchsorted(positions, (begin, end))
                large = self._mapped("escape_counts.bin")[first:last]
                values[positions[first:last] - begin] = large
            yield self._stored("genes.bin", begin, end), values

    def _packed_entries(self) -> Iterator[tuple[Array, Array]]:
        offsets, bytes_at = self._mapped("offsets.bin"), self._mapped("packed_offsets.bin")
        positions = self._mapped("escape_positions.bin")
        large = self._mapped("escape_counts.bin")
        first = 0
        while first < self.num_cells:
            limit = int(offsets[first]) + REREAD_ITEMS
            last = max(first + 1, int(np.searchsorted(offsets, limit, side="right")) - 1)
            indptr = np.asarray(offsets[first : last + 1]) - offsets[first]
            genes = np.empty(int(indptr[-1]), gene_dtype(len(self._genes)))
            counts = np.empty(int(indptr[-1]), np.uint32)
            packed = self._stored("packed.bin", int(bytes_at[first]), int(bytes_at[last]))
            ends = np.asarray(bytes_at[first : last + 1]) - bytes_at[first]
            unpack_rows(packed, (ends[:-1], ends, indptr), len(self._genes), (genes, counts))
            patch_escapes(np.asarray(offsets[first:last]), indptr, positions, large, counts)
            yield genes, counts
            first = last

    def _stored(self, name: str, begin: int, end: int) -> Array:
        """Read a range of a written file; mapping it would count as memory of this process."""
        file = self._files[name]
        dtype = np.dtype(file.dtype).newbyteorder("<")
        return np.fromfile(file.path, dtype, end - begin, offset=begin * dtype.itemsize)

    def _mapped(self, name: str) -> Array:
        file = self._files[name]
        if file.size == 0:
            return np.zeros(0, file.dtype)
        return np.asarray(np.memmap(file.path, np.dtype(file.dtype).newbyteorder("<"), mode="r"))

    def _write_manifest(self) -> str:
        for name in ("obs.parquet", "var.parquet"):
            seed = file_seed(self._store_uuid, self._generation, name)
            self._files[name] = ChecksummedFile.of_existing(
                self._folder / name, "parquet", seed, CHUNK_BYTES
            )
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
            layout=self._layout,
            rank_digest=None if self._medians is None else rank_digest(self._medians),
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

    def _publish(self, manifest_digest: str) -> None:
        """Make the generation durable, then visible, then remove the ones before it."""
        fsync_tree(self._folder)
        self._folder.rename(self.path / generation_name(self._generation))
        fsync_folder(self.path)
        write_bytes(self.path / CURRENT_NAME, current_line(self._generation, manifest_digest))
        fsync_folder(self.path.resolve().parent)
        remove_leftovers(self.path, keep=generation_name(self._generation))

    def _remove_store_folder(self) -> None:
        """Remove the folder this writer made, unless it holds a store or a checkpoint now."""
        if not (self.path / CURRENT_NAME).exists() and not self._has_checkpoint:
            (self.path / LOCK_NAME).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # Something else has been put there meanwhile.
                self.path.rmdir()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Release the lock; remove what was not finished, unless an interruption is to go on.

        Lack of memory is one: nothing is wrong with what was written, and the next run may have
        more. A full disk is none: what was written is in the way.
        """
        interrupted = error is not None and (
            not isinstance(error, Exception) or lacks_memory(error)
        )
        self._has_checkpoint = self._has_checkpoint and interrupted
        self._cleanup.close()


_CLOSED = (
    "This writer is closed: cells are added inside its `with` block, before finish, and not after "
    "a block that was refused."
)
_ESCAPED_FILES = ("counts.bin", "escape_positions.bin", "escape_counts.bin")


def _plain_json(provenance: dict[str, Any]) -> dict[str, Any]:
    try:
        canonical_json(provenance)
    except (TypeError, ValueError) as error:
        raise UsageError(f"provenance must be plain JSON: {error}.") from None
    return dict(provenance)


def _aligned(medians: Mapping[str, float], genes: GeneTable) -> Array:
    """Return the median of each gene of the store, 0 where there is none."""
    aligned = np.array([medians.get(name, 0.0) for name in genes.ids.tolist()], np.float64)
    if not (np.isfinite(aligned).all() and (aligned >= 0).all()):
        raise UsageError("A median of rank_medians is negative or not a number.")
    if not aligned.any():
        raise UsageError(
            "rank_medians has a median for none of the genes. Its keys must be the gene ids."
        )
    return aligned


def _written_by() -> str:
    from importlib.metadata import version

    return f"omics-data {version('omics-data')}"
