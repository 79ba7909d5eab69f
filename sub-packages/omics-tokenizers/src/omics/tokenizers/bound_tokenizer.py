"""`CellTokenizer` and `BoundTokenizer`: what training and inference ask of any tokenizer of cells.

- A tokenizer belongs to a model; bound, it is fitted to the genes of one store: integers in,
  integers out. Whoever has cells and a bundle needs to know no more of it than this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data import CellBatch, GeneTable
    from omics.tokenizers.fields import FieldSpec, LabelSpec
    from omics.tokenizers.gene_lookup import GeneCoverage
    from omics.tokenizers.token_batch import TokenBatch
    from omics.tokenizers.vocabulary import Vocabulary

Array = np.ndarray[Any, np.dtype[Any]]


class BoundTokenizer(Protocol):
    """A tokenizer fitted to the genes of one store."""

    @property
    def coverage(self) -> GeneCoverage:
        """How well the store's genes are known."""
        ...

    @property
    def num_special(self) -> int:
        """Tokens of every cell that stand for no gene."""
        ...

    def measured_tokens(self) -> Array:
        """Return int64, sorted: the token ids of genes that the store measures at all."""
        ...

    def encode(self, batch: CellBatch) -> TokenBatch:
        """Return the flat tokens of a batch, with its labels and targets."""
        ...


class CellTokenizer(Protocol):
    """A tokenizer that reads cells."""

    kind: str

    @property
    def fields(self) -> list[FieldSpec]:
        """The fields of the TokenBatches it makes; the first is that of the genes."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the genes."""
        ...

    def bind(
        self,
        genes: GeneTable,
        *,
        labels: Sequence[LabelSpec] = (),
        gene_sums: Array | None = None,
    ) -> BoundTokenizer:
        """Return an encoder for the batches of one store."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        ...
