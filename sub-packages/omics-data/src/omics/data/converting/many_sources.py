"""`write_sources`: streams the cells of planned sources, one after the other, into one store.

- The next block is read, renumbered and coded while the present one is counted and written.
- About every `CHECKPOINT_ENTRIES` entries, and at the end of sources, what was written is made
  durable together with the place in the sources, so that a killed conversion goes on from there.
- The fingerprint of a source is taken once, at its first checkpoint or its end; a source that was
  continued after an interruption must have the same one at its end.
- Memory: two blocks, and what reading one takes (see `matrix_blocks`).
"""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from omics.data.converting.coded_stream import coded_stream
from omics.data.converting.read_ahead import read_ahead
from omics.data.errors import InputDataError
from omics.data.sources.registry import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omics.data.converting.coded_stream import StreamedBlock
    from omics.data.converting.conversion_plan import PlannedSource
    from omics.data.sources.protocol import Source, ValueStorage
    from omics.data.storage.store_writer import StoreWriter

CHECKPOINT_ENTRIES = 256_000_000
# Many small sources: their ends are not all worth a checkpoint, which waits for the disk.
CHECKPOINT_EVERY_S = 5.0


@dataclass(slots=True)
class _State:
    """How far the sources are written.

    Attributes:
        source: the one at hand.
        cell: how many of its cells are written.
        fingerprint: of the one at hand, if it has been taken.
        seen: the sum of its values read so far.
        kept: the sum of those written so far.
        records: what is known about the finished ones.
    """

    source: int = 0
    cell: int = 0
    fingerprint: dict[str, Any] | None = None
    seen: float = 0
    kept: float = 0
    records: list[dict[str, Any]] = field(default_factory=list)


def write_sources(
    sources: Sequence[PlannedSource],
    writer: StoreWriter,
    *,
    storage: ValueStorage,
    resumable: bool,
    on_progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Append the cells of planned sources.

    Args:
        sources: in the order of their cells.
        writer: opened for them; one that continues goes on where it stopped.
        storage: `counts` or `float`.
        resumable: make checkpoints.
        on_progress: called with the number of cells just written.

    Returns:
        For each source a record with its `fingerprint`, and the sums of its values `seen` and
        `kept` where genes are matched.

    Raises:
        InputDataError: a source is damaged, or changed since the plan was made.
    """
    stream = _Stream(storage, writer, resumable=resumable, on_progress=on_progress)
    state = stream.state
    if on_progress is not None and writer.num_cells:
        on_progress(writer.num_cells)
    while state.source < len(sources):
        stream.write(sources[state.source])
        if state.source < len(sources):
            stream.end_of_source()
    return state.records


class _Stream:
    """The cells on their way from the sources to the writer."""

    def __init__(
        self,
        storage: ValueStorage,
        writer: StoreWriter,
        *,
        resumable: bool,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self.storage = storage
        self.writer = writer
        self.resumable = resumable
        self.on_progress = on_progress
        self.state = _State(**writer.progress) if writer.progress else _State()
        self.entries_at_checkpoint = writer.num_entries
        self.time_of_checkpoint = time.monotonic()

    def write(self, planned: PlannedSource) -> None:
        """Append the cells of one source, from where the state is."""
        state = self.state
        with (
            open_source(planned.path, **planned.options) as file,
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="omics-digest") as digesting,
        ):
            _refuse_change(file, planned)
            # The files are read once more for their digest, beside the conversion.
            fingerprint = digesting.submit(file.fingerprint)
            matrix = file.matrix(planned.location)
            blocks = coded_stream(
                matrix,
                self.writer.coder,
                gene_map=planned.gene_map,
                storage=self.storage,
                first_cell=state.cell,
                scratch=self.writer.path,
            )
            with contextlib.closing(read_ahead(blocks, planned.path)) as ahead:
                for block in ahead:
                    self._append(block)
                    if self._due(CHECKPOINT_ENTRIES):
                        if state.fingerprint is None and planned.known is None:
                            state.fingerprint = fingerprint.result()
                        self._checkpoint()
            _refuse_change(file, planned)
            if state.cell != planned.num_cells:
                raise InputDataError(
                    f"{planned.path} gave {state.cell:,} cells where its table has "
                    f"{planned.num_cells:,}. It contradicts itself; write it again."
                )
            noted = state.fingerprint
            if noted is not None and planned.known is None and fingerprint.result() != noted:
                raise InputDataError(
                    f"{planned.path} is not the file any more that an interrupted conversion began "
                    "with. Convert it again from the beginning (--no-resume)."
                )
        record: dict[str, Any] = {"fingerprint": fingerprint.result()}
        if planned.known is not None:
            record = dict(planned.known)
        elif planned.gene_map is not None:
            record |= {"seen": state.seen, "kept": state.kept}
        state.records.append(record)
        state.source += 1
        state.cell, state.seen, state.kept, state.fingerprint = 0, 0, 0, None

    def _append(self, block: StreamedBlock) -> None:
        cells = block.coded.num_cells
        self.writer.append_coded(block.coded)
        self.state.cell += cells
        self.state.seen += block.seen
        self.state.kept += block.kept
        if self.on_progress is not None:
            self.on_progress(cells)

    def end_of_source(self) -> None:
        """Make a checkpoint if the last one is long ago."""
        waited = time.monotonic() - self.time_of_checkpoint
        if self._due(CHECKPOINT_ENTRIES) or (self.resumable and waited > CHECKPOINT_EVERY_S):
            self._checkpoint()

    def _due(self, entries: int) -> bool:
        written = self.writer.num_entries - self.entries_at_checkpoint
        return self.resumable and written >= entries

    def _checkpoint(self) -> None:
        self.writer.checkpoint(asdict(self.state))
        self.entries_at_checkpoint = self.writer.num_entries
        self.time_of_checkpoint = time.monotonic()


def _refuse_change(file: Source, planned: PlannedSource) -> None:
    if repr(file.stamp()) != planned.stamp:
        raise InputDataError(f"{planned.path} changed while it was read; convert it again.")
