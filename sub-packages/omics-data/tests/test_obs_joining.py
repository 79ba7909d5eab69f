"""Columns of several cell tables: types kept, missing values missing, mixed kinds told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from omics.data.converting.obs_joining import join_frames


def joined(*columns, rows=2):
    """Join one column `c` of several tables; None stands for a table without it."""
    frames = [
        pd.DataFrame(index=["r"] * rows) if each is None else pd.DataFrame({"c": each})
        for each in columns
    ]
    frame, notes = join_frames(frames)
    return frame["c"], notes


def values(column):
    return [None if gone else value for value, gone in zip(column, column.isna(), strict=True)]


@pytest.mark.parametrize(
    ("parts", "dtype", "expected"),
    [
        ([[1, 2], [3]], "int64", [1, 2, 3]),
        ([[1, 2], None], "Int64", [1, 2, None, None]),
        ([np.array([1], np.uint8), np.array([300], np.int16)], "int16", [1, 300]),
        ([np.array([2**63 - 1], np.uint64), [-1]], "int64", [2**63 - 1, -1]),
        ([[1], [0.5]], "float64", [1.0, 0.5]),
        ([np.array([1], np.float32), None], "float32", [1.0, None, None]),
        ([[True], None], "boolean", [True, None, None]),
        ([[True], [False]], "bool", [True, False]),
        ([pd.array([2**62 + 1, None], dtype="Int64"), [3]], "Int64", [2**62 + 1, None, 3]),
        ([["a"], None], "object", ["a", None, None]),
        ([["a", None], ["b"]], "object", ["a", None, "b"]),
        ([pd.to_datetime(["2020-01-01"]), None], "datetime64[ns]", ["2020", None, None]),
        ([pd.Series([None, None], dtype=object), [1]], "Int64", [None, None, 1]),
    ],
)
def test_types_survive_and_missing_stays_missing(parts, dtype, expected):
    column, notes = joined(*parts)
    assert str(column.dtype) == dtype
    if dtype.startswith("datetime"):
        assert column.dt.year.tolist()[:1] == [2020]
        assert column.isna().tolist() == [False, True, True]
    else:
        assert values(column) == expected
    assert notes == ()


def test_categories_are_united_in_order_and_with_text():
    a = pd.Categorical(["x", None], categories=["y", "x"])
    b = pd.Categorical(["z"], categories=["z", "x"])
    column, _ = joined(a, b, ["w"], None)
    assert values(column) == ["x", None, "z", "w", None, None]
    assert column.cat.categories.tolist() == ["y", "x", "z", "w"]
    low_high = pd.CategoricalDtype(["low", "high"], ordered=True)
    ordered, _ = joined(
        pd.Categorical(["low"], dtype=low_high), pd.Categorical(["high"], dtype=low_high)
    )
    assert ordered.cat.ordered
    numbers, _ = joined(pd.Categorical([3, 1]), pd.Categorical([7]))
    assert numbers.tolist() == [3, 1, 7]
    assert numbers.cat.categories.dtype.kind == "i"
    plain, _ = joined(pd.Categorical([3, None]), [1])
    assert values(plain) == [3, None, 1]
    assert str(plain.dtype) == "Int64"


def test_kinds_that_do_not_mix_become_text_and_a_note_says_so():
    column, notes = joined(["a", None], [1, 2])
    assert values(column) == ["a", None, "1", "2"]
    assert notes == (
        "The obs column 'c' holds text and whole numbers in different sources: kept as text.",
    )


def test_names_and_the_order_of_columns_are_kept():
    a = pd.DataFrame({"p": [1]}, index=pd.Index(["c1"], name="barcode"))
    b = pd.DataFrame({"q": [2], "p": [3]}, index=pd.Index(["c1"], name="barcode"))
    frame, _ = join_frames([a, b])
    assert list(frame.columns) == ["p", "q"]
    assert frame.index.tolist() == ["c1", "c1"]
    assert frame.index.name == "barcode"
    assert join_frames([a, b.rename_axis("id")])[0].index.name is None
    assert join_frames([a])[0] is a
