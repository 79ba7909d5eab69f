"""`bind_store`: what to read of a store and how to encode it, for any tokenizer of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omics.data.storage.store import CellStore
from omics.tokenizers.rank_value_tokenizer import BoundRankValueTokenizer, RankedCells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data.loading.cell_reader import CellReader
    from omics.data.storage.store_collection import StoreCollection
    from omics.data.transforms import Transform
    from omics.tokenizers.bound_tokenizer import BoundTokenizer, CellTokenizer
    from omics.tokenizers.fields import LabelSpec


def bind_store(
    tokenizer: CellTokenizer,
    store: CellStore | StoreCollection,
    *,
    labels: Sequence[LabelSpec] = (),
    transforms: Sequence[Transform] = (),
) -> tuple[CellReader, BoundTokenizer]:
    """Return what a loader reads, and the encoder of its batches.

    That is the store itself, or its rank view where a rank-value tokenizer needs no more than that:
    the view was made with the tokenizer's medians, and no transform looks at the counts.

    Args:
        tokenizer: of cells.
        store: of raw counts.
        labels: label columns to encode from `CellBatch.obs`.
        transforms: that the loader applies.

    Raises:
        InputDataError: too few genes in common.
    """
    bound = tokenizer.bind(store.genes, labels=labels, gene_sums=store.gene_sums())
    if (
        isinstance(bound, BoundRankValueTokenizer)
        and isinstance(store, CellStore)
        and not transforms
        and bound.fits_view(store)
    ):
        return RankedCells(store), bound.for_view()
    return store, bound
