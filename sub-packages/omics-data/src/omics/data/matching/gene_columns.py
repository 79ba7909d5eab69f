"""`joined_column`: one column of the common gene table out of the columns of its sources.

- Text of a gene is that of the first source which has it. A column of numbers or flags is mostly a
  statistic of one experiment: it is kept only where all sources that have a gene agree about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]


def joined_column(
    name: str, parts: list[tuple[Array, pd.Series[Any]]], num_genes: int
) -> tuple[pd.Series[Any] | None, str]:
    """Return a column of the common table.

    Args:
        name: of the column.
        parts: of each source that has it: positions in the common table, each once, and the values
            of these genes.
        num_genes: of the common table.

    Returns:
        The column [num_genes], or None if it is left out; and a sentence about what was done, if
        the sources differ.
    """
    parts = [part for part in parts if part[1].notna().any()] or parts[:1]
    kinds = sorted({_kind(values) for _, values in parts})
    if len(kinds) > 1:
        return None, f"The gene column {name!r} is left out: it holds {' and '.join(kinds)}."
    joined, held, differing = _first_values(parts, num_genes)
    if not differing:
        return _typed(joined, held, parts, kind=kinds[0]), ""
    found = f"The gene column {name!r} differs between sources for {differing:,} genes"
    if kinds != ["text"]:
        return None, f"{found}: it is left out."
    return _typed(joined, held, parts, kind="text"), f"{found}: the first is kept."


def _first_values(
    parts: list[tuple[Array, pd.Series[Any]]], num_genes: int
) -> tuple[Array, Array, int]:
    """Return the first value of every gene, where there is one, and how many later ones differ."""
    held = np.full(num_genes, False)
    joined = np.empty(num_genes, object)
    joined[:] = None
    differing = np.full(num_genes, False)
    for places, values in parts:
        there = ~values.isna().to_numpy()
        where, what = places[there], values.to_numpy(object)[there]
        old = held[where]
        differing[where[old]] |= (joined[where[old]] != what[old]).astype(np.bool_)
        joined[where[~old]] = what[~old]
        held[where] = True
    return joined, held, int(np.count_nonzero(differing))


def _typed(
    joined: Array, held: Array, parts: list[tuple[Array, pd.Series[Any]]], *, kind: str
) -> pd.Series[Any]:
    """Return a column of objects with the type of its parts, or one that can be missing."""
    import pandas as pd

    column: pd.Series[Any] = pd.Series(joined, dtype=object)
    dtypes: list[Any] = [values.dtype for _, values in parts]
    same = len(set(map(str, dtypes))) == 1
    if kind == "text":
        return column.astype("category") if same and dtypes[0] == "category" else column
    plain = [each.categories.dtype if each == "category" else each for each in dtypes]
    if same and (held.all() or plain[0].kind in "fmM"):
        return column.astype(plain[0])
    if kind == "flags":
        return column.astype("boolean")
    if kind == "times":
        return column.astype(plain[0])
    return column.astype("Int64" if all(each.kind in "iu" for each in plain) else "float64")


def _kind(values: pd.Series[Any]) -> str:
    """Return what a column holds, `text`, `numbers`, `flags` or `times`."""
    dtype = values.cat.categories.dtype if values.dtype == "category" else values.dtype
    known = {
        "b": "flags",
        "M": "times",
        "m": "times",
        "i": "numbers",
        "u": "numbers",
        "f": "numbers",
    }
    return known.get(getattr(dtype, "kind", "O"), "text")
