"""Splits: exact shares, whole groups, a file that knows its store, and leakage found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from omics.data import OmicsError, load_split, make_split
from omics.data.errors import (
    CorruptStoreError,
    ExistingPathError,
    InputDataError,
    MissingPathError,
    UnknownNameError,
    UsageError,
)
from omics.data.splits import duplicate_cells, leakage

if TYPE_CHECKING:
    from pathlib import Path


class CellsOnly:
    """As much of a store as dividing cells needs, so that many can be tried quickly."""

    path = "cells.store"
    digest = "d"

    class genes:  # noqa: N801
        digest = "g"

    class Obs(dict[str, Any]):
        @property
        def columns(self) -> tuple[str, ...]:
            return tuple(self)

        @property
        def names(self) -> Any:
            return np.array([f"c{row}" for row in range(len(self["label"]))], dtype=object)

    def __init__(self, label: Any) -> None:
        self.obs = self.Obs(label=np.asarray(label, dtype=object))

    def __len__(self) -> int:
        return len(self.obs["label"])


def sizes_by_class(split: Any, labels: Any) -> dict[str, list[int]]:
    labels = np.asarray(labels)
    return {
        label: np.bincount(split.codes[labels == label], minlength=3).tolist()
        for label in np.unique(labels)
    }


SHARES = st.sampled_from([(0.7, 0.1, 0.2), (0.8, 0.1, 0.1), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)])


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    fractions=SHARES,
    seed=st.integers(0, 99),
)
def test_every_class_gets_its_quota_rounded_up_or_down(
    sizes: list[int], fractions: tuple[float, ...], seed: int
) -> None:
    labels = np.repeat([f"class {number}" for number in range(len(sizes))], sizes)
    split = make_split(CellsOnly(labels), fractions=fractions, stratify="label", seed=seed)  # type: ignore[arg-type]
    for size, found in zip(sizes, sizes_by_class(split, labels).values(), strict=True):
        assert sum(found) == size
        if size == 1:
            assert found == [1, 0, 0]
        else:
            quotas = np.round(size * np.array(fractions), 9)
            assert (np.floor(quotas) <= found).all()
            assert (np.ceil(quotas) >= found).all()
    rows = [split.rows(name) for name in ("train", "validation", "test")]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(labels)))


def test_left_over_cells_of_small_classes_add_up_to_the_shares() -> None:
    labels = np.repeat([f"class {number}" for number in range(100)], 3)
    split = make_split(CellsOnly(labels), stratify="label")  # type: ignore[arg-type]
    assert split.sizes == {"train": 210, "validation": 30, "test": 60}


def test_a_random_split_is_exact_and_keyed_by_its_seed() -> None:
    cells = CellsOnly(["a"] * 100)
    one, same, other = (make_split(cells, seed=seed) for seed in (1, 1, 2))  # type: ignore[arg-type]
    assert one.sizes == {"train": 70, "validation": 10, "test": 20}
    assert np.array_equal(one.codes, same.codes)
    assert not np.array_equal(one.codes, other.codes)


def test_cells_without_a_label_are_a_class_of_their_own() -> None:
    labels: list[Any] = ["a"] * 10 + [None] * 10
    split = make_split(CellsOnly(labels), stratify="label")  # type: ignore[arg-type]
    assert np.bincount(split.codes[10:]).tolist() == [7, 1, 2]


@given(
    sizes=st.lists(st.integers(1, 60), min_size=3, max_size=12),
    fractions=SHARES,
    seed=st.integers(0, 9),
)
def test_groups_stay_whole_and_no_split_is_empty(
    sizes: list[int], fractions: tuple[float, ...], seed: int
) -> None:
    labels = np.repeat([f"donor {number}" for number in range(len(sizes))], sizes)
    split = make_split(CellsOnly(labels), fractions=fractions, group="label", seed=seed)  # type: ignore[arg-type]
    for found in sizes_by_class(split, labels).values():
        assert sum(size > 0 for size in found) == 1
    for name, share in zip(("train", "validation", "test"), fractions, strict=True):
        assert (split.sizes[name] > 0) == (share > 0)


def test_many_groups_come_near_the_shares() -> None:
    labels = np.repeat([f"donor {number}" for number in range(50)], 20)
    sizes = make_split(CellsOnly(labels), group="label").sizes  # type: ignore[arg-type]
    assert sizes == {"train": 700, "validation": 100, "test": 200}


def test_a_column_that_names_the_split_is_used() -> None:
    cells = CellsOnly(["Train", "val", "dev", "TEST", "valid", "validation", "training"])
    split = make_split(cells, column="label")  # type: ignore[arg-type]
    assert split.codes.tolist() == [0, 1, 1, 2, 1, 1, 0]
    assert split.method == {"kind": "column", "column": "label"}


@pytest.mark.parametrize(
    ("labels", "options", "error", "words"),
    [
        (["a", "b"], {"stratify": "labl"}, UnknownNameError, "Did you mean 'label'"),
        (["a", "b"], {"stratify": "label", "group": "label"}, UsageError, "Give one of"),
        (["a", "b"], {"fractions": (0.5, 0.2)}, UsageError, "three numbers"),
        (["a", "b"], {"fractions": (0.5, 0.2, 0.2)}, UsageError, "sum to 0.9"),
        (["a", "b"], {"fractions": (1.2, -0.2, 0)}, UsageError, "three numbers"),
        (["a", "b"], {"fractions": (0, 0.5, 0.5)}, UsageError, "some cells to train on"),
        (["a", "b"], {"fractions": (float("nan"), 0, 1)}, UsageError, "three numbers"),
        (["a", "b"], {"group": "label"}, InputDataError, "2 groups, too few for 3 splits"),
        (["a", None, None], {"group": "label"}, InputDataError, "2 cells have no value"),
        (["train", "holdout"], {"column": "label"}, InputDataError, "holds 'holdout'"),
        (["train", None], {"column": "label"}, InputDataError, "no value for 1 cells"),
        (
            ["train", "test"],
            {"column": "label", "fractions": (0.8, 0.1, 0.1)},
            UsageError,
            "no effect",
        ),
    ],
)
def test_a_split_that_cannot_be_made_says_why(
    labels: list[Any], options: dict[str, Any], error: type[OmicsError], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_split(CellsOnly(labels), **options)  # type: ignore[arg-type]


def test_an_unknown_split_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
        make_split(CellsOnly(["a"] * 9)).rows("training")  # type: ignore[arg-type]


# --- the file ------------------------------------------------------------------------------------


@pytest.fixture
def store(write_store: Any, random_counts: Any, tmp_path: Path) -> Any:
    obs = pd.DataFrame(
        {"donor": pd.Categorical(["a", "b", "c"] * 4)}, index=[f"c{row}" for row in range(12)]
    )
    return write_store(tmp_path / "s", random_counts(12, 9), obs=obs)


def test_a_saved_split_comes_back_and_names_its_origin(store: Any, tmp_path: Path) -> None:
    split = make_split(store, stratify="donor", seed=3)
    split.save(tmp_path / "a.parquet")
    loaded = load_split(tmp_path / "a.parquet", store)
    assert np.array_equal(loaded.codes, split.codes)
    assert loaded.cells.tolist() == store.obs.names.tolist()
    assert (loaded.seed, loaded.method) == (3, split.method)
    assert loaded.store_digest == store.digest
    assert loaded.gene_digest == store.genes.digest
    table = pq.read_table(tmp_path / "a.parquet").to_pandas()
    assert list(table.columns) == ["row", "cell", "split"]
    assert set(table["split"]) <= {"train", "validation", "test"}
    split.save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_split_is_refused_for_other_cells_and_kept_for_the_same(
    store: Any, tmp_path: Path, write_store: Any, random_counts: Any
) -> None:
    path = tmp_path / "a.parquet"
    make_split(store).save(path)
    same = write_store(tmp_path / "t", random_counts(12, 5), obs=store.obs.to_pandas())
    assert len(load_split(path, same)) == 12
    fewer = write_store(tmp_path / "u", random_counts(7, 9))
    with pytest.raises(InputDataError, match="of another store: it has 12 cells"):
        load_split(path, fewer)
    renamed = write_store(tmp_path / "v", random_counts(12, 9))
    with pytest.raises(InputDataError, match=r"its cell 0 is 'c0', that of .* is 'cell0'"):
        load_split(path, renamed)


def test_saving_replaces_nothing_unasked(store: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    make_split(store).save(path)
    with pytest.raises(ExistingPathError, match="choose another path or add --overwrite"):
        make_split(store, seed=1).save(path)
    make_split(store, seed=1).save(path, overwrite=True)
    assert load_split(path).seed == 1
    with pytest.raises(MissingPathError, match="no folder"):
        make_split(store).save(tmp_path / "none" / "a.parquet")


def test_any_damaged_byte_is_an_error_or_harmless(store: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    split = make_split(store)
    split.save(path)
    data = path.read_bytes()
    kinds = set()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x41]) + data[position + 1 :])
        try:
            loaded = load_split(path, store)
        except OmicsError as error:
            kinds.add(type(error))
        else:
            # Bytes that say nothing here, such as the writer's name or statistics.
            assert np.array_equal(loaded.codes, split.codes)
            assert loaded.cells.tolist() == split.cells.tolist()
            assert (loaded.method, loaded.seed) == (split.method, split.seed)
            assert loaded.store_digest == split.store_digest
    assert {InputDataError, CorruptStoreError} <= kinds


def test_a_file_that_is_no_split_is_refused(store: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingPathError, match="no split table"):
        load_split(tmp_path / "none.parquet")
    (tmp_path / "a.txt").write_text("row,cell\n")
    with pytest.raises(InputDataError, match="is not a split table"):
        load_split(tmp_path / "a.txt")
    pq.write_table(pa.table({"row": [1]}), tmp_path / "b.parquet")
    with pytest.raises(InputDataError, match="a Parquet file but not a split table"):
        load_split(tmp_path / "b.parquet")
    make_split(store).save(tmp_path / "c.parquet")
    table = pq.read_table(tmp_path / "c.parquet")
    changed = table.set_column(2, "split", pa.array(["holdout"] * 12))
    pq.write_table(changed, tmp_path / "d.parquet")
    with pytest.raises(InputDataError, match="holds the split 'holdout'"):
        load_split(tmp_path / "d.parquet")
    pq.write_table(table.take(list(range(11, -1, -1))), tmp_path / "e.parquet")
    with pytest.raises(InputDataError, match="are not 0, 1, 2"):
        load_split(tmp_path / "e.parquet")


# --- leakage -------------------------------------------------------------------------------------


def test_equal_cells_across_splits_are_found(
    write_store: Any, random_counts: Any, tmp_path: Path
) -> None:
    counts = random_counts(10, 8, seed=4)
    counts[7] = counts[0]
    counts[8] = counts[1]
    counts[3] = counts[2]
    counts[5] = 0
    counts[9] = 0
    sides = ["train"] * 5 + ["validation", "test", "test", "train", "test"]
    obs = pd.DataFrame({"side": sides, "donor": list("aabbccbdde")})
    store = write_store(tmp_path / "s", counts, obs=obs)
    split = make_split(store, column="side")
    found = leakage(store, split, group="donor")
    assert found.duplicate_cells == 1
    assert found.duplicate_examples == ((0, 7),)
    assert found.shared_groups == ("b", "c", "d")
    assert found.to_dict()["duplicate_examples"] == [[0, 7]]


@settings(max_examples=25)
@given(data=st.data())
def test_leakage_agrees_with_a_comparison_of_all_pairs(
    data: st.DataObject, write_store: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = data.draw(
        st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=2, max_size=9)
    )
    sides = data.draw(
        st.lists(st.sampled_from(["train", "test"]), min_size=len(rows), max_size=len(rows))
    )
    obs = pd.DataFrame({"side": sides})
    store = write_store(tmp_path_factory.mktemp("pairs") / "s", rows, obs=obs)
    expected = sum(
        any(rows[a] == rows[b] and sides[b] == "train" for b in range(len(rows)))
        for a in range(len(rows))
        if sides[a] == "test" and any(rows[a])
    )
    split = make_split(store, column="side")
    found = leakage(store, split)
    assert found.duplicate_cells == expected
    # Columns the other way round are other numbers, but the same cells.
    matrix = csr_matrix(np.array(rows, np.float32)[:, ::-1])
    number, pairs = duplicate_cells(matrix, split)
    assert number == expected
    assert all(rows[one] == rows[other] and sides[one] != sides[other] for one, other in pairs)


def test_leakage_of_another_split_is_refused(store: Any, write_store: Any, tmp_path: Path) -> None:
    other = write_store(tmp_path / "t", [[1, 2]])
    with pytest.raises(InputDataError, match="The split has 12 cells, the store 1"):
        leakage(other, make_split(store))
    with pytest.raises(UnknownNameError, match="Did you mean 'donor'"):
        leakage(store, make_split(store), group="doner")
    with pytest.raises(InputDataError, match="The split has 12 cells, the matrix 2"):
        duplicate_cells(csr_matrix((2, 3)), make_split(store))
