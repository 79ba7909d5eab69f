"""`CellStore`: a store on disk, opened read-only; `open_store` opens one.

- Opening reads `CURRENT`, the manifest and the checksum list, compares every file's size and maps
  the files; data is checked where it is first touched (`verify`).
- All files of the generation are mapped at once: a reader keeps its generation even when the
  store is overwritten and the old files are removed.
- Rows are copied out by compiled loops that only ever see ranges checked here.
- A pickled store is its path and generation: worker processes open it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
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
    UnknownNameError,
    UsageError,
    nearest,
)
from omics.data.genes import GeneTable
from omics.data.storage.batch_buffers import BatchBuffers
from omics.data.storage.frame_file import FrameTable
from omics.data.storage.gather import (
    LOCATED,
    OFFSETS_DAMAGED,
    gather_rows,
    locate_rows,
    patch_escapes,
    unpack_rows,
)
from omics.data.storage.mapped_file import VERIFY_MODES, MappedFile, map_file, read_small
from omics.data.storage.seen_chunks import private_map, shared_map
from omics.data.storage.store_format import (
    CHECKSUMS_NAME,
    CURRENT_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PACKED,
    Manifest,
    damaged,
    file_seed,
    gene_dtype,
    generation_name,
    parse_current,
)
from omics.data.storage.store_verification import VerifyReport, verify_content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import anndata

Array = np.ndarray[Any, np.dtype[Any]]

ObsTable = FrameTable

_CHECK_ITEMS = 4 * 1024 * 1024


class RowError(OmicsError, IndexError):
    """A row that does not exist in the store."""

    code = "row"
    exit_code = UsageError.exit_code


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
        self._two_each = np.zeros(0, np.int64)
        self._files = self._map_files()
        manifest = self._manifest
        self.obs = FrameTable(self._files["obs.parquet"], manifest.n_cells)
        self._var = FrameTable(self._files["var.parquet"], manifest.n_genes)
        self._offsets = self._files["offsets.bin"]
        self._packed = manifest.layout == PACKED
        self._count_dtype: np.dtype[Any]
        if manifest.has_escapes:
            self._count_dtype = np.dtype(np.uint32)
        elif manifest.value_file is None:
            self._count_dtype = np.dtype(np.uint16)
        else:
            self._count_dtype = np.dtype(manifest.files[manifest.value_file].dtype)
        self._gene_dtype = np.dtype(gene_dtype(manifest.n_genes))

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
        names = self._manifest.checksummed_files()
        seen = private_map(len(self._checksums))
        if self._verify == "first":
            with contextlib.suppress(OSError):  # A file that is missing is reported below.
                seen = shared_map(self.digest, [self._folder / name for name in names], len(seen))
        self._seen = seen
        files = {}
        begin = 0
        for name in names:
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
                seen=seen[begin:end],
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

        def check_packed_offsets(offsets: Array) -> str | None:
            rising = bool((offsets[1:] >= offsets[:-1]).all())
            inside = offsets[0] >= 0 and offsets[-1] <= self._manifest.files["packed.bin"].size
            return None if rising and inside else "holds offsets that decrease or are out of range"

        def check_positions(positions: Array) -> str | None:
            rising = bool((positions[1:] > positions[:-1]).all())
            inside = positions[0] >= 0 and positions[-1] < num_entries
            return None if rising and inside else "holds positions out of order or out of range"

        checks: dict[str, Callable[[Array], str | None]] = {
            "genes.bin": check_genes,
            "rank_genes.bin": check_genes,
            "offsets.bin": check_offsets,
            "packed_offsets.bin": check_packed_offsets,
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

    def gene_medians(self) -> Array:
        """Return float64 [g], the median of each gene's values where it has one, 0 if nowhere."""
        return self._files["gene_medians.bin"].touch_all()

    @property
    def layout(self) -> str:
        """`plain` or `packed`."""
        return self._manifest.layout

    @property
    def rank_digest(self) -> str | None:
        """Of the medians behind the rank view (`store_format.rank_digest`); None without one."""
        return self._manifest.rank_digest

    def take(
        self,
        rows: Sequence[int] | Array,
        *,
        obs: Sequence[str] = (),
        buffers: BatchBuffers | None = None,
    ) -> CellBatch:
        """Return some cells.

        Args:
            rows: integers [n] from 0 to len - 1, in any order; may repeat.
            obs: columns of obs to bring along.
            buffers: memory for the result, which holds until the buffers are used again; by
                default every batch has memory of its own.

        Returns:
            The cells in the order of `rows`; counts always of `count_dtype`.

        Raises:
            RowError: a row is outside the store.
            UsageError: rows are not integers.
            UnknownNameError: there is no such obs column.
            CorruptStoreError: a touched chunk is damaged.
        """
        cells = integer_rows(rows)
        memory = BatchBuffers() if buffers is None else buffers
        starts, indptr = self._locate(cells, memory, self._offsets, self.num_entries)
        size = int(indptr[-1])
        genes = memory.array("genes", size, self._gene_dtype)
        counts = memory.array("counts", size, self._count_dtype)
        if self._packed:
            self._unpack(cells, memory, indptr, (genes, counts))
        else:
            self._copy("genes.bin", starts, indptr, genes)
            self._copy(self._manifest.value_file or "", starts, indptr, counts)
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
            obs={name: self.obs.take(name, cells) for name in obs},
        )

    def take_ranked(
        self, rows: Sequence[int] | Array, *, buffers: BatchBuffers | None = None
    ) -> tuple[Array, Array]:
        """Return the genes of some cells in descending order of count / median.

        Args:
            rows: as in `take`.
            buffers: as in `take`.

        Returns:
            indptr int64 [n + 1], and gene positions [nnz]: those without a median come last.

        Raises:
            UnknownNameError: the store has no rank view.
        """
        if self._manifest.rank_digest is None:
            raise UnknownNameError(
                f"{self.path} has no rank view. Convert it with a table of medians (--rank-medians)."
            )
        cells = integer_rows(rows)
        memory = BatchBuffers() if buffers is None else buffers
        starts, indptr = self._locate(cells, memory, self._offsets, self.num_entries)
        genes = memory.array("genes", int(indptr[-1]), self._gene_dtype)
        self._copy("rank_genes.bin", starts, indptr, genes)
        return indptr, genes

    def _locate(
        self, cells: Array, memory: BatchBuffers, file: MappedFile, limit: int
    ) -> tuple[Array, Array]:
        """Return where rows begin in a file of offsets, and their indptr; chunks are checked."""
        starts = memory.array(f"starts {file.path.name}", len(cells), np.int64)
        indptr = memory.array(f"indptr {file.path.name}", len(cells) + 1, np.int64)
        if not file.rows_seen(cells, self._pairs(len(cells))):
            inside = cells[(cells >= 0) & (cells < len(self))]
            file.touch(inside, inside + 2)
        limits = (len(self), limit)
        found = locate_rows(cells, file.array, limits, (starts, indptr))
        if found == OFFSETS_DAMAGED:
            raise damaged(file.path, "holds offsets that decrease or are out of range")
        if found != LOCATED:
            outside = cells[(cells < 0) | (cells >= len(self))][0]
            raise RowError(
                f"Row {outside} is outside {self.path}, which has {len(self)} cells "
                f"(rows 0 to {len(self) - 1}; negative rows are not allowed)."
            )
        return starts, indptr

    def _pairs(self, num_rows: int) -> Array:
        """Return an indptr of rows of two items each, as an offset and the next are one row."""
        if len(self._two_each) <= num_rows:
            self._two_each = 2 * np.arange(2 * num_rows + 1, dtype=np.int64)
        return self._two_each[: num_rows + 1]

    def _copy(self, name: str, starts: Array, indptr: Array, out: Array) -> None:
        file = self._files[name]
        if not file.rows_seen(starts, indptr):
            file.touch(starts, starts + np.diff(indptr))
        gather_rows(starts, indptr, file.array, out)

    def _unpack(
        self, cells: Array, memory: BatchBuffers, indptr: Array, out: tuple[Array, Array]
    ) -> None:
        file = self._files["packed.bin"]
        offsets = self._files["packed_offsets.bin"]
        begins, lengths = self._locate(cells, memory, offsets, file.size)
        if not file.rows_seen(begins, lengths):
            file.touch(begins, begins + np.diff(lengths))
        bad = unpack_rows(file.array, (begins, lengths, indptr), self.shape[1], out)
        if bad >= 0:
            raise damaged(file.path, f"does not decode at cell {cells[bad]}")

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
        step = _CHECK_ITEMS
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

        cells = np.arange(len(self)) if rows is None else integer_rows(rows)
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
        self._all_offsets()
        _ = self.genes
        self.obs.to_pandas()
        verify_content(self, self._files)
        present = {each.name for each in self._folder.iterdir()} if self._folder.exists() else set()
        return VerifyReport(
            generation=self.generation,
            num_files=len(manifest.files) + 2,
            num_bytes=self.num_bytes + len(manifest.to_bytes()),
            num_chunks=len(self._checksums),
            extra_files=tuple(sorted(present - set(manifest.files) - {MANIFEST_NAME})),
        )

    def blocks(self, max_entries: int = 4 * 1024 * 1024) -> Iterator[CellBatch]:
        """Yield all cells in order, in blocks of bounded size.

        Args:
            max_entries: of a block (a larger cell is a block of its own).
        """
        offsets = self._all_offsets()
        begin = 0
        while begin < len(self):
            limit = int(offsets[begin]) + max_entries
            fitting = int(np.searchsorted(offsets, limit, side="right")) - 1
            end = min(max(fitting, begin + 1), len(self))
            yield self.take(np.arange(begin, end))
            begin = end


def integer_rows(rows: Sequence[int] | Array) -> Array:
    """Return rows as int64 [n] of their own memory.

    Args:
        rows: integers [n].

    Raises:
        UsageError: they are not a list of integers.
    """
    given = np.asarray(rows)
    if given.ndim != 1 or (given.dtype.kind not in "iu" and len(given)):
        raise UsageError(
            f"Rows must be a one-dimensional array of integers, not {given.dtype} of "
            f"{given.ndim} dimensions. Turn a mask into rows with numpy.flatnonzero."
        )
    return np.array(given, dtype=np.int64)


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
