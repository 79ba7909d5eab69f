"""Many stores read as one: every batch, column and sum is that of the concatenated data."""

from __future__ import annotations

import json
import pickle

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.errors import (
    CorruptStoreError,
    InputDataError,
    MissingPathError,
    UnknownNameError,
    UsageError,
)
from omics.data.loading.loader import Loader
from omics.data.matching.gene_matching import GeneOptions
from omics.data.storage.batch_buffers import BatchBuffers
from omics.data.storage.row_statistics import sums_by_cell
from omics.data.storage.store import CellStore, RowError
from omics.data.storage.store_collection import StoreCollection, is_collection, open_collection


@pytest.fixture
def two(write_store, random_counts, tmp_path):
    """Two stores whose genes overlap, with obs that differ."""
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(["b", "a", None, "b"], categories=["b", "a", "unused"]),
            "age": [1, 2, 3, 4],
            "batch": ["x", "y", "x", "z"],
        },
        index=[f"c{n}" for n in range(4)],
    )
    other = pd.DataFrame(
        {"donor": pd.Categorical(["a", "c", "c"]), "score": [0.5, 1.5, np.nan], "batch": [1, 2, 3]},
        index=["c0", "d1", "d2"],
    )
    return [
        write_store(tmp_path / "a", random_counts(4, 6, seed=1), obs=obs, var=var("ABCDEF")),
        write_store(tmp_path / "b", random_counts(3, 5, seed=2), obs=other, var=var("XFDAY")),
    ]


def var(ids, **columns):
    return pd.DataFrame(columns, index=list(ids))


def dense(cells, rows=None, **options):
    batch = cells.take(np.arange(len(cells)) if rows is None else rows, **options)
    return batch.to_csr().toarray()


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_rows_of_any_stores_are_those_of_the_concatenated_data(
    write_store, random_counts, tmp_path_factory, data
):
    folder = tmp_path_factory.mktemp("members")
    adatas, stores = [], []
    for number in range(data.draw(st.integers(1, 4))):
        seed = data.draw(st.integers(0, 2**32))
        rng = np.random.default_rng(seed)
        kind = data.draw(st.sampled_from(["same", "in order", "shuffled"]))
        ids = np.array([f"G{n:02d}" for n in range(20)])
        if kind != "same":
            ids = ids[np.sort(rng.choice(np.arange(1, 20), rng.integers(1, 19), replace=False))]
            ids = np.append(ids, "G00") if kind == "shuffled" else np.insert(ids, 0, "G00")
        if kind == "shuffled":
            ids = rng.permutation(ids)
        largest = data.draw(st.sampled_from([3, 70_000]))
        counts = random_counts(int(rng.integers(0, 7)), len(ids), seed=seed, largest=largest)
        names = [f"{number}-{row}" for row in range(len(counts))]
        adatas.append(anndata.AnnData(counts, pd.DataFrame(index=names), var(ids)))
        stores.append(
            write_store(folder / f"{number}", counts, obs=pd.DataFrame(index=names), var=var(ids))
        )
    join = data.draw(st.sampled_from(["union", "intersection"]))
    collection = StoreCollection(stores, genes=GeneOptions(join=join))
    joined = anndata.concat(adatas, join="outer" if join == "union" else "inner", fill_value=0)
    expected = pd.DataFrame(joined.X, columns=joined.var_names)[collection.genes.ids].to_numpy()
    assert collection.shape == expected.shape
    np.testing.assert_array_equal(dense(collection), expected)
    row = st.integers(0, max(len(expected) - 1, 0))
    drawn = data.draw(st.lists(row, max_size=12 if len(expected) else 0))
    rows = np.array(drawn, np.int64)
    memory = BatchBuffers()
    for options in ({}, {"buffers": memory}, {"buffers": memory}):
        batch = collection.take(rows, **options)
        np.testing.assert_array_equal(batch.to_csr().toarray(), expected[rows])
        cells = batch.cell_of_entry()
        genes = batch.genes.astype(np.int64)
        assert ((np.diff(genes) > 0) | (np.diff(cells) > 0)).all()
        assert batch.counts.dtype == collection.count_dtype
        assert batch.rows.tolist() == rows.tolist()
    np.testing.assert_array_equal(collection.lengths, (expected != 0).sum(axis=1))
    np.testing.assert_array_equal(collection.row_sums(), expected.sum(axis=1))
    np.testing.assert_array_equal(collection.gene_sums(), expected.sum(axis=0))
    np.testing.assert_array_equal(collection.gene_detection(), (expected != 0).sum(axis=0))
    assert collection.num_entries == np.count_nonzero(expected)
    assert collection.obs.names.tolist() == joined.obs_names.tolist()


