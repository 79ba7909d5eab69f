"""A frame goes into Parquet and comes back as it was."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.errors import InputDataError, UnknownNameError
from omics.data.storage.frame_file import FrameTable, write_frame


class _File:
    """Stands in for the checked file of a store."""

    def __init__(self, path):
        self.path = path

    def reader(self):
        return io.BytesIO(self.path.read_bytes())


def _open(path, num_rows):
    return FrameTable(_File(path), num_rows)


def _round_trip(frame, path):
    write_frame(frame, path, "obs")
    return _open(path, len(frame))


COLUMNS = {
    "text": ["a", "", "é\n"],
    "missing_text": ["a", None, "b"],
    "nothing": [None, None, None],
    "bool": [True, False, True],
    "missing_bool": pd.array([True, None, False], dtype="boolean"),
    "int8": np.array([-128, 0, 127], np.int8),
    "uint64": np.array([0, 1, 2**64 - 1], np.uint64),
    "int64": np.array([-(2**63), 0, 2**63 - 1]),
    "missing_int": pd.array([1, None, 2**60 + 1], dtype="Int64"),
    "float32": np.array([0.1, np.nan, -np.inf], np.float32),
    "float64": [0.1, np.nan, 1e300],
    "missing_float": pd.array([0.5, None, 1.5], dtype="Float64"),
    "string": pd.array(["a", None, "b"], dtype="string"),
    "time": pd.to_datetime(["2020-01-01", None, "2021-06-05 04:03:02.123456789"], format="ISO8601"),
    "zoned": pd.to_datetime(["2020-01-01", None, "2021-06-05"]).tz_localize("Asia/Tokyo"),
    "duration": pd.to_timedelta([1, None, 3], unit="s"),
    "category": pd.Categorical(["b", "a", "b"]),
    "unused": pd.Categorical(["b", "a", "b"], categories=["z", "b", "y", "a"]),
    "ordered": pd.Categorical(["b", "a", "b"], categories=["b", "z", "a"], ordered=True),
    "missing_category": pd.Categorical(["b", None, "b"], categories=["b", "a"]),
    "no_category": pd.Categorical([None, None, None], categories=np.array([], dtype=object)),
    "only_unused": pd.Categorical([None, None, None], categories=["q"]),
    "int_category": pd.Categorical([3, 1, 3], categories=[5, 3, 1]),
    "missing_int_category": pd.Categorical([3, None, 3], categories=[5, 3, 1], ordered=True),
    "uint8_category": pd.Categorical.from_codes([0, 1, -1], np.array([255, 0], np.uint8)),
    "float_category": pd.Categorical([0.1, 2.0, None]),
    "bool_category": pd.Categorical([True, None, True], categories=[True, False]),
    "string_category": pd.Categorical(["a", None, "b"], pd.Index(["b", "c", "a"], dtype="string")),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_every_kind_of_column_comes_back(name, tmp_path):
    frame = pd.DataFrame({"x": [1, 2, 3], name: COLUMNS[name]}, index=["r1", "r2", "r3"])
    table = _round_trip(frame, tmp_path / "t.parquet")
    back = table.to_pandas()
    assert back[name].dtype == frame[name].dtype
    pd.testing.assert_frame_equal(back, frame, check_exact=True)
    values = table[name]
    missing = np.asarray(frame[name].isna())
    assert np.asarray(pd.isna(values)).tolist() == missing.tolist()
    expected = frame[name].to_numpy(dtype=object, na_value=None)
    same = [pd.Timestamp(v, tz="UTC") if name == "zoned" else v for v in values[~missing]]
    assert same == [
        value.tz_convert("UTC") if name == "zoned" else value for value in expected[~missing]
    ]


@pytest.mark.parametrize("name", COLUMNS)
def test_every_kind_of_column_may_be_empty(name, tmp_path):
    frame = pd.DataFrame({name: COLUMNS[name]}, index=["r1", "r2", "r3"]).iloc[:0]
    table = _round_trip(frame, tmp_path / "t.parquet")
    # The index of no rows has a type of its own in each pandas version.
    pd.testing.assert_frame_equal(table.to_pandas(), frame, check_index_type=False)
    assert len(table[name]) == 0
    assert len(table.names) == 0


def test_plain_values_have_plain_types(tmp_path):
    frame = pd.DataFrame(COLUMNS, index=["r1", "r2", "r3"])
    table = _round_trip(frame, tmp_path / "t.parquet")
    assert table.columns == tuple(COLUMNS)
    assert "text" in table
    assert "txt" not in table
    types = {name: table[name].dtype for name in COLUMNS}
    assert types["bool"] == np.bool_
    assert types["int8"] == np.int8
    assert types["float32"] == np.float32
    assert types["int_category"] == np.int64
    assert types["float_category"] == np.float64
    assert types["time"] == np.dtype("<M8[ns]")
    for name in ("text", "missing_text", "missing_int", "missing_bool", "category", "string"):
        assert types[name] == np.dtype(object)
    assert table["missing_text"].tolist() == ["a", None, "b"]
    assert table["missing_int"].tolist() == [1, None, 2**60 + 1]
    assert table["missing_category"].tolist() == ["b", None, "b"]
    assert table["missing_int_category"].tolist() == [3, None, 3]


def test_columns_are_cached_and_read_only(tmp_path):
    frame = pd.DataFrame({"a": [1, 2]}, index=["x", "y"])
    table = _round_trip(frame, tmp_path / "t.parquet")
    assert table["a"] is table["a"]
    with pytest.raises(ValueError, match="read-only"):
        table["a"][0] = 5


def test_index_and_its_name_come_back(tmp_path):
    frame = pd.DataFrame({"a": [1, 2]}, index=pd.Index(["x", "x"], name="barcode"))
    table = _round_trip(frame, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(table.to_pandas(), frame)
    assert table.names.tolist() == ["x", "x"]


def test_numbers_in_the_index_become_strings(tmp_path):
    table = _round_trip(pd.DataFrame({"a": [1, 2]}), tmp_path / "t.parquet")
    assert table.names.tolist() == ["0", "1"]


def test_many_columns_and_rows_come_back(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"c{i}": rng.random(3000) for i in range(150)})
    frame["label"] = pd.Categorical(rng.choice([f"type {i}" for i in range(2000)], 3000))
    frame.index = [f"cell{row}" for row in range(3000)]
    table = _round_trip(frame, tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(table.to_pandas(), frame)
    assert table["label"].tolist() == frame["label"].tolist()


@given(
    st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]))), max_size=8),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4, unique=True),
    st.data(),
)
def test_any_text_and_any_integer_categories_come_back(tmp_path_factory, texts, numbers, data):
    codes = data.draw(
        st.lists(st.integers(-1, len(numbers) - 1), min_size=len(texts), max_size=len(texts))
    )
    frame = pd.DataFrame(
        {
            "text": np.array([*texts, None], dtype=object)[:-1],
            "number": pd.Categorical.from_codes(codes, numbers),
        },
        index=[str(row) for row in range(len(texts))],
    )
    path = tmp_path_factory.mktemp("frames") / "t.parquet"
    table = _round_trip(frame, path)
    pd.testing.assert_frame_equal(table.to_pandas(), frame)
    assert table["text"].tolist() == texts


def test_unknown_column_names_the_nearest(tmp_path):
    frame = pd.DataFrame({"cell_type": ["a"]}, index=["x"])
    table = _round_trip(frame, tmp_path / "t.parquet")
    with pytest.raises(UnknownNameError, match=r"no column 'celltype'\. Did you mean 'cell_type'"):
        table["celltype"]


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        (pd.DataFrame({"_index": [1]}), "'_index', which is reserved"),
        (pd.DataFrame({3: [1]}), "named 3"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns named 'a'"),
        (pd.DataFrame({"a": [1]}, index=[None]), "missing"),
        (pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_tuples([("x", "y")])), "MultiIndex"),
        (pd.DataFrame({"a": ["x", 1]}), "a cannot be kept|column a"),
        (pd.DataFrame({"a": [1 + 2j]}), "cannot be kept"),
        (pd.DataFrame({"a": [[1, 2]]}), "'a' of obs cannot be kept"),
        (pd.DataFrame({"a": [b"x"]}), "'a' of obs cannot be kept"),
        (pd.DataFrame({"a": pd.Series(["\ud800"], dtype=object)}), "cannot be kept"),
        (pd.DataFrame({"a": pd.Categorical([1, "x"])}), r"'a' of obs are of type object \(or mix"),
        (pd.DataFrame({"a": pd.Categorical([np.inf])}), "finite"),
        (pd.DataFrame({"a": pd.Categorical(pd.to_datetime(["2020-01-01"]))}), "datetime64"),
    ],
)
def test_what_cannot_be_kept_exactly_is_refused(frame, found, tmp_path):
    with pytest.raises(InputDataError, match=found):
        write_frame(frame, tmp_path / "t.parquet", "obs")
    assert list(tmp_path.iterdir()) == []


def test_attributes_of_the_frame_are_left_out(tmp_path):
    frame = pd.DataFrame({"a": [1]}, index=["x"])
    frame.attrs["odd"] = object()
    assert _round_trip(frame, tmp_path / "t.parquet").to_pandas().attrs == {}


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, -(2**63)])
def test_large_integer_categories_survive_missing_values(tmp_path, number):
    column = pd.Categorical.from_codes([0, -1, 0], categories=[number])
    frame = pd.DataFrame({"number": column}, index=["a", "b", "c"])
    pd.testing.assert_frame_equal(_round_trip(frame, tmp_path / "t.parquet").to_pandas(), frame)


@pytest.mark.parametrize("name", COLUMNS)
def test_codes_number_the_values_of_every_kind_of_column(name, tmp_path):
    frame = pd.DataFrame({name: COLUMNS[name]}, index=["r1", "r2", "r3"])
    table = _round_trip(frame, tmp_path / "t.parquet")
    codes, values = table.codes(name)
    assert codes.dtype == np.int32
    plain = table[name]
    assert (codes < 0).tolist() == pd.isna(plain).tolist()
    present = codes >= 0
    assert values[codes[present]].tolist() == plain[present].tolist()
    if frame[name].dtype == "category":
        assert values.tolist() == frame[name].cat.categories.tolist()
    else:
        assert values.tolist() == sorted(set(plain[present].tolist()))
    assert table.codes(name)[0] is codes
    for array in (codes, values):
        with pytest.raises(ValueError, match="read-only"):
            array[:1] = array[:1]
    rows = np.array([2, 0, 0])
    taken = table.take(name, rows)
    assert taken.dtype == plain.dtype
    pd.testing.assert_series_equal(pd.Series(taken), pd.Series(plain[rows]))


@pytest.mark.parametrize("name", COLUMNS)
def test_codes_of_an_empty_column_are_empty(name, tmp_path):
    frame = pd.DataFrame({name: COLUMNS[name]}, index=["r1", "r2", "r3"]).iloc[:0]
    table = _round_trip(frame, tmp_path / "t.parquet")
    codes, values = table.codes(name)
    assert len(codes) == 0
    assert len(values) == (
        len(frame[name].cat.categories) if frame[name].dtype == "category" else 0
    )
    assert len(table.take(name, np.zeros(0, np.int64))) == 0


def test_codes_join_the_dictionaries_of_all_row_groups(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    written = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda *a, **o: written(*a, row_group_size=7, **o))
    labels = [f"type {(row * 37) % 90}" for row in range(300)]
    frame = pd.DataFrame({"text": labels, "kind": pd.Categorical(labels), "number": range(300)})
    frame.index = [f"cell{row}" for row in range(300)]
    table = _round_trip(frame, tmp_path / "t.parquet")
    for name in ("text", "kind", "number"):
        codes, values = table.codes(name)
        assert values[codes].tolist() == frame[name].tolist()
        assert values.tolist() == sorted(set(frame[name]))
    rows = np.array([299, 3, 3])
    assert table.take("text", rows).tolist() == [labels[row] for row in rows]
    assert table.take("number", rows).tolist() == rows.tolist()


def test_taking_text_makes_no_object_per_row(tmp_path):
    import tracemalloc

    num_rows = 200_000
    frame = pd.DataFrame({"kind": pd.Categorical(["a", "b"] * (num_rows // 2))})
    frame.index = [str(row) for row in range(num_rows)]
    table = _round_trip(frame, tmp_path / "t.parquet")
    table.take("kind", np.arange(3))
    tracemalloc.start()
    fresh = _open(tmp_path / "t.parquet", num_rows)
    assert fresh.take("kind", np.array([1, 0])).tolist() == ["b", "a"]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 5 * num_rows


def test_codes_of_an_unknown_column_name_the_nearest(tmp_path):
    table = _round_trip(pd.DataFrame({"cell_type": ["a"]}, index=["x"]), tmp_path / "t.parquet")
    for ask in (table.codes, lambda name: table.take(name, np.zeros(1, int))):
        with pytest.raises(UnknownNameError, match="Did you mean 'cell_type'"):
            ask("celltype")
