"""`CellStore`: a store on disk, opened read-only; `open_store` opens one.

- Opening reads `CURRENT`, the manifest and the checksum list, compares every file's size and maps
  the files; data is checked where it is first touched (`verify`).
- All files of the generation are mapped at once: a reader keeps its generation even when the
  store is overwritten and the old files are removed.
- Rows are copied out by compiled loops that only ever see ranges checked here.
- A pickled store is its path and generation: worker processes open it again.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.cell_batch import CellBatch
from omics.data.errors import (
    CorruptStoreError,
    InputDataError,
    MissingPathError,
    OmicsError,
    UsageError,
    nearest,
)
from omics.data.frame_file import FrameTable
from omics.data.gather import gather_rows, patch_escapes
from omics.data.genes import GeneTable
from omics.data.mapped_file import VERIFY_MODES, MappedFile, map_file, read_small
from omics.data.row_statistics import sums_by_cell, sums_by_gene
from omics.data.store_format import (
    CHECKSUMS_NAME,
    COUNTS,
    CURRENT_NAME,
    ESCAPE,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    damaged,
    file_seed,
    generation_name,
    parse_current,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import anndata

Array = np.ndarray[Any, np.dtype[Any]]

ObsTable = FrameTable

_VERIFY_ENTRIES = 4 * 1024 * 1024


class RowError(OmicsError, IndexError):
    """A row that does not exist in the store."""

    code = "row"
    exit_code = UsageError.exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a full check has covered (it raises when something is wrong).

    Attributes:
        generation: that was checked.
        num_files: files checked, with the manifest and `CURRENT`.
        num_bytes: their total size.
        num_chunks: checksummed chunks.
        extra_files: names in the generation's folder that no manifest lists; harmless.
    """

    generation: int
    num_files: int
    num_bytes: int
    num_chunks: int
    extra_files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        return {**asdict(self), "extra_files": list(self.extra_files)}


def open_store(path: str | os.PathLike[str], *, verify: str = "first") -> CellStore:
    """Open a store for reading.

    Args:
        path: the store folder.
        verify: `first` checks each chunk when it is first touched, `always` at every touch,
            `off` trusts the disk (sizes and structure are checked nevertheless).

    Returns:
        The store, at its current generation.

    Raises:
        MissingPathError: nothing is at `path`.
        InputDataError: what is at `path` is not a store.
        CorruptStoreError: a file is missing, has another size, or is damaged.
        StoreVersionError: a newer version of the format.
    """
    if verify not in VERIFY_MODES:
        raise UsageError(f"verify is {verify!r}.{nearest(verify, VERIFY_MODES)}")
    folder = Path(path).absolute()
    _refuse_other_things(folder)
    while True:
        current = read_small(folder / CURRENT_NAME, 200)
        generation, digest = parse_current(current, folder / CURRENT_NAME)
        try:
            return CellStore(folder, generation=generation, manifest_digest=digest, verify=verify)
        except CorruptStoreError:
            # A writer may have put a new generation in place since CURRENT was read.
            if read_small(folder / CURRENT_NAME, 200) == current:
                raise


def _refuse_other_things(folder: Path) -> None:
    if not os.path.lexists(folder):
        raise MissingPathError(f"{folder} does not exist. Check the path of the store.")
    if not folder.is_dir():
        raise InputDataError(
            f"{folder} is a file, not a store. Make a store of it: omics-data convert SOURCE STORE."
        )
    if not (folder / CURRENT_NAME).exists():
        if any(each.name.startswith("gen-") for each in folder.iterdir()):
            raise damaged(folder / CURRENT_NAME, "is missing")
        raise InputDataError(
            f"{folder} is not a store: it has no file {CURRENT_NAME} (or its conversion was not "
            "finished). Make one: omics-data convert SOURCE STORE."
        )


