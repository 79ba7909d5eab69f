"""Opening cells from whatever a command is given: a store folder, or an `.h5ad` file.

- A file becomes a temporary store that lives as long as the `with` block: commands have one way
  to read cells, and a file is checked for raw counts exactly as `omics-data convert` does.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from omics.data.errors import MissingPathError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omics.data.store import CellStore


@contextlib.contextmanager
def open_cells(path: str | Path) -> Iterator[CellStore]:
    """Open a store, or convert a file into one for the time of the block.

    Args:
        path: a store folder, or a file that `omics.data.convert` reads.

    Yields:
        The store.

    Raises:
        MissingPathError: there is nothing at the path.
        InputDataError: the file holds no raw counts.
    """
    from omics.data.conversion import convert
    from omics.data.store import open_store

    path = Path(path)
    if not path.exists():
        raise MissingPathError(f"{path} does not exist; give a store folder or an .h5ad file.")
    if path.is_dir():
        yield open_store(path)
        return
    with tempfile.TemporaryDirectory(prefix="omics-") as scratch:
        yield convert(path, Path(scratch) / "cells.store")
