"""Cell tables of several sources under one another, by the names of their columns (outer).

- A column keeps its type where all sources agree. Where some lack it, missing values stay missing:
  integers and flags become nullable, they never turn into floats.
- Categoricals are united; text beside categories becomes categories; whole numbers beside
  fractions become float64. Kinds that do not mix (text and numbers) become text, and a note says so.
- Memory: the joined table and one column of each source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

_INTEGERS, _FLOATS, _FLAGS, _TIMES, _TEXT = "whole numbers", "fractions", "flags", "times", "text"


def join_frames(frames: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return tables under one another.

    Args:
        frames: at least one; their indices hold the names of the rows.

    Returns:
        The table, with the columns in the order of first appearance, and one note for each column
        whose values had to be turned into text.
    """
    import pandas as pd

    if len(frames) == 1:
        return frames[0], ()
    lengths = [len(frame) for frame in frames]
    names = dict.fromkeys(name for frame in frames for name in frame.columns)
    notes: list[str] = []
    columns = {}
    for name in names:
        parts = [frame[name] if name in frame.columns else None for frame in frames]
        columns[name], mixed = join_column(parts, lengths)
        if mixed:
            notes.append(
                f"The obs column {name!r} holds {mixed} in different sources: kept as text."
            )
    index_names = {frame.index.name for frame in frames}
    index = pd.Index(
        np.concatenate([frame.index.to_numpy(dtype=object) for frame in frames]),
        dtype=object,
        name=index_names.pop() if len(index_names) == 1 else None,
    )
    return pd.DataFrame(columns, index=index), tuple(notes)


def join_column(parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> tuple[Any, str]:
    """Return one column of all sources.

    Args:
        parts: of each source; None where it lacks the column.
        lengths: rows of each source.

    Returns:
        [sum of lengths], a pandas array or numpy array; and, if kinds did not mix and became
        text, these kinds in words, else "".
    """
    # A column without any value has no kind that would have to fit the others.
    held = [
        part if part is not None and (not _kindless(part) or part.notna().any()) else None
        for part in parts
    ]
    found = [part for part in held if part is not None]
    if not found:
        held, found = list(parts), [part for part in parts if part is not None]
    kinds = {_kind(part) for part in found}
    coded = [part.dtype == "category" for part in found]
    if len(kinds) == 1 and (all(coded) or (any(coded) and kinds == {_TEXT})):
        return _join_categories(held, lengths), ""
    plain = [None if part is None else _plain(part) for part in held]
    if kinds <= {_INTEGERS, _FLOATS, _FLAGS}:
        return _join_numbers(plain, lengths, kinds=kinds), ""
    if kinds == {_TIMES} and len({str(part.dtype) for part in plain if part is not None}) == 1:
        return _join_times(plain, lengths), ""
    return _join_text(held, lengths), "" if kinds == {_TEXT} else " and ".join(sorted(kinds))


def _kindless(part: pd.Series[Any]) -> bool:
    return str(part.dtype) in {"object", "category"}


def _kind(part: pd.Series[Any]) -> str:
    dtype: Any = part.dtype
    if dtype == "category":
        dtype = dtype.categories.dtype
    kind = getattr(dtype, "kind", "O")
    known = {"b": _FLAGS, "i": _INTEGERS, "u": _INTEGERS, "f": _FLOATS, "M": _TIMES, "m": _TIMES}
    return known.get(kind, _TEXT)


def _plain(part: pd.Series[Any]) -> pd.Series[Any]:
    """Return the values of a categorical; other columns as they are."""
    if part.dtype != "category":
        return part
    missing = part.isna().any()
    dtype: Any = part.cat.categories.dtype
    if missing and dtype.kind in "iub":
        dtype = {"b": "boolean", "u": "UInt64"}.get(dtype.kind, "Int64")
    return part.astype(dtype)


def _empty_column(lengths: Sequence[int]) -> Array:
    column = np.empty(sum(lengths), object)
    column[:] = None
    return column


def _places(lengths: Sequence[int]) -> list[slice]:
    ends = np.cumsum(lengths).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def _join_text(parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> Array:
    column = _empty_column(lengths)
    for part, place in zip(parts, _places(lengths), strict=True):
        if part is not None:
            there = part.notna().to_numpy()
            values = column[place]
            values[there] = [str(value) for value in part[there]]
    return column


def _join_categories(parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> Any:
    import pandas as pd

    given = [
        part if part is None or part.dtype == "category" else part.astype("category")
        for part in parts
    ]
    tables = [part.cat.categories for part in given if part is not None]
    same = all(table.equals(tables[0]) for table in tables)
    if same:
        categories = tables[0]
    else:
        together = dict.fromkeys(value for table in tables for value in table)
        text = any(_kind(part) == _TEXT for part in given if part is not None)
        categories = pd.Index(list(together), dtype=object if text else None)
    every = same and all(part.cat.ordered for part in given if part is not None)
    codes = np.full(sum(lengths), -1, np.int32)
    for part, place in zip(given, _places(lengths), strict=True):
        if part is not None:
            known = np.append(categories.get_indexer(part.cat.categories), -1)
            codes[place] = known[part.cat.codes.to_numpy()]
    return pd.Categorical.from_codes(codes, categories, ordered=every)


def _join_times(parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int]) -> Any:
    import pandas as pd

    dtype = next(part.dtype for part in parts if part is not None)
    pieces = [
        pd.Series(pd.NaT, index=range(length)).astype(dtype) if part is None else part
        for part, length in zip(parts, lengths, strict=True)
    ]
    return pd.concat(pieces, ignore_index=True).array


def _join_numbers(
    parts: Sequence[pd.Series[Any] | None], lengths: Sequence[int], *, kinds: set[str]
) -> Any:
    import pandas as pd

    given: list[Any] = [part.dtype for part in parts if part is not None]
    dtypes = [np.dtype(getattr(each, "numpy_dtype", each)) for each in given]
    nullable = any(part is None or not isinstance(part.dtype, np.dtype) for part in parts)
    common = np.result_type(*dtypes)
    if _FLOATS not in kinds and common.kind == "f":  # Signed beside unsigned of 64 bits.
        common = np.dtype(np.int64) if _fit_signed(parts) else common
    values = np.zeros(sum(lengths), common)
    missing = np.ones(sum(lengths), np.bool_)
    for part, place in zip(parts, _places(lengths), strict=True):
        if part is not None:
            gone = part.isna().to_numpy()
            missing[place] = gone
            values[place][~gone] = part[~gone].to_numpy(dtype=common)
    if common.kind == "f":
        values[missing] = np.nan
        return values
    if not nullable and not missing.any():
        return values
    masked = pd.arrays.BooleanArray if common.kind == "b" else pd.arrays.IntegerArray
    return masked(values, missing)


def _fit_signed(parts: Sequence[pd.Series[Any] | None]) -> bool:
    limit = np.iinfo(np.int64).max
    return all(part is None or not len(part.dropna()) or int(part.max()) <= limit for part in parts)
