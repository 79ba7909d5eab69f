"""Many sources become one store: the cells of each, its genes by id, all problems told at once."""

from __future__ import annotations

import shutil
import time

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from omics.data import convert
from omics.data.converting.conversion import plan_conversion
from omics.data.converting.read_ahead import read_ahead
from omics.data.converting.source_listing import SourceSpec
from omics.data.errors import ExistingPathError, InputDataError, OmicsWarning, UsageError
from omics.data.matching.gene_coverage import coverage_of
from omics.data.matching.gene_matching import GeneOptions
from omics.data.sources import matrix_blocks
from omics.data.sources.matrix_blocks import MatrixSource


def experiment(num_cells, genes, *, seed=0, obs=None, prefix="c"):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 500, (num_cells, len(genes))) * (
        rng.random((num_cells, len(genes))) < 0.4
    )
    counts[0, 0] = 1
    index = [f"{prefix}{n}" for n in range(num_cells)]
    return anndata.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(obs or {}, index=index),
        var=pd.DataFrame(index=list(genes)),
    )


def written(adata, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    adata.write_h5ad(path)
    return path


def matrix_of(store):
    dense = store.take(np.arange(len(store))).to_csr().toarray()
    return pd.DataFrame(dense, columns=store.genes.ids)


@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_the_store_is_what_anndata_concatenates(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("many")
    known = [f"G{n}" for n in range(20)]
    adatas = []
    for number in range(data.draw(st.integers(2, 4))):
        seed = data.draw(st.integers(0, 2**32))
        rng = np.random.default_rng(seed)
        genes = ["G0", *rng.permutation(known[1:])[: rng.integers(1, 19)]]
        adatas.append(experiment(int(rng.integers(1, 9)), genes, seed=seed, prefix=f"{number}-"))
        written(adatas[-1], folder / f"{number}.h5ad")
    join = data.draw(st.sampled_from(["union", "intersection"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix_blocks, "BLOCK_ENTRIES", data.draw(st.integers(5, 60)))
        paths = sorted(folder.glob("*.h5ad"))
        store = convert(paths, folder / "s", genes=GeneOptions(join=join))
    expected = anndata.concat(adatas, join="outer" if join == "union" else "inner")
    found = matrix_of(store)
    assert set(found.columns) == set(expected.var_names)
    np.testing.assert_array_equal(found[expected.var_names].to_numpy(), expected.X.toarray())
    assert store.obs.names.tolist() == expected.obs_names.tolist()
    store.verify()


def test_cells_know_their_source_and_sources_of_one_name_do_not_collide(tmp_path):
    first = written(
        experiment(3, "AB", obs={"donor": ["d1", "d1", "d2"]}), tmp_path / "x" / "a.h5ad"
    )
    second = written(experiment(2, "BC", seed=1, obs={"age": [3, 4]}), tmp_path / "y" / "a.h5ad")
    third = written(experiment(1, "BC", seed=2), tmp_path / "b.h5ad")
    store = convert([first, second, third], tmp_path / "s")
    assert store.obs["source"].tolist() == ["x/a"] * 3 + ["y/a"] * 2 + ["b"]
    assert store.obs["donor"].tolist() == ["d1", "d1", "d2", None, None, None]
    assert store.obs["age"].tolist() == [None, None, None, 3, 4, None]
    assert store.genes.ids.tolist() == ["A", "B", "C"]
    found = store.provenance
    assert found["duplicate_cell_names"] == 3
    assert found["source"] == {"format": "h5ad", "name": "3 sources"}
    assert [each["label"] for each in found["sources"]] == ["x/a", "y/a", "b"]
    assert found["sources"][1]["bytes"] == second.stat().st_size
    rows = coverage_of(store)
    assert [(row.source, row.matched, row.shared) for row in rows] == [
        ("x/a", 2, 1), ("y/a", 2, 2), ("b", 2, 2),
    ]  # fmt: skip
    assert all(row.counts_kept == 1.0 for row in rows)
    named = convert([first, third], tmp_path / "t", prefix_names=True)
    assert named.obs.names.tolist() == ["a:c0", "a:c1", "a:c2", "b:c0"]
    assert named.provenance["duplicate_cell_names"] == 0


def test_a_folder_is_its_sources_in_order_and_what_is_none_is_listed(tmp_path):
    data = tmp_path / "data"
    written(experiment(2, "AB"), data / "b.h5ad")
    written(experiment(3, "AB", seed=1), data / "sub" / "a.h5ad")
    written(experiment(1, "AB", seed=2), data / "no_ending")
    (data / "README.txt").write_text("read me")
    (data / ".hidden.h5ad").write_text("x")
    convert(data / "b.h5ad", data / "old.store")
    plan = plan_conversion(data, data / "all.store")
    assert [each.label for each in plan.sources] == ["b", "no_ending", "old", "a"]
    assert plan.skipped == (str(data / "README.txt"),)
    written_store = convert(data, data / "all.store")
    assert len(written_store) == 2 + 1 + 2 + 3
    # The store that is written is no source of itself.
    assert len(convert(data, data / "all.store", overwrite=True)) == 8
    with pytest.raises(UsageError, match="given twice"):
        convert([data / "b.h5ad", data], tmp_path / "s")
    with pytest.raises(UsageError, match="No source is given"):
        convert([], tmp_path / "s")


def test_all_problems_come_at_once_and_nothing_is_written(tmp_path):
    good = written(experiment(3, "AB"), tmp_path / "good.h5ad")
    logged = experiment(20, "ABCDEFGH", seed=1)
    logged.X.data = np.log1p(logged.X.data)
    written(logged, tmp_path / "logged.h5ad")
    (tmp_path / "page.h5ad").write_text("<html>404</html>")
    with pytest.raises(InputDataError) as raised:
        convert(
            [good, tmp_path / "logged.h5ad", tmp_path / "page.h5ad", tmp_path / "none"],
            tmp_path / "s",
        )
    message = str(raised.value)
    assert message.startswith("3 of 4 sources cannot be converted; nothing was written.")
    assert "logged.h5ad: X holds log1p" in message
    assert "page.h5ad" in message
    assert "none" in message
    assert not (tmp_path / "s").exists()
    with pytest.raises(InputDataError, match="shares no gene"):
        convert([good, written(experiment(2, "XY"), tmp_path / "other.h5ad")], tmp_path / "s")
    with pytest.raises(ExistingPathError, match="is not a store"):
        convert([good, tmp_path / "none"], tmp_path)


def test_genes_that_come_to_one_are_summed_and_the_share_kept_is_told(tmp_path):
    a = experiment(5, ["OLD", "NEW", "GONE"])
    b = experiment(4, ["NEW", "X"], seed=1)
    paths = [written(a, tmp_path / "a.h5ad"), written(b, tmp_path / "b.h5ad")]
    options = GeneOptions(aliases=(("OLD", "NEW"),), keep=("NEW", "X"))
    store = convert(paths, tmp_path / "s", genes=options)
    dense = a.X.toarray()
    np.testing.assert_array_equal(matrix_of(store)["NEW"][:5], dense[:, 0] + dense[:, 1])
    np.testing.assert_array_equal(matrix_of(store)["X"][5:], b.X.toarray()[:, 1])
    rows = coverage_of(store)
    assert (rows[0].renamed, rows[0].merged, rows[0].left_out) == (1, 1, 1)
    assert rows[0].counts_kept == pytest.approx(dense[:, :2].sum() / dense.sum())
    assert rows[1].counts_kept == 1.0
    store.verify()


def test_one_source_can_have_its_genes_changed_and_repeated_ids_summed(tmp_path):
    adata = experiment(4, ["A", "B", "C"])
    path = written(adata, tmp_path / "a.h5ad")
    store = convert(path, tmp_path / "s", genes=GeneOptions(keep=("C", "A")))
    assert store.genes.ids.tolist() == ["C", "A"]
    np.testing.assert_array_equal(matrix_of(store)["C"], adata.X.toarray()[:, 2])
    assert "source" not in store.obs
    adata.var_names = ["A", "B", "A"]
    with pytest.warns(UserWarning, match="not unique"):
        written(anndata.AnnData(adata.X, adata.obs, adata.var), path)
    with pytest.raises(InputDataError, match="--repeated-genes sum"):
        convert(path, tmp_path / "t")
    summed = convert(path, tmp_path / "t", genes=GeneOptions(repeated="sum"))
    np.testing.assert_array_equal(matrix_of(summed)["A"], adata.X.toarray()[:, [0, 2]].sum(axis=1))


def test_what_is_known_about_a_source_becomes_columns(tmp_path):
    path = written(experiment(2, "AB", obs={"batch": ["x", "y"]}), tmp_path / "a.h5ad")
    other = written(experiment(1, "AB", seed=1), tmp_path / "b.h5ad")
    extra = {"species": "Mus musculus", "age": 12, "tumor": False, "score": 0.5, "note": None}
    specs = [SourceSpec(path, name="mine", extra_obs=extra), SourceSpec(other)]
    store = convert(specs, tmp_path / "s")
    assert store.obs["species"].tolist() == ["Mus musculus", "Mus musculus", None]
    assert store.obs["age"].tolist() == [12, 12, None]
    assert store.obs["tumor"].tolist() == [False, False, None]
    assert store.obs["source"].tolist() == ["mine", "mine", "b"]
    with pytest.raises(UsageError, match="has an obs column 'batch' already"):
        convert(SourceSpec(path, extra_obs={"batch": "z"}), tmp_path / "t")
    with pytest.raises(UsageError, match=r"extra_obs\['x'\] of .* is a list"):
        convert(SourceSpec(path, extra_obs={"x": [1]}), tmp_path / "t")


def test_sources_have_places_of_their_own(tmp_path):
    a, b = experiment(3, "AB"), experiment(3, "AB", seed=1)
    b.layers["raw_counts"] = b.X.copy()
    b.X = b.X * 0.37
    paths = [written(a, tmp_path / "a.h5ad"), written(b, tmp_path / "b.h5ad")]
    store = convert(paths, tmp_path / "s")
    assert store.provenance["location"] == "several places"
    assert [each["location"] for each in store.provenance["sources"]] == ["X", "layers/raw_counts"]
    with pytest.raises(UsageError, match="only from a named place"):
        convert(
            [SourceSpec(paths[0], location="X"), paths[1]], tmp_path / "t", allow_non_counts=True
        )
    floats = convert(paths, tmp_path / "t", location="X", allow_non_counts=True)
    assert floats.value_kind == "float"
    np.testing.assert_array_equal(matrix_of(floats).to_numpy()[3:], b.X.toarray())


def test_a_source_that_changes_meanwhile_is_refused(tmp_path):
    paths = [written(experiment(3, "AB", seed=n), tmp_path / f"{n}.h5ad") for n in range(3)]
    seen = []

    def touch_last(count):
        seen.append(count)
        shutil.copy(paths[0], paths[2])

    with pytest.raises(InputDataError, match=r"2\.h5ad changed while it was read"):
        convert(paths, tmp_path / "s", on_progress=touch_last)
    assert seen == [3, 3]
    assert not (tmp_path / "s").exists()


def test_stores_are_sources_to_merge_and_to_lay_out_anew(tmp_path):
    a, b = experiment(4, "ABC"), experiment(3, "BCD", seed=1)
    first = convert(written(a, tmp_path / "a.h5ad"), tmp_path / "a.store")
    second = convert(written(b, tmp_path / "b.h5ad"), tmp_path / "b.store")
    merged = convert([first.path, second.path], tmp_path / "ab.store")
    direct = convert([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "direct.store")
    pd.testing.assert_frame_equal(matrix_of(merged), matrix_of(direct))
    origin = merged.provenance["sources"][0]
    assert origin["store_digest"] == first.digest
    assert origin["provenance"]["source"]["name"] == "a.h5ad"
    again = convert([merged.path, first.path], tmp_path / "again.store", layout="packed")
    assert again.layout == "packed"
    assert again.obs["source"].tolist() == ["a"] * 4 + ["b"] * 3 + [None] * 4
    assert again.obs["source_file"].tolist() == ["ab"] * 7 + ["a"] * 4
    again.verify()


def test_a_rank_view_is_written_when_medians_are_given(tmp_path):
    path = written(experiment(4, "ABC"), tmp_path / "a.h5ad")
    store = convert(path, tmp_path / "s", rank_medians={"A": 2.0, "B": 1.0, "C": 4.0})
    assert store.rank_digest is not None
    indptr, genes = store.take_ranked([0])
    values = matrix_of(store).to_numpy()[0] / np.array([2.0, 1.0, 4.0])
    assert indptr[1] == np.count_nonzero(values)
    assert (np.diff(values[genes]) <= 0).all()


def test_reading_ahead_keeps_the_order_and_hands_over_errors():
    def numbers(limit):
        for number in range(5):
            if number == limit:
                raise InputDataError("broken here")
            yield number

    assert list(read_ahead(numbers(9), "x")) == [0, 1, 2, 3, 4]
    ahead = read_ahead(numbers(3), "x")
    assert [next(ahead), next(ahead), next(ahead)] == [0, 1, 2]
    with pytest.raises(InputDataError, match="broken here"):
        next(ahead)
    closed = []

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    ahead = read_ahead(endless(), "x")
    assert next(ahead) == 1
    ahead.close()
    assert closed == [True]


def test_a_disk_that_hangs_is_told_with_the_path_and_waited_for(tmp_path, monkeypatch):
    path = written(experiment(4, "ABC"), tmp_path / "a.h5ad")
    whole = convert(path, tmp_path / "whole")
    read = MatrixSource.stored_blocks

    def stalling(self, **options):
        for block in read(self, **options):
            time.sleep(0.5)
            yield block

    monkeypatch.setattr(MatrixSource, "stored_blocks", stalling)
    monkeypatch.setattr("omics.data.converting.read_ahead.STALLED_S", 0.1)
    with pytest.warns(OmicsWarning, match=r"a.h5ad: no cells have come for \d+ s.*still waiting"):
        slow = convert(path, tmp_path / "slow")
    pd.testing.assert_frame_equal(matrix_of(slow), matrix_of(whole))
