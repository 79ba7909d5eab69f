"""Opening cells from whatever a command is given: a store folder, or any source of cells.

- A source becomes a temporary store that lives as long as the `with` block: commands have one way
  to read cells, and a source is checked for raw counts exactly as `omics-data convert` does.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from omics.data.storage.store_format import CURRENT_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omics.data.storage.store import CellStore


@contextlib.contextmanager
def open_cells(path: str | Path) -> Iterator[CellStore]:
    """Open a store, or convert a source into one for the time of the block.

    Args:
        path: a store folder, or what `omics.data.convert` reads.

    Yields:
        The store.

    Raises:
        MissingPathError: there is nothing at the path.
        InputDataError: the source holds no raw counts.
    """
    from omics.data.converting.conversion import convert
    from omics.data.storage.store import open_store

    if (Path(path) / CURRENT_NAME).exists():
        yield open_store(path)
        return
    with tempfile.TemporaryDirectory(prefix="omics-") as scratch:
        yield convert(path, Path(scratch) / "cells.store")
