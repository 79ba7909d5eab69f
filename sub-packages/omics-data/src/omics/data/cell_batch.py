"""`CellBatch`: some cells, ragged. The one object between the disk and the tokenizer.

- CSR: cell `i` owns the entries `indptr[i]:indptr[i + 1]`; nothing is padded or densified.
- `genes` are positions in the gene table of the store, never names.
- `fields` are further values per entry (say, log-normalised expression) that transforms add.
- `targets` is a row-aligned batch with its own genes: the full cell beside its sampled input.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    IntArray = np.ndarray[Any, np.dtype[Any]]
    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(slots=True)
class CellBatch:
    """A minibatch of `n` cells with `nnz` entries in all.

    Attributes:
        indptr: int64 [n + 1], where each cell begins.
        genes: unsigned [nnz], positions in the gene table; ascending within a cell as stored, in
            another order after a transform that orders or adds genes.
        counts: [nnz], unsigned integers (float32 for a non-count layer).
        rows: int64 [n], the cells' rows in their store.
        num_genes: the size of the gene table.
        fields: further values per entry, `{name: [nnz]}`.
        obs: values per cell, `{column: [n]}`.
        targets: None, or a batch of the same cells with entries of its own.
    """

    indptr: Array
    genes: Array
    counts: Array
    rows: Array
    num_genes: int
    fields: dict[str, Array] = field(default_factory=dict)
    obs: dict[str, Array] = field(default_factory=dict)
    targets: CellBatch | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        entries = len(self.genes)
        if len(self.indptr) != len(self.rows) + 1 or int(self.indptr[-1]) != entries:
            raise ValueError(
                f"indptr of length {len(self.indptr)} ending at {int(self.indptr[-1])} does not "
                f"describe {len(self.rows)} cells with {entries} entries."
            )
        for name, values in {"counts": self.counts, **self.fields}.items():
            if len(values) != entries:
                raise ValueError(f"{name} has {len(values)} values for {entries} entries.")
        for name, values in self.obs.items():
            if len(values) != len(self.rows):
                raise ValueError(f"obs[{name!r}] has {len(values)} for {len(self.rows)} cells.")
        if self.targets is not None and len(self.targets) != len(self):
            raise ValueError(f"targets hold {len(self.targets)} cells beside {len(self)}.")

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.rows)

    @property
    def lengths(self) -> Array:
        """int64 [n], the number of entries of each cell."""
        return np.diff(self.indptr)

    def cell_of_entry(self) -> Array:
        """Return int64 [nnz], the position in this batch of the cell that owns each entry."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def __getitem__(self, index: slice) -> CellBatch:
        """Return the cells of a contiguous slice; arrays are views."""
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError("A CellBatch is sliced with step 1; use CellStore.take for others.")
        stop = max(start, stop)
        begin, end = int(self.indptr[start]), int(self.indptr[stop])
        return CellBatch(
            indptr=self.indptr[start : stop + 1] - begin,
            genes=self.genes[begin:end],
            counts=self.counts[begin:end],
            rows=self.rows[start:stop],
            num_genes=self.num_genes,
            fields={name: values[begin:end] for name, values in self.fields.items()},
            obs={name: values[start:stop] for name, values in self.obs.items()},
            targets=None if self.targets is None else self.targets[start:stop],
        )

    def keep_entries(self, keep: Array) -> CellBatch:
        """Return the same cells with some of their entries.

        Args:
            keep: bool [nnz].

        Returns:
            A batch whose cells may be empty; `obs` and `targets` are shared.
        """
        kept = np.flatnonzero(keep)
        return replace(
            self,
            indptr=np.searchsorted(kept, self.indptr),
            genes=self.genes[kept],
            counts=self.counts[kept],
            fields={name: values[kept] for name, values in self.fields.items()},
        )

    def with_field(self, name: str, values: Array) -> CellBatch:
        """Return the batch with one more value per entry.

        Args:
            name: the field.
            values: [nnz].
        """
        return replace(self, fields={**self.fields, name: values})

    def with_targets(self, targets: CellBatch | None) -> CellBatch:
        """Return the batch with another target."""
        return replace(self, targets=targets)

    def to_csr(self, field_name: str | None = None) -> csr_matrix:
        """Return the values as a scipy matrix [n, num_genes].

        Args:
            field_name: a field; None takes the counts.
        """
        from scipy.sparse import csr_matrix

        values = self.counts if field_name is None else self.fields[field_name]
        indices = self.genes.astype(np.int64)
        return csr_matrix((values, indices, self.indptr), shape=(len(self), self.num_genes))
