"""Orders by name, for configurations and for people in a hurry.

- `auto` is true random where the store fits in memory and block-shuffled where it does not: random
  reads cost next to nothing from memory and everything from a disk.
- `auto` is decided on one machine, so ranks that share an epoch have to name an order.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from omics.data.errors import UnknownNameError, nearest
from omics.data.loading.group_orders import ClassBalanced, Mixed
from omics.data.loading.row_order import BlockShuffled, RowOrder, Sequential, Shuffled
from omics.data.loading.weighted_order import Weighted

if TYPE_CHECKING:
    from omics.data.loading.cell_reader import CellReader

AUTO = "auto"

_PLAIN: dict[str, type[Sequential | Shuffled | BlockShuffled | Mixed]] = {
    each.name: each for each in (Sequential, Shuffled, BlockShuffled, Mixed)
}
_OF_COLUMN: dict[str, type[Weighted | ClassBalanced]] = {
    each.name: each for each in (Weighted, ClassBalanced)
}
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_SHARE_OF_MEMORY = 0.5


def order_names() -> tuple[str, ...]:
    """Return the names that `named_order` and `Loader(order=...)` take.

    Returns:
        `auto`, the plain names, and those that need an obs column as `NAME:COLUMN`.
    """
    return (AUTO, *_PLAIN, *(f"{name}:COLUMN" for name in _OF_COLUMN))


def named_order(name: str, cells: CellReader) -> RowOrder:
    """Return an order by its name, with its default parameters.

    Args:
        name: one of `order_names`, such as `random` or `class_balanced:cell_type`.
        cells: whose size decides what `auto` is.

    Raises:
        UnknownNameError: there is no such order; the message names the nearest.
    """
    if name == AUTO:
        return auto_orders()[0 if fits_in_memory(cells.num_bytes) else 1]
    kind, colon, column = name.partition(":")
    if kind in _OF_COLUMN and column:
        return _OF_COLUMN[kind](column)
    if kind in _PLAIN and not colon:
        return _PLAIN[kind]()
    raise UnknownNameError(f"There is no order {name!r}.{nearest(name, order_names())}")


def auto_orders() -> tuple[RowOrder, RowOrder]:
    """Return what `auto` is for stores that fit in memory, and for those that do not."""
    return Shuffled(), BlockShuffled()


def fits_in_memory(num_bytes: int) -> bool:
    """Return whether files of this size can be expected to stay in the page cache.

    Args:
        num_bytes: of the store.

    Returns:
        Whether they fill at most half of the memory of this machine (or of its container).
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # No limit: no such file, or it says `max`.
        memory = min(memory, int(_MEMORY_LIMIT.read_text()))
    return num_bytes <= _SHARE_OF_MEMORY * memory