def test_genes_that_come_together_are_summed_in_every_number(two):
    options = GeneOptions(aliases=(("B", "A"), ("F", "A")))
    collection = StoreCollection(two, genes=options)
    a, b = dense(two[0]), dense(two[1])
    column = collection.genes.ids.tolist().index("A")
    expected = np.concatenate([a[:, 0] + a[:, 1] + a[:, 5], b[:, 3] + b[:, 1]])
    np.testing.assert_array_equal(dense(collection)[:, column], expected)
    whole = dense(collection)
    np.testing.assert_array_equal(collection.lengths, (whole != 0).sum(axis=1))
    np.testing.assert_array_equal(collection.gene_sums(), whole.sum(axis=0))
    np.testing.assert_array_equal(collection.gene_detection(), (whole != 0).sum(axis=0))
    assert collection.count_dtype == np.uint32
    assert collection.coverage[0].merged == 2


def test_a_list_of_genes_is_the_gene_table(two):
    collection = StoreCollection(two, genes=GeneOptions(join="list", keep=("Q", "F", "A")))
    assert collection.genes.ids.tolist() == ["Q", "F", "A"]
    expected = np.zeros((7, 3), np.int64)
    expected[:4, 1:] = dense(two[0])[:, [5, 0]]
    expected[4:, 1:] = dense(two[1])[:, [1, 3]]
    np.testing.assert_array_equal(dense(collection), expected)
    np.testing.assert_array_equal(collection.row_sums(), expected.sum(axis=1))


def test_columns_are_joined_outer_with_codes(two):
    obs = StoreCollection(two).obs
    assert obs.columns == ("donor", "age", "batch", "score")
    assert obs["donor"].tolist() == ["b", "a", None, "b", "a", "c", "c"]
    codes, values = obs.codes("donor")
    assert codes.dtype == np.int32
    assert values.tolist() == ["b", "a", "unused", "c"]
    assert codes.tolist() == [0, 1, -1, 0, 1, 3, 3]
    assert obs["age"].tolist() == [1, 2, 3, 4, None, None, None]
    assert obs.codes("age")[0].tolist() == [0, 1, 2, 3, -1, -1, -1]
    assert obs["batch"].tolist() == ["x", "y", "x", "z", "1", "2", "3"]
    np.testing.assert_array_equal(obs["score"], [np.nan] * 4 + [0.5, 1.5, np.nan])
    for name in obs.columns:
        rows = np.array([5, 0, 2])
        np.testing.assert_array_equal(pd.Series(obs.take(name, rows)), pd.Series(obs[name][rows]))
    assert len(obs) == 7
    frame = obs.to_pandas()
    assert frame.index.tolist() == ["c0", "c1", "c2", "c3", "c0", "d1", "d2"]
    assert frame["donor"].cat.categories.tolist() == ["b", "a", "unused", "c"]
    assert frame["age"].tolist()[:4] == [1, 2, 3, 4]
    with pytest.raises(UnknownNameError, match=r"a column 'doner'\. Did you mean 'donor'"):
        _ = obs["doner"]
    with pytest.raises(UnknownNameError, match="a column 'x'"):
        obs.codes("x")


def test_it_reads_as_a_store_does(two):
    collection = StoreCollection(two)
    assert collection.member_ends.tolist() == [4, 7]
    batch = collection.take([6, 0], obs=("donor", "score"))
    assert batch.obs["donor"].tolist() == ["c", "b"]
    adata = collection.to_anndata([6, 0])
    np.testing.assert_array_equal(adata.X.toarray(), dense(collection)[[6, 0]])
    assert adata.obs_names.tolist() == ["d2", "c0"]
    assert adata.var_names.tolist() == collection.genes.ids.tolist()
    assert [report.num_chunks > 0 for report in collection.verify()] == [True, True]
    assert collection.num_bytes == sum(each.num_bytes for each in two)
    seen = np.concatenate([each.rows for each in Loader(collection, batch_size=2, order="random")])
    assert sorted(seen.tolist()) == list(range(7))
    with pytest.raises(RowError, match="Row 7 is outside the collection, which has 7 cells"):
        collection.take([0, 7])
    with pytest.raises(UsageError, match="Turn a mask into rows"):
        collection.take(np.ones(7, np.bool_))


def test_a_pickled_collection_opens_its_members_again(two, tmp_path):
    aliases = tmp_path / "aliases.csv"
    aliases.write_text("B,A\n")
    collection = StoreCollection(two, genes=GeneOptions(aliases=aliases))
    data = pickle.dumps(collection)
    assert len(data) < 3000
    aliases.unlink()
    again = pickle.loads(data)
    assert again.digest == collection.digest
    np.testing.assert_array_equal(dense(again), dense(collection))


def test_the_digest_names_members_order_and_genes(two):
    digest = StoreCollection(two).digest
    assert digest == StoreCollection([each.path for each in two]).digest
    assert digest != StoreCollection(two[::-1]).digest
    assert digest != StoreCollection(two, genes=GeneOptions(join="intersection")).digest


