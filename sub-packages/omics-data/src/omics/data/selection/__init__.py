"""Choosing informative cells: at random, evenly over groups, by geometry, or by quality.

- Every method gives rows of a store, which `Loader(rows=...)` takes; a `SelectionTable` keeps them
  with how they were found.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omics.data.selection.cell_embedding import principal_components, read_embedding
    from omics.data.selection.farthest_first import farthest_first_rows
    from omics.data.selection.geometric_sketch import geometric_sketch_rows
    from omics.data.selection.group_quotas import (
        equal_per_group_rows,
        label_balanced_rows,
        random_rows,
    )
    from omics.data.selection.selecting import select_cells
    from omics.data.selection.selection_table import SelectionTable, load_selection

__all__ = ["SelectionTable", "equal_per_group_rows", "farthest_first_rows", "geometric_sketch_rows", "label_balanced_rows", "load_selection", "principal_components", "random_rows", "read_embedding", "select_cells"]  # fmt: skip

_MODULES = {"SelectionTable": "selection_table", "equal_per_group_rows": "group_quotas", "farthest_first_rows": "farthest_first", "geometric_sketch_rows": "geometric_sketch", "label_balanced_rows": "group_quotas", "load_selection": "selection_table", "principal_components": "cell_embedding", "random_rows": "group_quotas", "read_embedding": "cell_embedding", "select_cells": "selecting"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"omics.data.selection.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'omics.data.selection' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
