"""Whatever values, structure, names and columns a file holds: a faithful store, or a clear refusal.

The files are written by h5py as foreign programs might write them; scipy, numpy and AnnData say
what is in them.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from omics.data import check_file, convert, open_store, synthesize
from omics.data.errors import InputDataError, OmicsError
from omics.data.sources import guarded_reading
from omics.data.sources.source_h5ad import open_h5ad

NUMBERS = ["?", "i1", "u1", "i2", ">i2", "u2", "i4", ">i4", "u4", "i8", ">i8", "u8", "f2", "f4"]
NUMBERS += [">f4", "f8", ">f8"]
SPECIAL = [np.nan, np.inf, -np.inf, -1, -(2**31), -0.0, 0.5, 1e-30, 254, 255, 256, 65_535, 65_536]
SPECIAL += [2**24 + 1, 2**31, 2**32 - 1, 2**32, 2**33 + 1, 2**53, 2**63, 1e300]
MAX_COUNT = 2**32 - 1


def table(handle: h5py.File, name: str, index: Any, columns: dict[str, Any] | None = None) -> None:
    """Write a table of AnnData with an index and plain columns."""
    group = handle.create_group(name)
    group.attrs.update(
        {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    )
    group.attrs["column-order"] = np.array(list(columns or {}), h5py.string_dtype())
    for key, values in {"_index": index, **(columns or {})}.items():
        dataset = group.create_dataset(key, data=values)
        kind = "string-array" if dataset.dtype.kind == "O" else "array"
        dataset.attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})


def write_h5ad(
    path: Path,
    matrix: Any,
    *,
    encoding: str = "csr",
    shape: tuple[int, int] | None = None,
    obs_names: Any = None,
    var_names: Any = None,
    obs: dict[str, Any] | None = None,
) -> Path:
    """Write an .h5ad file as it stands, sound or not; `matrix` is an array or its three parts."""
    rows, columns = shape or matrix.shape
    with h5py.File(path, "w") as handle:
        if encoding == "dense":
            handle["X"] = matrix
        else:
            group = handle.create_group("X")
            group.attrs.update({"encoding-type": f"{encoding}_matrix", "shape": [rows, columns]})
            for name, values in matrix.items():
                group[name] = values
        cells = [f"cell {row}" for row in range(rows)] if obs_names is None else obs_names
        genes = [f"gene {column}" for column in range(columns)] if var_names is None else var_names
        table(handle, "obs", cells, obs)
        table(handle, "var", genes)
    return path


def parts_of(dense: Any, encoding: str, also: tuple[int, int]) -> Any:
    """Return a matrix as it is stored; one more place is stored even if its value is zero."""
    if encoding == "dense":
        return dense
    filled = dense != 0
    filled[also] = True
    turned = encoding == "csc"
    major, minor = np.nonzero(filled.T if turned else filled)
    values = (dense.T if turned else dense)[major, minor]
    lengths = np.bincount(major, minlength=dense.shape[1 if turned else 0])
    return {"data": values, "indices": minor, "indptr": np.concatenate([[0], np.cumsum(lengths)])}


def stored_counts(path: Path) -> Any:
    store = open_store(path)
    store.verify()
    return store.take(np.arange(len(store))).to_csr()


def refusal(path: Path, **options: Any) -> str:
    """Convert a file that must be refused; nothing may be left of the attempt."""
    target = path.with_suffix(".store")
    with pytest.raises(InputDataError) as raised:
        convert(path, target, **options)
    assert not target.exists()
    assert path.name in str(raised.value) or "in the source" in str(raised.value)
    return str(raised.value)


# --- values --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(
    dtype=st.sampled_from(NUMBERS),
    encoding=st.sampled_from(["csr", "csc", "dense"]),
    special=st.sampled_from(SPECIAL),
    place=st.tuples(st.integers(0, 5), st.integers(0, 3)),
)
def test_a_value_arrives_exactly_or_is_named_with_its_place(
    dtype: str, encoding: str, special: float, place: tuple[int, int]
) -> None:
    dense = np.tile(np.array([[1, 0, 2, 1]]), (6, 1)).astype(dtype)
    with np.errstate(all="ignore"):
        # What a program of this type would have written for the number.
        try:
            value = np.array([special]).astype(dtype)[0]
        except OverflowError:
            return
    dense[place] = value
    stored = parts_of(dense, encoding, place)
    good = bool(np.isfinite(value)) and value == np.floor(value) and 0 <= value <= MAX_COUNT
    with tempfile.TemporaryDirectory() as folder:
        path = write_h5ad(Path(folder) / "a.h5ad", stored, encoding=encoding, shape=(6, 4))
        if good:
            convert(path, Path(folder) / "s", location="X")
            found = stored_counts(Path(folder) / "s")
            assert (found.data != 0).all()
            np.testing.assert_array_equal(found.toarray(), dense.astype(np.int64))
        else:
            # The sample refuses what it meets in general words; the stream names the place.
            with open_h5ad(path) as source, pytest.raises(InputDataError) as raised:
                list(source.matrix("X").blocks())
            assert f"row {place[0]}, column {place[1]}" in str(raised.value)
            refusal(path, location="X")


@pytest.mark.parametrize("encoding", ["csr", "dense"])
@pytest.mark.parametrize(
    "values",
    [np.array([1 + 2j, 3]), np.array([b"1", b"2"]), np.array([(1, 2), (3, 4)], dtype="i4,i4")],
    ids=["complex", "text", "records"],
)
def test_values_that_are_no_numbers_are_refused(values: Any, encoding: str, tmp_path: Path) -> None:
    parts = {"data": values, "indices": [0, 0], "indptr": [0, 1, 2]}
    matrix = parts if encoding == "csr" else values[:, None]
    path = write_h5ad(tmp_path / "a.h5ad", matrix, encoding=encoding, shape=(2, 1))
    assert re.search(r"not numbers|cannot be read|type", refusal(path, location="X"))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_floats_are_kept_as_float32_or_refused_when_they_do_not_fit(
    dtype: str, tmp_path: Path
) -> None:
    values = np.array([[0.1, 0.0], [-2.5, 6e4]]).astype(dtype)
    path = write_h5ad(tmp_path / "a.h5ad", values, encoding="dense")
    store = convert(path, tmp_path / "s", location="X", allow_non_counts=True)
    found = store.take([0, 1]).to_csr().toarray()
    np.testing.assert_array_equal(found, values.astype(np.float32))
    if dtype == "f8":
        values[1, 1] = 1e39
        path = write_h5ad(tmp_path / "b.h5ad", values, encoding="dense")
        assert "row 1, column 1" in refusal(path, location="X", allow_non_counts=True)


# --- structure -----------------------------------------------------------------------------------


def break_nothing(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    """Leave rows unsorted, entries repeated and zeros stored, as many programs do."""


def negative_index(parts: dict[str, Any], random: Any, _minor: int) -> None:
    parts["indices"][random.integers(len(parts["indices"]))] = -1


def large_index(parts: dict[str, Any], random: Any, minor: int) -> None:
    parts["indices"][random.integers(len(parts["indices"]))] = minor


def reversed_offsets(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    parts["indptr"] = parts["indptr"][::-1].copy()


def late_start(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    parts["indptr"][0] = 1


def early_end(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    parts["indptr"] = np.minimum(parts["indptr"], parts["indptr"][-1] - 1)


def late_end(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    parts["indptr"][-1] += 1


def few_offsets(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    parts["indptr"] = parts["indptr"][:-1]


def many_offsets(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    parts["indptr"] = np.append(parts["indptr"], parts["indptr"][-1])


def few_values(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    parts["data"] = parts["data"][:-1]


def few_indices(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    parts["indices"] = parts["indices"][:-1]


def fractional_indices(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    parts["indices"] = parts["indices"].astype("f4")


def flat_list_of_lists(parts: dict[str, Any], _random: Any, _minor: int) -> None:
    parts["data"] = parts["data"][None, :]


CHANGES = [
    break_nothing,
    negative_index,
    large_index,
    reversed_offsets,
    late_start,
    early_end,
    late_end,
    few_offsets,
    many_offsets,
    few_values,
    few_indices,
    fractional_indices,
    flat_list_of_lists,
]


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32),
    change=st.sampled_from([break_nothing] * 6 + CHANGES),
    encoding=st.sampled_from(["csr", "csc"]),
    index_dtype=st.sampled_from(["i1", "u2", "i4", ">i4", "u4", "i8", "u8"]),
)
def test_a_sparse_structure_sums_as_in_scipy_or_is_refused(
    seed: int, change: Any, encoding: str, index_dtype: str
) -> None:
    random = np.random.default_rng(seed)
    shape = (int(random.integers(2, 8)), int(random.integers(2, 8)))
    major, minor = shape if encoding == "csr" else shape[::-1]
    entries = int(random.integers(3, 30))
    lengths = np.bincount(random.integers(0, major, entries), minlength=major)
    parts = {
        "data": random.integers(0, 4, entries).astype("f4"),
        "indices": random.integers(0, minor, entries),
        "indptr": np.concatenate([[0], np.cumsum(lengths)]),
    }
    change(parts, random, minor)
    if parts["indices"].dtype.kind == "i" and (parts["indices"] >= 0).all():
        parts["indices"] = parts["indices"].astype(index_dtype)
        parts["indptr"] = parts["indptr"].astype(index_dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = write_h5ad(Path(folder) / "a.h5ad", parts, encoding=encoding, shape=shape)
        if change is not break_nothing and not _is_sound(parts, major, minor):
            assert "X" in refusal(path, location="X")
            return
        if parts["data"].sum() == 0:
            return
        make = sparse.csr_matrix if encoding == "csr" else sparse.csc_matrix
        native = [parts[name].astype("i8") for name in ("indices", "indptr")]
        oracle = make((parts["data"], *native), shape=shape)
        convert(path, Path(folder) / "s")
        np.testing.assert_array_equal(stored_counts(Path(folder) / "s").toarray(), oracle.toarray())


def _is_sound(parts: dict[str, Any], major: int, minor: int) -> bool:
    """Tell whether a change happened to leave a matrix that can be read."""
    offsets, indices = parts["indptr"], parts["indices"]
    return (
        parts["data"].shape == indices.shape
        and indices.dtype.kind in "iu"
        and len(offsets) == major + 1
        and offsets[0] == 0
        and offsets[-1] == len(indices)
        and bool((np.diff(offsets.astype("i8")) >= 0).all())
        and bool(((indices >= 0) & (indices < minor)).all())
    )


# --- names ---------------------------------------------------------------------------------------


def counts_file(path: Path, **options: Any) -> Path:
    matrix = np.array([[1, 0, 2], [0, 3, 1]], np.float32)
    return write_h5ad(path, matrix, encoding="dense", **options)


@settings(deadline=None, max_examples=30)
@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
        min_size=3,
        max_size=3,
    ),
    cells=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
        min_size=2,
        max_size=2,
    ),
)
def test_names_arrive_as_they_are_or_the_gene_is_named(names: list[str], cells: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = counts_file(Path(folder) / "a.h5ad", var_names=names, obs_names=cells)
        bad = [name for name in names if not name or any(ord(each) < 32 for each in name)]
        if len(set(names)) < 3 or bad:
            with pytest.raises(InputDataError) as raised:
                convert(path, Path(folder) / "s")
            assert re.search("more than once|gene id|id of gene", str(raised.value))
            return
        store = convert(path, Path(folder) / "s")
        assert store.genes.ids.tolist() == names
        assert store.obs.names.tolist() == cells
        batch = store.take([0])
        found = dict(zip(store.genes.ids[batch.genes].tolist(), batch.counts.tolist(), strict=True))
        assert found == {names[0]: 1, names[2]: 2}


def test_repeated_genes_are_never_misaligned(tmp_path: Path) -> None:
    path = counts_file(tmp_path / "a.h5ad", var_names=["A", "B", "A"])
    message = refusal(path)
    assert "1 gene ids of var of" in message
    assert "('A')" in message


def test_a_cell_name_of_a_million_characters_arrives(tmp_path: Path) -> None:
    long = "x" * 10**6
    path = counts_file(tmp_path / "a.h5ad", obs_names=[long, "c"])
    store = convert(path, tmp_path / "s")
    assert store.obs.names[0] == long
    assert len(check_file(path).text()) < 10_000


@pytest.mark.parametrize("which", ["obs_names", "var_names"])
def test_names_that_are_not_utf8_are_refused(which: str, tmp_path: Path) -> None:
    names = np.array([b"caf\xe9", b"b", b"c"][: 3 if which == "var_names" else 2])
    path = counts_file(tmp_path / "a.h5ad", **{which: names})
    assert re.search(r"not UTF-8|can't decode|cannot be read", refusal(path))
    assert re.search(r"not UTF-8|can't decode|cannot be read", "\n".join(check_file(path).problems))


def test_a_missing_name_is_refused_with_its_row(tmp_path: Path) -> None:
    path = counts_file(tmp_path / "a.h5ad", var_names=np.array([1.0, np.nan, 2.0]))
    message = refusal(path)
    assert "var" in message
    assert "row 1" in message


# --- the cell table ------------------------------------------------------------------------------


def column_types(random: np.random.Generator, rows: int) -> dict[str, Any]:
    """Return one column of every kind that a pandas user may have."""
    some = random.integers(0, 3, rows)
    gone = random.random(rows) < 0.3
    text = np.array([f"t{value}" for value in some], object)
    return {
        "unused categories": pd.Categorical(text, categories=["t9", "t2", "t0", "t1"]),
        "ordered": pd.Categorical(text, categories=["t2", "t1", "t0"], ordered=True),
        "integer categories": pd.Categorical(some * 10, categories=[20, 0, 10]),
        "missing categories": pd.Categorical(np.where(gone, None, text)),
        "no category": pd.Categorical([None] * rows, categories=["a"]),
        "nullable integer": pd.array(np.where(gone, None, some), dtype="Int32"),
        "nullable boolean": pd.array(np.where(gone, None, some > 1), dtype="boolean"),
        "flag": some > 1,
        "byte": some.astype(np.int8),
        "large": some.astype(np.uint64) + 2**63,
        "half": some.astype(np.float16),
        "float": np.where(gone, np.nan, some / 3),
        "infinite": np.where(gone, -np.inf, np.inf),
        "text": text,
        "unicode": np.array([chr(0x1F600 + value) for value in some], object),
        "index": some,
        "cell_index": text,
        " spaces ": some,
        "ünïcode": some,
    }


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 12))
def test_every_kind_of_column_arrives_as_anndata_reads_it(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    columns = column_types(random, rows)
    chosen = random.permutation(list(columns))[: int(random.integers(1, len(columns)))].tolist()
    obs = pd.DataFrame(
        {name: columns[name] for name in chosen}, index=[f"c{row}" for row in range(rows)]
    )
    adata = anndata.AnnData(sparse.csr_matrix(np.ones((rows, 2), np.float32)), obs=obs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5ad"
        adata.write_h5ad(path)
        expected = anndata.read_h5ad(path).obs
        store = convert(path, Path(folder) / "s")
        found = open_store(store.path).obs.to_pandas()
        pd.testing.assert_frame_equal(
            found, expected, check_index_type=False, check_column_type=False
        )


def test_a_hundred_thousand_categories_arrive(tmp_path: Path) -> None:
    names = [f"clone {number}" for number in range(100_000)]
    obs = pd.DataFrame({"clone": pd.Categorical.from_codes([99_999, 5], names)}, index=["a", "b"])
    path = tmp_path / "a.h5ad"
    anndata.AnnData(np.ones((2, 3), np.float32), obs=obs).write_h5ad(path)
    found = convert(path, tmp_path / "s").obs.to_pandas()["clone"]
    assert found.tolist() == ["clone 99999", "clone 5"]
    assert len(found.cat.categories) == 100_000
    assert len(check_file(path).text().splitlines()) < 40


def test_a_column_with_a_slash_is_kept(tmp_path: Path) -> None:
    path = counts_file(tmp_path / "a.h5ad", obs={"plain": np.arange(2)})
    with h5py.File(path, "r+") as handle:
        handle["obs/a/b"] = np.arange(2)
        handle["obs/a/b"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        handle["obs"].attrs["column-order"] = ["plain", "a/b"]
    found = convert(path, tmp_path / "s").obs.to_pandas()
    assert found.columns.tolist() == ["plain", "a/b"]
    assert found["a/b"].tolist() == [0, 1]


def test_a_column_called_like_the_index_is_refused_by_name(tmp_path: Path) -> None:
    path = counts_file(tmp_path / "a.h5ad", obs={"plain": np.arange(2)})
    with h5py.File(path, "r+") as handle:
        handle["obs"].attrs["_index"] = "names"
        handle["obs"].move("_index", "names")
        handle["obs/_index"] = np.arange(2)
        handle["obs/_index"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        handle["obs"].attrs["column-order"] = ["plain", "_index"]
    assert "_index" in refusal(path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([1 + 1j, 2]), "'odd'"),
        (np.zeros((2, 2)), "obs"),
        (np.zeros(3), "obs"),
        (np.array([(1, 2.0), (3, 4.0)], dtype="i4,f8"), "obs"),
    ],
    ids=["complex", "two dimensions", "another length", "records"],
)
def test_a_column_that_no_table_holds_is_refused(values: Any, words: str, tmp_path: Path) -> None:
    path = counts_file(tmp_path / "a.h5ad", obs={"odd": values})
    assert words in refusal(path)


# --- random damage -------------------------------------------------------------------------------


@cache
def whole_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.h5ad"
        adata = synthesize(40, 30, seed=3, num_types=2)
        adata.layers["dense"] = adata.X.toarray()
        adata.write_h5ad(path, compression="gzip")
        return path.read_bytes()


def damaged(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    data = bytearray(whole_file())
    begin, size = int(random.integers(len(data))), int(random.integers(1, 600))
    match seed % 5:
        case 0:
            data[begin] ^= 1 << int(random.integers(8))
        case 1:
            data[begin : begin + size] = bytes(len(data[begin : begin + size]))
        case 2:
            data[begin : begin + 24] = random.bytes(len(data[begin : begin + 24]))
        case 3:
            del data[begin:]
        case _:
            other = int(random.integers(len(data)))
            data[begin : begin + size] = data[other : other + size]
    return bytes(data)


def test_random_damage_is_refused_or_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No crash, no hang and no untyped error, through both commands; counts stay counts."""
    monkeypatch.setattr(guarded_reading, "MIN_CPU_S", 0.5)
    path, target = tmp_path / "a.h5ad", tmp_path / "s"
    whole = refused = 0
    for seed in range(40):
        path.unlink(missing_ok=True)
        path.write_bytes(damaged(seed))
        for read in (check_file, lambda file: convert(file, target)):
            try:
                read(path)
            except OmicsError:
                refused += 1
        if target.exists():
            open_store(target).verify()
            shutil.rmtree(target)
            whole += 1
    assert whole > 5
    assert refused > 20