def test_a_saved_collection_opens_from_anywhere_and_knows_its_members(
    two, tmp_path, write_store, random_counts, monkeypatch
):
    collection = StoreCollection(two, genes=GeneOptions(join="intersection"))
    path = tmp_path / "both.json"
    collection.save(path)
    assert is_collection(path)
    assert json.loads(path.read_text())["stores"][0]["path"] == "a"
    monkeypatch.chdir(tmp_path.parent)
    again = open_collection(path)
    assert again.digest == collection.digest
    assert again.path == path
    np.testing.assert_array_equal(dense(again), dense(collection))
    assert pickle.loads(pickle.dumps(again)).path == path
    with pytest.raises(UsageError, match="says itself how its genes"):
        open_collection(path, genes=GeneOptions())
    with pytest.raises(UsageError, match=r"must end in \.json"):
        collection.save(tmp_path / "both")
    write_store(tmp_path / "b", random_counts(3, 5, seed=9), var=var("XFDAY"), overwrite=True)
    with pytest.raises(
        InputDataError, match=r"is not the store any more that .*both\.json was saved"
    ):
        open_collection(path)
    assert len(open_collection([tmp_path / "a", tmp_path / "b"])) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: {}, "is no collection of stores"),
        (lambda record: [], "is no collection of stores"),
        (lambda record: record | {"stores": []}, "is no collection of stores"),
        (lambda record: record | {"format_version": 9}, "format version 9"),
        (lambda record: record | {"genes": {"jion": "union"}}, "no options for matching genes"),
        (lambda record: record | {"genes": {"join": "intersection"}}, "is damaged"),
    ],
    ids=["nothing", "a list", "no stores", "version", "options", "digest"],
)
def test_a_file_that_is_no_sound_collection_is_refused(two, tmp_path, change, message):
    path = tmp_path / "both.json"
    StoreCollection(two).save(path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputDataError, match=message):
        open_collection(path)


def test_stores_that_do_not_fit_are_refused(two, write_store, tmp_path):
    floats = write_store(tmp_path / "f", np.array([[0.5]]), var=var("A"), value_kind="float")
    with pytest.raises(InputDataError, match=r"holds counts and .* float values"):
        StoreCollection([two[0], floats])
    with pytest.raises(UsageError, match="at least one store"):
        StoreCollection([])
    with pytest.raises(MissingPathError, match="none"):
        open_collection([tmp_path / "none"])
    with pytest.raises(MissingPathError, match=r"none\.json does not exist"):
        open_collection(tmp_path / "none.json")
    strange = write_store(tmp_path / "g", np.array([[5]]), var=var(["Q"]))
    with pytest.raises(InputDataError, match="shares no gene"):
        StoreCollection([two[0], strange])


def test_floats_are_read_and_summed_alike(write_store, tmp_path):
    a = write_store(tmp_path / "a", np.array([[0.5, 1.5]]), var=var("AB"), value_kind="float")
    b = write_store(tmp_path / "b", np.array([[2.5, 0.25]]), var=var("BA"), value_kind="float")
    collection = StoreCollection([a, b])
    assert dense(collection).tolist() == [[0.5, 1.5], [0.25, 2.5]]
    assert collection.row_sums().tolist() == [2.0, 2.75]
    assert collection.gene_sums().tolist() == [0.75, 4.0]
    assert collection.count_dtype == np.float32
    assert sums_by_cell(np.array([0, 2]), collection.take([1]).counts).tolist() == [2.75]


def test_damage_of_a_member_is_reported(two, tmp_path):
    collection = StoreCollection(two)
    counts = next((tmp_path / "b").glob("gen-*/counts.bin"))
    data = bytearray(counts.read_bytes())
    data[0] ^= 1
    counts.write_bytes(bytes(data))
    collection.take([0])
    with pytest.raises(CorruptStoreError, match=r"counts\.bin"):
        collection.take([0, 4])


def test_a_collection_is_a_source(two, tmp_path):
    from omics.data import convert

    collection = StoreCollection(two)
    collection.save(tmp_path / "both.json")
    merged = convert(tmp_path / "both.json", tmp_path / "merged")
    np.testing.assert_array_equal(dense(merged), dense(collection))
    assert merged.obs["donor"].tolist() == collection.obs["donor"].tolist()
    assert merged.genes.digest == collection.genes.digest


def test_a_batch_asks_only_the_members_it_needs(two, monkeypatch):
    collection = StoreCollection([two[0]] * 300)
    asked = []
    take = CellStore.take

    def counted(self, rows, **options):
        asked.append(len(rows))
        return take(self, rows, **options)

    monkeypatch.setattr(CellStore, "take", counted)
    batch = collection.take([1199, 0, 1, 1198, 600])
    assert sorted(asked) == [1, 2, 2]
    np.testing.assert_array_equal(batch.to_csr().toarray(), dense(two[0], [3, 0, 1, 2, 0]))


def test_stores_of_any_version_of_the_package_go_together(two, tmp_path, monkeypatch):
    from omics.data import convert

    monkeypatch.setattr("omics.data.storage.store_writer._written_by", lambda: "omics-data 0.0.7")
    old = convert(two[0].path, tmp_path / "old")
    monkeypatch.undo()
    assert old.written_by == "omics-data 0.0.7"
    both = StoreCollection([old, two[1]])
    merged = convert([old.path, two[1].path], tmp_path / "merged")
    np.testing.assert_array_equal(dense(both), dense(merged))