class CellStore:
    """The cells of a store; use `open_store`.

    Attributes:
        path: the store folder, absolute.
        generation: the one that is open.
        digest: the sha256 (hex) of its manifest, which names this very content.
        obs: the table of cells; columns are read on demand.

    Args:
        path: the store folder.
        generation: to open.
        manifest_digest: the sha256 of its manifest, as `CURRENT` says.
        verify: see `open_store`.

    Raises:
        CorruptStoreError: a file is missing, has another size, or is damaged.
        StoreVersionError: a newer version of the format.
    """

    def __init__(self, path: Path, *, generation: int, manifest_digest: str, verify: str) -> None:
        self.path = path
        self.generation = generation
        self.digest = manifest_digest
        self._verify = verify
        self._folder = path / generation_name(generation)
        self._manifest = _read_manifest(self._folder / MANIFEST_NAME, manifest_digest)
        if self._manifest.generation != generation:
            raise damaged(self._folder / MANIFEST_NAME, "belongs to another generation")
        self._checksums = self._read_checksums()
        self._files = self._map_files()
        manifest = self._manifest
        self.obs = FrameTable(self._files["obs.parquet"], manifest.n_cells)
        self._var = FrameTable(self._files["var.parquet"], manifest.n_genes)
        self._offsets = self._files["offsets.bin"]
        self._genes = self._files["genes.bin"]
        self._values = self._files[manifest.value_file]
        self._count_dtype = np.dtype(
            np.uint32 if manifest.has_escapes else manifest.files[manifest.value_file].dtype
        )

    def _read_checksums(self) -> Array:
        size = self._manifest.files[CHECKSUMS_NAME].size
        data = np.frombuffer(map_file(self._folder / CHECKSUMS_NAME, size), dtype="<u8")
        if self._verify != "off":
            self._check_digest(CHECKSUMS_NAME, data.data)
        return data

    def _check_digest(self, name: str, data: memoryview) -> None:
        if hashlib.sha256(data).hexdigest() != self._manifest.files[name].sha256:
            raise damaged(self._folder / name, "does not match its digest in the manifest")

    def _map_files(self) -> dict[str, MappedFile]:
        files = {}
        begin = 0
        for name in self._manifest.checksummed_files():
            entry = self._manifest.files[name]
            end = begin + self._manifest.num_chunks(name)
            files[name] = MappedFile(
                self._folder / name,
                dtype=entry.dtype,
                size=entry.size,
                chunk_bytes=self._manifest.chunk_bytes,
                seed=file_seed(self._manifest.store_uuid, self.generation, name),
                checksums=self._checksums[begin:end],
                verify=self._verify,
                check=self._structure_check(name),
            )
            begin = end
        return files

    def _structure_check(self, name: str) -> Callable[[Array], str | None] | None:
        """Return the check that keeps values out of range away from the compiled loops."""
        num_genes, num_entries = self._manifest.n_genes, self._manifest.nnz

        def check_genes(genes: Array) -> str | None:
            return "holds a gene position out of range" if genes.max() >= num_genes else None

        def check_offsets(offsets: Array) -> str | None:
            rising = bool((offsets[1:] >= offsets[:-1]).all())
            inside = offsets[0] >= 0 and offsets[-1] <= num_entries
            return None if rising and inside else "holds offsets that decrease or are out of range"

        def check_positions(positions: Array) -> str | None:
            rising = bool((positions[1:] > positions[:-1]).all())
            inside = positions[0] >= 0 and positions[-1] < num_entries
            return None if rising and inside else "holds positions out of order or out of range"

        checks: dict[str, Callable[[Array], str | None]] = {
            "genes.bin": check_genes,
            "offsets.bin": check_offsets,
            "escape_positions.bin": check_positions,
        }
        return checks.get(name)

    def __len__(self) -> int:
        """Return the number of cells."""
        return self._manifest.n_cells

    def __repr__(self) -> str:
        """Return a short description."""
        cells, genes = self.shape
        return f"CellStore({cells} cells, {genes} genes, {self.num_entries} entries, {self.path})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as path and generation; opened again when unpickled."""
        return _open_again, (os.fspath(self.path), self.generation, self.digest, self._verify)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and number of genes."""
        return self._manifest.n_cells, self._manifest.n_genes

    @property
    def num_entries(self) -> int:
        """How many values are stored, over all cells."""
        return self._manifest.nnz

    @property
    def num_bytes(self) -> int:
        """Size of all files of this generation."""
        return sum(entry.size for entry in self._manifest.files.values())

    @property
    def value_kind(self) -> str:
        """`counts` or `float`."""
        return self._manifest.value_kind

    @property
    def count_dtype(self) -> np.dtype[Any]:
        """The type of `CellBatch.counts` from this store."""
        return self._count_dtype

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the data came from, as its writer said."""
        return dict(self._manifest.provenance)

    @property
    def written_by(self) -> str:
        """The name and version of the writer."""
        return self._manifest.written_by

    @cached_property
    def genes(self) -> GeneTable:
        """The gene table: ids and the columns of var."""
        columns = {name: self._var[name] for name in self._var.columns}
        table = GeneTable(self._var.names, columns)
        if table.digest != self._manifest.gene_digest:
            raise damaged(self._folder / "var.parquet", "holds other genes than the manifest says")
        return table

    @property
    def lengths(self) -> Array:
        """int64 [n], the number of entries of each cell."""
        return np.diff(self._all_offsets())

    def row_sums(self) -> Array:
        """Return the stored sum of each cell: int64 [n] of counts, float64 [n] of floats."""
        return self._files["cell_sums.bin"].touch_all()

    def gene_sums(self) -> Array:
        """Return the stored sum of each gene: int64 [g] of counts, float64 [g] of floats."""
        return self._files["gene_sums.bin"].touch_all()

    def gene_detection(self) -> Array:
        """Return int64 [g], the number of cells that have an entry of each gene."""
        return self._files["gene_detection.bin"].touch_all()

    def take(self, rows: Sequence[int] | Array, *, obs: Sequence[str] = ()) -> CellBatch:
        """Return some cells.

        Args:
            rows: integers [n] from 0 to len - 1, in any order; may repeat.
            obs: columns of obs to bring along.

        Returns:
            The cells in the order of `rows`; counts always of `count_dtype`.

        Raises:
            RowError: a row is outside the store.
            UsageError: rows are not integers.
            UnknownNameError: there is no such obs column.
            CorruptStoreError: a touched chunk is damaged.
        """
        cells = self._checked_rows(rows)
        self._offsets.touch(cells, cells + 2)
        starts = self._offsets.array[cells]
        ends = self._offsets.array[cells + 1]
        if len(cells) and not self._in_range(starts, ends):
            raise damaged(self._offsets.path, "holds offsets that decrease or are out of range")
        indptr = np.zeros(len(cells) + 1, np.int64)
        np.cumsum(ends - starts, out=indptr[1:])
        self._genes.touch(starts, ends)
        self._values.touch(starts, ends)
        genes = np.empty(indptr[-1], self._genes.array.dtype)
        counts = np.empty(indptr[-1], self._count_dtype)
        gather_rows(starts, indptr, self._genes.array, genes)
        gather_rows(starts, indptr, self._values.array, counts)
        if self._manifest.has_escapes:
            positions = self._escape_positions()
            large = self._files["escape_counts.bin"].touch_all()
            patch_escapes(starts, indptr, positions, large, counts)
        return CellBatch(
            indptr=indptr,
            genes=genes,
            counts=counts,
            rows=cells,
            num_genes=self.shape[1],
            obs={name: self.obs[name][cells] for name in obs},
        )

    def _in_range(self, starts: Array, ends: Array) -> bool:
        ordered = bool((ends >= starts).all())
        return ordered and int(starts.min()) >= 0 and int(ends.max()) <= self.num_entries

    def _checked_rows(self, rows: Sequence[int] | Array) -> Array:
        """Return rows as int64 of its own memory."""
        given = np.asarray(rows)
        if given.ndim != 1 or (given.dtype.kind not in "iu" and len(given)):
            raise UsageError(
                f"Rows must be a one-dimensional array of integers, not {given.dtype} of "
                f"{given.ndim} dimensions. Turn a mask into rows with numpy.flatnonzero."
            )
        outside = (given < 0) | (given >= len(self)) if len(given) else np.zeros(0, np.bool_)
        if outside.any():
            raise RowError(
                f"Row {given[outside][0]} is outside {self.path}, which has {len(self)} cells "
                f"(rows 0 to {len(self) - 1}; negative rows are not allowed)."
            )
        return np.array(given, dtype=np.int64)

    def _escape_positions(self) -> Array:
        """Return the checked positions of escaped counts, ascending over the whole file."""
        file = self._files["escape_positions.bin"]
        positions = file.touch_all()
        if not self._escapes_ascend:
            raise damaged(file.path, "holds positions out of order")
        return positions

    @cached_property
    def _escapes_ascend(self) -> bool:
        positions = self._files["escape_positions.bin"].array
        step = _VERIFY_ENTRIES
        pieces = (positions[begin : begin + step + 1] for begin in range(0, len(positions), step))
        return all(bool((piece[1:] > piece[:-1]).all()) for piece in pieces)

    def _all_offsets(self) -> Array:
        offsets = self._offsets.touch_all()
        if offsets[0] != 0 or offsets[-1] != self.num_entries or (np.diff(offsets) < 0).any():
            raise damaged(self._offsets.path, "does not run from 0 to the number of entries")
        return offsets

    def to_anndata(self, rows: Sequence[int] | Array | None = None) -> anndata.AnnData:
        """Return cells as an AnnData object in memory.

        Args:
            rows: which cells, in order; None takes all.

        Returns:
            X (CSR, values of `count_dtype`), obs and var as they were converted.
        """
        import anndata

        cells = np.arange(len(self)) if rows is None else self._checked_rows(rows)
        obs = self.obs.to_pandas()
        return anndata.AnnData(
            X=self.take(cells).to_csr(),
            obs=obs if rows is None else obs.iloc[cells],
            var=self._var.to_pandas(),
        )

    def verify(self) -> VerifyReport:
        """Check every byte of the open generation, its structure and its statistics.

        The manifest has been checked when the store was opened.

        Returns:
            What was checked.

        Raises:
            CorruptStoreError: something is damaged; the message names the file and chunk.
        """
        manifest = self._manifest
        self._check_digest(CHECKSUMS_NAME, self._checksums.data)
        for name, file in self._files.items():
            if manifest.files[name].sha256 is not None:
                self._check_digest(name, file.array.data)
            for chunk in range(file.num_chunks):
                file.check_chunk(chunk, hashing=True)
        self._verify_content()
        present = {each.name for each in self._folder.iterdir()} if self._folder.exists() else set()
        return VerifyReport(
            generation=self.generation,
            num_files=len(manifest.files) + 2,
            num_bytes=self.num_bytes + len(manifest.to_bytes()),
            num_chunks=len(self._checksums),
            extra_files=tuple(sorted(present - set(manifest.files) - {MANIFEST_NAME})),
        )

    def _verify_content(self) -> None:
        """Check what checksums cannot: that the files agree with each other."""
        self._all_offsets()
        _ = self.genes
        self.obs.to_pandas()
        self._verify_escapes()
        counting = self.value_kind == COUNTS
        gene_sums = np.zeros(self.shape[1], np.int64)
        detection = np.zeros(self.shape[1], np.int64)
        for batch in self._row_blocks():
            cells = batch.cell_of_entry()
            falling = (batch.genes[1:] <= batch.genes[:-1]) & (cells[1:] == cells[:-1])
            if falling.any():
                row = batch.rows[cells[1:][falling][0]]
                raise damaged(self._genes.path, f"holds genes out of order in cell {row}")
            positions = batch.genes.astype(np.int64)
            detection += np.bincount(positions, minlength=len(detection))
            if counting:
                gene_sums += sums_by_gene(positions, batch.counts, len(gene_sums))
                sums = sums_by_cell(batch.indptr, batch.counts)
                if (sums != self.row_sums()[batch.rows]).any():
                    raise damaged(self._files["cell_sums.bin"].path, "does not fit the counts")
        if counting and (gene_sums != self.gene_sums()).any():
            raise damaged(self._files["gene_sums.bin"].path, "does not fit the counts")
        if (detection != self.gene_detection()).any():
            raise damaged(self._files["gene_detection.bin"].path, "does not fit the matrix")

    def _verify_escapes(self) -> None:
        if "escape_counts.bin" not in self._files:
            return
        positions = self._escape_positions()
        codes = self._values.array
        marked = int(np.count_nonzero(codes == ESCAPE))
        large = self._files["escape_counts.bin"].array
        if marked != len(positions) or (codes[positions] != ESCAPE).any() or (large < ESCAPE).any():
            raise damaged(self._values.path, f"has {marked} escapes for {len(positions)} positions")

    def _row_blocks(self) -> Iterator[CellBatch]:
        """Yield all cells in order, in blocks of bounded size."""
        offsets = self._offsets.array
        begin = 0
        while begin < len(self):
            limit = int(offsets[begin]) + _VERIFY_ENTRIES
            fitting = int(np.searchsorted(offsets, limit, side="right")) - 1
            end = min(max(fitting, begin + 1), len(self))
            yield self.take(np.arange(begin, end))
            begin = end


def _open_again(path: str, generation: int, digest: str, verify: str) -> CellStore:
    """Open the generation that a pickled store had open."""
    folder = Path(path)
    try:
        return CellStore(folder, generation=generation, manifest_digest=digest, verify=verify)
    except CorruptStoreError:
        current = folder / CURRENT_NAME
        if current.exists() and parse_current(read_small(current, 200), current)[0] != generation:
            raise MissingPathError(
                f"{folder} has been overwritten: its generation {generation}, which another "
                "process had open, is gone. Start again with the new one."
            ) from None
        raise


def _read_manifest(path: Path, digest: str) -> Manifest:
    data = read_small(path, MAX_MANIFEST_BYTES)
    if hashlib.sha256(data).hexdigest() != digest:
        raise damaged(path, f"does not match the digest in {CURRENT_NAME}")
    return Manifest.from_bytes(data, path)
