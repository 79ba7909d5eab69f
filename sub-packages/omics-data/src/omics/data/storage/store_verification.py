"""The part of a full check that checksums cannot do: that the files of a store agree.

- Every cell is encoded once more, which checks its entries and gives sums, detection and medians
  anew; they are compared with the stored ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.storage.block_checks import BlockError
from omics.data.storage.block_encoding import PACKED_ESCAPE
from omics.data.storage.coded_blocks import BlockCoder
from omics.data.storage.gene_statistics import CountStatistics, collected_medians
from omics.data.storage.row_statistics import sums_by_cell
from omics.data.storage.store_format import COUNTS, ESCAPE, PACKED, damaged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from omics.data.cell_batch import CellBatch
    from omics.data.storage.mapped_file import MappedFile
    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]


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


def verify_content(store: CellStore, files: Mapping[str, MappedFile]) -> None:
    """Check that matrix, escapes, rank view and statistics of a store agree.

    Args:
        store: whose checksums have been checked.
        files: its files, by name.

    Raises:
        CorruptStoreError: they do not; the message names the file.
    """
    _verify_escapes(store, files)
    counting = store.value_kind == COUNTS
    statistics = CountStatistics(store.shape[1])
    coder = BlockCoder(store.shape[1], store.value_kind)
    detection = np.zeros(store.shape[1], np.int64)
    for batch in store.blocks():
        if counting:
            _count(batch, coder, statistics, files)
        else:
            _check_ascending(batch, files["genes.bin"])
            detection += np.bincount(batch.genes, minlength=len(detection))
            _compare("cell_sums.bin", files, sums_by_cell(batch.indptr, batch.counts), batch.rows)
        if store.rank_digest is not None:
            _check_ranks(store, batch, files)
    if counting:
        sums, detection, medians, unknown = statistics.finish()
        _compare("gene_sums.bin", files, sums)
    else:
        medians, unknown = np.zeros(store.shape[1]), detection > 0
    _compare("gene_detection.bin", files, detection)

    def entries() -> Iterator[tuple[Array, Array]]:
        for batch in store.blocks():
            yield batch.genes, batch.counts

    wanted = np.flatnonzero(unknown)
    medians[wanted] = collected_medians(wanted, detection, entries)
    _compare("gene_medians.bin", files, medians)


def _compare(
    name: str, files: Mapping[str, MappedFile], found: Array, rows: Array | None = None
) -> None:
    stored = files[name].array
    if (found != (stored if rows is None else stored[rows])).any():
        raise damaged(files[name].path, "does not fit the matrix")


def _count(
    batch: CellBatch,
    coder: BlockCoder,
    statistics: CountStatistics,
    files: Mapping[str, MappedFile],
) -> None:
    try:
        block = coder.code(batch.indptr, batch.genes, batch.counts)
    except BlockError as error:
        entry = error.entry or 0
        row = batch.rows[int(np.searchsorted(batch.indptr, entry, side="right")) - 1]
        file = files.get("genes.bin", files.get("packed.bin"))
        assert file is not None
        found = "a zero" if batch.counts[entry] == 0 else "genes out of order"
        raise damaged(file.path, f"holds {found} in cell {row}") from None
    statistics.add(block)
    _compare("cell_sums.bin", files, block.cell_sums, batch.rows)


def _check_ascending(batch: CellBatch, file: MappedFile) -> None:
    cells = batch.cell_of_entry()
    falling = (batch.genes[1:] <= batch.genes[:-1]) & (cells[1:] == cells[:-1])
    if falling.any():
        row = batch.rows[cells[1:][falling][0]]
        raise damaged(file.path, f"holds genes out of order in cell {row}")


def _check_ranks(store: CellStore, batch: CellBatch, files: Mapping[str, MappedFile]) -> None:
    indptr, ranked = store.take_ranked(batch.rows)
    cells = np.repeat(np.arange(len(batch)), np.diff(indptr))
    order = np.lexsort((ranked, cells))
    if (ranked[order] != batch.genes).any():
        raise damaged(files["rank_genes.bin"].path, "holds other genes than the matrix")


def _verify_escapes(store: CellStore, files: Mapping[str, MappedFile]) -> None:
    if "escape_counts.bin" not in files:
        return
    positions, large = files["escape_positions.bin"].array, files["escape_counts.bin"].array
    if (np.diff(positions) <= 0).any():
        raise damaged(files["escape_positions.bin"].path, "holds positions out of order")
    if store.layout == PACKED:
        if (large < PACKED_ESCAPE).any():
            raise damaged(files["escape_counts.bin"].path, "holds counts that need no escape")
        return
    codes = files["counts.bin"].array
    marked = int(np.count_nonzero(codes == ESCAPE))
    if marked != len(positions) or (codes[positions] != ESCAPE).any() or (large < ESCAPE).any():
        raise damaged(
            files["counts.bin"].path, f"has {marked} escapes for {len(positions)} positions"
        )
