"""Which embeddings the model gave, and which are those of neighbours: a column of obs for each key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

Array = np.ndarray[Any, np.dtype[Any]]

# Where the embedding of a cell is from, by its number.
SOURCES = ("embedded", "neighbours", "none")
EMBEDDED, NEIGHBOURS, NONE = range(3)


def source_column(key_added: str) -> str:
    """Return the column of obs that says where each embedding of a key is from.

    Args:
        key_added: of obsm.
    """
    return f"{key_added}_source"


def neighbours_note(adata: AnnData, use_rep: str, rows: Array, what: str) -> list[str]:
    """Say how many cells have an embedding that the model did not give them, if there are any.

    Args:
        adata: with the embedding.
        use_rep: key of obsm.
        rows: of the cells that are spoken of.
        what: they are called, such as `test`.

    Returns:
        One sentence, or nothing.
    """
    column = source_column(use_rep)
    if column not in adata.obs:
        return []
    values = np.asarray(adata.obs[column].astype(object), dtype=object)[rows]
    number = int((values == SOURCES[NEIGHBOURS]).sum())
    if not number:
        return []
    note = (
        f"{number:,} of {len(rows):,} {what} cells have their {use_rep} from neighbours in a PCA of "
        "counts, not from the model: what is found there is partly what PCA finds."
    )
    return [note]
