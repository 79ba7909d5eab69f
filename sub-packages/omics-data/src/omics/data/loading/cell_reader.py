"""`CellReader`: what a loader needs of the thing it reads, be it one store or many as one.

- A protocol, not a base class: `CellStore` and a collection of stores both fit it as they are.
- Orders need less (`CellRows`), so that an order can be studied without any counts.
- What has members (a collection) says so with `member_ends`; what has none is one member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data.cell_batch import CellBatch
    from omics.data.genes import GeneTable
    from omics.data.storage.batch_buffers import BatchBuffers

Array = np.ndarray[Any, np.dtype[Any]]


class ObsColumns(Protocol):
    """The columns of the table of cells."""

    def __getitem__(self, name: str) -> Array:
        """Return [n] plain values of a column."""
        ...

    def codes(self, name: str) -> tuple[Array, Array]:
        """Return int32 [n] codes of a column, -1 for missing, and its categories [k]."""
        ...


class CellRows(Protocol):
    """Cells that have a number each, from 0, and columns."""

    def __len__(self) -> int:
        """Return the number of cells."""
        ...

    @property
    def obs(self) -> ObsColumns:
        """The table of cells."""
        ...


class CellReader(CellRows, Protocol):
    """Cells that can be read, by several threads at a time."""

    @property
    def digest(self) -> str:
        """A name of this very content: equal only for equal cells in equal order."""
        ...

    @property
    def genes(self) -> GeneTable:
        """The gene table."""
        ...

    @property
    def lengths(self) -> Array:
        """int64 [n], the number of entries of each cell."""
        ...

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        ...

    def take(
        self,
        rows: Sequence[int] | Array,
        *,
        obs: Sequence[str] = (),
        buffers: BatchBuffers | None = None,
    ) -> CellBatch:
        """Return the cells of some rows, in their order, with some columns of obs.

        Entries are read into `buffers` if given; rows and obs are always of memory of their own.
        """
        ...


def member_ends(cells: CellRows) -> Array:
    """Return where the members of a collection end.

    Args:
        cells: a collection, or one store, which is its own only member.

    Returns:
        int64 [k], the row after the last of each member.
    """
    ends = getattr(cells, "member_ends", None)
    return np.array([len(cells)], np.int64) if ends is None else np.asarray(ends, np.int64)
