"""Matrix Market text: equal to SciPy's reading to the last bit, and refused line by line."""

from __future__ import annotations

import gzip
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.errors import InputDataError, MissingPathError
from omics.data.sources import matrix_market
from omics.data.sources.matrix_market import is_matrix_market, read_entries, read_header

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "%%MatrixMarket matrix coordinate {} general\n"


def write(path: Path, body: str, *, field: str = "integer", packed: bool = False) -> Path:
    text = HEADER.format(field) + body
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


def entries(path: Path) -> list[tuple[int, int, float]]:
    found = [np.column_stack(batch) for batch in read_entries(path)]
    return [(int(r), int(c), float(v)) for r, c, v in np.concatenate(found or [np.empty((0, 3))])]


numbers = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(0, 10).map(lambda value: f"{value:.17f}"),
    st.floats(0, 1e6).map(lambda value: f"{value:.3e}"),
    st.sampled_from(["0", "-0", "1.", ".5", "+3", "1e0", "1E+22", "2e-22", "1e400", "5e-324"]),
)
spaces = st.sampled_from([" ", "\t", "  ", " \t"])
ends = st.sampled_from(["\n", "\r\n", " \n", "\n\n"])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7), numbers, spaces, ends), max_size=30),
    st.integers(1, 64),
    st.booleans(),
    st.booleans(),
)
def test_entries_are_those_that_scipy_reads(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[tuple[int, int, str, str, str]],
    block: int,
    packed: bool,
    open_end: bool,
) -> None:
    body = f"% a comment\n9 7 {len(lines)}\n"
    body += "".join(f"{r}{gap}{c}{gap}{value}{end}" for r, c, value, gap, end in lines)
    body = body.rstrip() if open_end and lines else body
    path = write(tmp_path_factory.mktemp("m") / "m.mtx", body, field="real", packed=packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_market, "TEXT_BLOCK", block)
        found = entries(path)
    assert found == [(r - 1, c - 1, float(value)) for r, c, value, _, _ in lines]
    # SciPy takes neither a plus sign nor what is too large for a float.
    kept = [line for line in lines if np.isfinite(float(line[2]))]
    text = "".join(f"{r} {c} {value.lstrip('+')}\n" for r, c, value, _, _ in kept)
    text = f"{HEADER.format('real')}9 7 {len(kept)}\n{text}"
    theirs = scipy.io.mmread(io.BytesIO(text.encode()), spmatrix=False)
    ours = [(r - 1, c - 1, float(value)) for r, c, value, _, _ in kept]
    assert list(zip(*theirs.coords, theirs.data, strict=True)) == ours


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix_market, "TEXT_BLOCK", 2000)
    path = write(tmp_path / "m.mtx", "2 2 1\n" + " " * 5000 + "1 1 1\n")
    with pytest.raises(InputDataError, match="a line of more than 1,024 characters"):
        list(read_entries(path))


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-Infinity"])
def test_what_is_no_finite_number_is_kept_for_the_checks_of_values(
    tmp_path: Path, value: str
) -> None:
    path = write(tmp_path / "m.mtx", f"1 1 1\n1 1 {value}\n", field="real")
    ((_, _, found),) = entries(path)
    np.testing.assert_array_equal(found, float(value))


def test_a_header_says_shape_entries_and_type(tmp_path: Path) -> None:
    path = write(tmp_path / "m.mtx", "%\n% metadata\n\n3 4 0\n")
    header = read_header(path)
    assert (header.shape, header.entries, header.dtype) == ((3, 4), 0, np.dtype("int64"))
    assert entries(path) == []
    assert is_matrix_market(path)
    assert not is_matrix_market(tmp_path)


def test_the_text_may_be_left_before_its_end(tmp_path: Path) -> None:
    body = "1000 1 1000\n" + "".join(f"{i} 1 2\n" for i in range(1, 1001))
    path = write(tmp_path / "m.mtx.gz", body, packed=True)
    found = sum(len(batch[0]) for batch in read_entries(path, limit=100))
    assert 0 < found < 300


