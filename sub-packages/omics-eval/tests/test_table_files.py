from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omics.data.errors import UsageError
from omics.eval.table_files import open_table, plain_text

SCHEMA = pa.schema([("cell", pa.string()), ("value", pa.float32()), ("count", pa.int64())])
STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# Formulas that spreadsheets run, in the ways people hide them.
PAYLOADS = [
    start + rest
    for start in STARTS
    for rest in ("1+1", "cmd|' /C calc'!A0", 'HYPERLINK("http://x","y")', "SUM(A1:A2)*cmd", "")
]


def part(first, n):
    values = np.arange(first, first + n)
    columns = [[f"c{i}" for i in values], (values / 7).astype(np.float32), values]
    return pa.table(columns, schema=SCHEMA)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_parts_become_one_table_with_exact_numbers(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    with open_table(path, SCHEMA) as file:
        file.write_table(part(0, 3))
        file.write_table(part(3, 0))
        file.write_table(part(3, 4))
        assert not path.exists()
    read = pd.read_parquet if suffix == ".parquet" else pd.read_csv
    found = read(path)
    assert found["cell"].tolist() == [f"c{i}" for i in range(7)]
    assert np.array_equal(found["value"].to_numpy(np.float32), (np.arange(7) / 7).astype("f4"))
    assert found["count"].tolist() == list(range(7))


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_without_rows_has_its_columns(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    with open_table(path, SCHEMA):
        pass
    read = pd.read_parquet if suffix == ".parquet" else pd.read_csv
    assert list(read(path).columns) == SCHEMA.names


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("mine")
    with pytest.raises(RuntimeError), open_table(path, SCHEMA) as file:  # noqa: PT012
        file.write_table(part(0, 2))
        raise RuntimeError
    assert path.read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]


def test_another_suffix_is_refused(tmp_path):
    with (
        pytest.raises(UsageError, match=r"it ends with '\.cvs'\. Did you mean '\.csv'"),
        open_table(tmp_path / "x.cvs", SCHEMA),
    ):
        pass


def test_no_payload_stays_a_formula_in_csv(tmp_path):
    schema = pa.schema([("cell", pa.string()), ("=kind", pa.dictionary(pa.int32(), pa.string()))])
    kinds = pa.array(PAYLOADS).dictionary_encode()
    with open_table(tmp_path / "t.csv", schema) as file:
        file.write_table(pa.table([PAYLOADS, kinds], schema=schema))
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["cell", "'=kind"]
    assert len(rows) == len(PAYLOADS) + 1 > 50
    for row, payload in zip(rows[1:], PAYLOADS, strict=True):
        assert row == ["'" + payload] * 2
    with open_table(tmp_path / "t.parquet", schema) as file:
        file.write_table(pa.table([PAYLOADS, kinds], schema=schema))
    assert pq.read_table(tmp_path / "t.parquet")["cell"].to_pylist() == PAYLOADS


def test_plain_names_and_missing_ones_stay_as_they_are():
    names = pa.array(["T cell", "a=b", "CD8+", 'x,"y"', None, "", "'quoted"])
    assert plain_text(names).to_pylist() == names.to_pylist()


def test_numbers_that_are_missing_are_empty(tmp_path):
    schema = pa.schema([("value", pa.float32()), ("n", pa.int64())])
    with open_table(tmp_path / "t.csv", schema) as file:
        file.write_table(pa.table([np.array([np.nan, -2, 1e-30], "f4"), [1, 2, 3]], schema=schema))
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines == ['"value","n"', ",1", "-2,2", "1e-30,3"]
