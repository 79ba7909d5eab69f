"""Cells grouped by the values of an obs column: codes in the order of the values' text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]


def group_codes(store: CellStore, column: str) -> tuple[Array, tuple[str, ...]]:
    """Return which group each cell is of.

    Args:
        store: the store.
        column: of obs.

    Returns:
        int64 [n] codes, -1 where the value is missing, and the text of each group.

    Raises:
        UnknownNameError: there is no such column; the message names the nearest.
    """
    import pandas as pd

    values = store.obs[column]
    codes, distinct = pd.factorize(values, use_na_sentinel=True)
    # Values of several types (1 and "1") may have the same text: they are one group.
    texts = [str(value) for value in distinct.tolist()]
    names = sorted(set(texts))
    position = {name: place for place, name in enumerate(names)}
    renamed = np.array([*(position[text] for text in texts), -1], np.int64)
    return renamed[codes], tuple(names)