BAD_LINES = [
    ("2 2 1\n0 1 5\n", r"entry 1 \('0 1 5'\) is outside the 2 rows and 2 columns"),
    ("2 2 1\n3 1 5\n", "is outside the 2 rows"),
    ("2 2 1\n1 3 5\n", "is outside the 2 rows"),
    ("2 2 1\n1 99999999999999999999 5\n", "is not `row column value`"),
    ("2 2 1\n-1 1 5\n", "is not `row column value`"),
    ("2 2 1\n1 1\n", "is not `row column value`"),
    ("2 2 1\n1 1 5 6\n", "is not `row column value`"),
    ("2 2 1\n1.5 1 5\n", "is not `row column value`"),
    ("2 2 2\n1 1 5\n% late\n", r"entry 2 \('% late'\) is not"),
    ("2 2 1\n1 1 " + "1" * 41 + "\n", "is not `row column value`"),
    ("2 2 1\n1 1 1.2.3\n", "a value between entries 1 and 1 is no number"),
    ("2 2 1\n1 1 1_0\n", "no number"),
    ("2 2 1\n1 1 0x10\n", "no number"),
    ("2 2 1\n1 1 five\n", "no number"),
    ("2 2 1\n1 1 5\n1 2 5\n", r"entry 2 \('1 2 5'\) comes after the 1 entries"),
    ("2 2 2\n1 1 5\n", "has 1 entries where its header declares 2"),
    ("2 2 2\n1 1 5\n2 2", "is not `row column value`"),
    ("2 2\n", "does not give rows, columns and entries"),
    ("2 2 5\n", "does not give rows, columns and entries"),
    ("-2 2 1\n", "does not give rows, columns and entries"),
    (f"{2**33} 2 1\n", "does not give rows, columns and entries"),
    ("", "ends before the line"),
    ("% only\n% comments\n", "ends before the line"),
]


@pytest.mark.parametrize(("body", "words"), BAD_LINES)
def test_bad_lines_are_refused_by_number(tmp_path: Path, body: str, words: str) -> None:
    path = write(tmp_path / "m.mtx", body, field="real")
    with pytest.raises(InputDataError, match=words) as raised:
        list(read_entries(path))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("%%MatrixMarket matrix coordinate pattern general\n", "'pattern' values, which are no"),
        ("%%MatrixMarket matrix coordinate complex general\n", "'complex' values"),
        ("%%MatrixMarket matrix coordinate real symmetric\n", "of the kind"),
        ("%%MatrixMarket matrix array real general\n", "of the kind"),
        ("%%MatrixMarket\n", "of the kind"),
        ("<!DOCTYPE html><html>\n", "looks like a web page"),
        ("gene\tcell\n", "a text file that begins 'gene cell'"),
        ("", "looks like an empty file"),
    ],
)
def test_other_files_are_named(tmp_path: Path, head: str, words: str) -> None:
    path = tmp_path / "m.mtx"
    path.write_text(head)
    with pytest.raises(InputDataError, match=words):
        read_header(path)


def test_a_gzip_file_cut_or_damaged_is_refused(tmp_path: Path) -> None:
    body = "900 900 900\n" + "".join(f"{i} {i} {i % 7}\n" for i in range(1, 901))
    path = write(tmp_path / "m.mtx.gz", body, packed=True)
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-3], data[:-8] + bytes(8)):
        path.write_bytes(damaged)
        with pytest.raises(InputDataError, match="cannot be unpacked"):
            list(read_entries(path))
    path.write_bytes(data[:5])
    with pytest.raises(InputDataError, match="it ends in the middle"):
        read_header(path)
    assert not is_matrix_market(path)
    with pytest.raises(MissingPathError, match="There is no file"):
        read_header(tmp_path / "gone.mtx")
