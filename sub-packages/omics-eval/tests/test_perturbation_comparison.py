"""A screen with planted effects: from files to scores beside baselines."""

from __future__ import annotations

from itertools import combinations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from omics.data import convert, make_perturbation_split
from omics.data.errors import InputDataError, MissingPathError, UnknownNameError, UsageError
from omics.eval import (
    ScreenColumns,
    compare_perturbations,
    read_measured,
    read_predicted,
    read_results,
    write_results,
)
from omics.eval.perturbation_scores import METRICS

GENES = [f"g{i}" for i in range(40)]
SINGLES = GENES[:6]
PAIRS = [f"{a}+{b}" for a, b in combinations(SINGLES, 2)]
COLUMNS = ScreenColumns(perturbation="target", control="ctrl")
CELLS_EACH = 12


def effects():
    """Return the effect of each single on log expression, sparse and additive."""
    generator = np.random.default_rng(7)
    return {n: generator.normal(0, 0.8, 40) * (generator.random(40) < 0.3) for n in SINGLES}


def profile(name):
    effect, base = effects(), np.linspace(1.0, 4.0, 40)
    return np.exp(base + sum(effect[part] for part in name.split("+") if part in effect))


def made_cells(names, *, seed=0, line=None):
    """Return counts of cells around the profile of their perturbation."""
    generator = np.random.default_rng(seed)
    counts = generator.poisson(np.stack([profile(name) for name in names]))
    obs = pd.DataFrame({"target": names}, index=[f"c{i}" for i in range(len(names))])
    if line is not None:
        obs["line"] = line
    return ad.AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with `cells.h5ad`, `cells.store` and splits of it."""
    folder = tmp_path_factory.mktemp("screen")
    cells = made_cells(["ctrl"] * 60 + [*SINGLES, *PAIRS] * CELLS_EACH)
    cells.write_h5ad(folder / "cells.h5ad")
    store = convert(folder / "cells.h5ad", folder / "cells.store")
    pairs = make_perturbation_split(
        store, column="target", control="ctrl", held_out=["g1+g0", "g2+g3", "g4+g5"]
    )
    pairs.save(folder / "pairs.parquet")
    held = ["g0", "g0+g1", "g0+g2", "g1", "g2+g3"]
    make_perturbation_split(store, column="target", control="ctrl", held_out=held).save(
        folder / "genes.parquet"
    )
    return folder


@pytest.fixture
def measured(folder):
    return read_measured(folder / "cells.store", COLUMNS, split=folder / "pairs.parquet")


def truth_table(measured, *, noise=0.0):
    """Return what was measured as a table of predictions."""
    generator = np.random.default_rng(1)
    bulks = measured.bulks.take(measured.is_tested)
    values = bulks.values + generator.normal(0, noise, bulks.values.shape)
    return pd.DataFrame(values, columns=GENES).assign(target=bulks.names)


def compare(measured, table, tmp_path, *, values="log-e", **options):
    table.to_parquet(tmp_path / "predictions.parquet")
    predicted = read_predicted(tmp_path / "predictions.parquet", measured, values=values)
    return compare_perturbations(measured, predicted, **options)


def test_a_perfect_prediction_has_the_best_means_and_baselines_stand_beside(measured, tmp_path):
    found = compare(measured, truth_table(measured), tmp_path)
    assert list(found.scores) == ["model", "no change", "mean of training", "additive", "linear"]
    assert found.names.tolist() == ["g0+g1", "g2+g3", "g4+g5"]
    assert set(found.kinds) == {"combo_seen2"}
    rows = {(r.method, r.metric): r for r in found.rows(task="perturb:target", dataset="d")}
    for metric in METRICS:
        row = rows["model", metric]
        best = 0.0 if metric.startswith(("mae", "mse")) else 1.0
        assert (row.value, row.low, row.high) == (pytest.approx(best, abs=1e-12),) * 3
        assert row.n == 3
    assert rows["no change", "delta_pearson"].value == 0
    assert rows["no change", "discrimination"].value == 0.5
    difference = rows["model minus additive", "delta_pearson_difference"]
    additive = rows["additive", "delta_pearson"]
    assert difference.value == pytest.approx(1 - additive.value)
    assert (difference.low, difference.high) == pytest.approx((1 - additive.high, 1 - additive.low))
    # What was planted is additive, and counts are noisy: good, better than what knows no gene.
    assert 0.9 < additive.value < 1
    assert additive.value > rows["mean of training", "delta_pearson"].value + 0.1
    write_results(tmp_path / "results.parquet", list(rows.values()))
    assert read_results(tmp_path / "results.parquet") == list(rows.values())


def test_the_mean_of_training_scores_what_it_does_by_hand(measured, tmp_path):
    found = compare(measured, truth_table(measured), tmp_path)
    bulks = measured.bulks
    control = bulks.row("ctrl").values[0]
    train = ~measured.is_tested & (bulks.names != "ctrl")
    mean = bulks.values[train].mean(axis=0)
    truth = bulks.values[measured.is_tested]
    scores = found.scores["mean of training"]
    by_hand = [np.corrcoef(mean - control, each - control)[0, 1] for each in truth]
    np.testing.assert_allclose(scores["delta_pearson"], by_hand)
    np.testing.assert_allclose(scores["mae"], np.abs(truth - mean).mean(axis=1))
    np.testing.assert_allclose(scores["mse"], ((truth - mean) ** 2).mean(axis=1))
    np.testing.assert_allclose(scores["pearson"], [np.corrcoef(mean, each)[0, 1] for each in truth])


def test_kinds_are_scored_apart_by_how_much_training_has_seen(folder, tmp_path):
    measured = read_measured(folder / "cells.store", COLUMNS, split=folder / "genes.parquet")
    found = compare(measured, truth_table(measured, noise=0.1), tmp_path)
    kinds = dict(zip(found.names, found.kinds, strict=True))
    assert kinds["g0"] == "single"
    assert kinds["g2+g3"] == "combo_seen2"
    rows = found.rows(task="perturb:target", dataset="d", seed=3)
    by_task = {(r.task, r.method, r.metric): r for r in rows}
    whole = by_task["perturb:target", "model", "mae"]
    single = by_task["perturb:target:single", "model", "mae"]
    assert (whole.n, single.n, whole.seed) == (5, 2, 3)
    chosen = found.scores["model"]["mae"][found.kinds == "single"]
    assert single.value == pytest.approx(chosen.mean())
    assert single.low <= single.value <= single.high
    paired = by_task["perturb:target:single", "model minus no change", "mae_difference"]
    assert paired.value < 0


def test_a_kind_of_one_perturbation_has_the_widest_interval(folder, tmp_path):
    measured = read_measured(folder / "cells.store", COLUMNS, split=folder / "pairs.parquet")
    table = truth_table(measured)
    found = compare(measured, table, tmp_path)
    found.kinds[0] = "combo_seen1"
    rows = {(r.task, r.method, r.metric): r for r in found.rows(task="t", dataset="d")}
    alone = rows["t:combo_seen1", "model", "delta_pearson"]
    assert (alone.value, alone.low, alone.high, alone.n) == (pytest.approx(1), -1, 1, 1)
    apart = rows["t:combo_seen1", "model minus additive", "mae_difference"]
    assert (apart.low, apart.high) == (-np.inf, np.inf)


def test_without_a_split_what_is_predicted_is_tested(folder, measured, tmp_path):
    table = truth_table(measured)
    whole = read_measured(folder / "cells.h5ad", COLUMNS)
    found = compare(whole, table, tmp_path)
    expected = compare(measured, table, tmp_path)
    assert found.names.tolist() == expected.names.tolist()
    for method, metrics in expected.scores.items():
        for metric, values in metrics.items():
            np.testing.assert_allclose(found.scores[method][metric], values, err_msg=metric)


def test_cells_and_scales_of_a_prediction_may_differ_from_the_measured(folder, measured, tmp_path):
    cells = ad.read_h5ad(folder / "cells.h5ad")
    cells = cells[np.isin(cells.obs["target"], ["g0+g1", "g2+g3", "g4+g5"])].copy()
    cells.obs["target"] = [str(name).replace("g0+g1", "g1+ctrl+g0") for name in cells.obs["target"]]
    cells = cells[:, ::-1].copy()
    cells.write_h5ad(tmp_path / "counts.h5ad")
    linear = 1e4 * cells.X / cells.X.sum(axis=1, keepdims=True)
    for values, matrix in (
        ("counts", cells.X),
        ("log-e", np.log1p(linear)),
        ("log-2", np.log2(1 + linear)),
        ("log-10", np.log10(1 + linear)),
        ("linear", linear),
    ):
        ad.AnnData(matrix, obs=cells.obs, var=cells.var).write_h5ad(tmp_path / "p.h5ad")
        predicted = read_predicted(tmp_path / "p.h5ad", measured, values=values)
        found = compare_perturbations(measured, predicted)
        np.testing.assert_allclose(found.scores["model"]["mae"], 0, atol=1e-5, err_msg=values)
        assert found.notes == ()
    # The measured cells as logs to base 2: everything is on that scale.
    whole = ad.read_h5ad(folder / "cells.h5ad")
    whole.X = np.log2(1 + 1e4 * whole.X / whole.X.sum(axis=1, keepdims=True))
    whole.write_h5ad(tmp_path / "log2.h5ad")
    in_base_2 = read_measured(
        tmp_path / "log2.h5ad", COLUMNS, values="log-2", split=folder / "pairs.parquet"
    )
    predicted = read_predicted(tmp_path / "counts.h5ad", in_base_2, values="counts")
    two = compare_perturbations(in_base_2, predicted)
    one = compare_perturbations(
        measured, read_predicted(tmp_path / "counts.h5ad", measured, values="counts")
    )
    np.testing.assert_allclose(two.scores["model"]["mae"], 0, atol=1e-5)
    np.testing.assert_allclose(
        two.scores["no change"]["mae"], one.scores["no change"]["mae"] / np.log(2), rtol=1e-4
    )


def test_perturbations_are_compared_within_a_covariate_and_count_once(tmp_path):
    names = (["ctrl"] * 20 + [*SINGLES[:4]] * 8) * 2
    cells = made_cells(names, line=["k562"] * 52 + ["rpe1"] * 52)
    other = np.asarray(cells.obs["line"] == "rpe1")
    cells.X[other] = cells.X[other][:, ::-1]  # another line altogether
    cells.write_h5ad(tmp_path / "cells.h5ad")
    columns = ScreenColumns(perturbation="target", control="ctrl", covariate="line")
    measured = read_measured(tmp_path / "cells.h5ad", columns)
    keep = np.isin(measured.bulks.names, ["g0", "g1"])
    bulks = measured.bulks.take(keep)
    table = pd.DataFrame(bulks.values, columns=GENES)
    table = table.assign(target=bulks.names, line=bulks.covariates)
    found = compare(measured, table, tmp_path)
    assert len(found.names) == 4
    np.testing.assert_allclose(found.scores["model"]["mae"], 0, atol=1e-12)
    scores = found.scores["no change"]["mae"]
    row = next(
        r for r in found.rows(task="t", dataset="d") if (r.method, r.metric) == ("no change", "mae")
    )
    assert (row.n, row.value) == (2, pytest.approx(scores.mean()))
    within = measured.bulks.take(measured.bulks.covariates == "rpe1")
    by_hand = np.abs(within.row("g0").values - within.row("ctrl").values).mean()
    place = (found.names == "g0") & (found.covariates == "rpe1")
    assert scores[place] == pytest.approx(by_hand)
    found.write_each(tmp_path / "each.parquet")
    each = pd.read_parquet(tmp_path / "each.parquet")
    assert len(each) == 4 * len(found.scores)
    assert list(each)[:5] == ["perturbation", "covariate", "kind", "num_cells", "method"]
    line = each[(each["method"] == "no change") & (each["perturbation"] == "g0")]
    assert line.set_index("covariate")["mae"]["rpe1"] == pytest.approx(by_hand)
    broken = cells[~(other & (cells.obs["target"] == "ctrl"))].copy()
    broken.write_h5ad(tmp_path / "broken.h5ad")
    with pytest.raises(InputDataError, match="covariate 'rpe1' has no 'ctrl' cells"):
        compare(read_measured(tmp_path / "broken.h5ad", columns), table, tmp_path)


def test_genes_that_a_prediction_lacks_are_refused_or_left_out_for_all(measured, tmp_path):
    table = truth_table(measured)
    table["other"] = 1.0
    lacking = table.drop(columns=["g7", "g39"])
    lacking.loc[1, "g20"] = np.nan
    with pytest.raises(InputDataError, match="no value of 3 of 40 measured genes, such as 'g7'"):
        compare(measured, lacking, tmp_path)
    found = compare(measured, lacking, tmp_path, shared_genes=True)
    assert (found.num_genes, found.num_genes_left_out) == (37, 3)
    assert found.notes == ("1 predicted genes were not measured and are not scored.",)
    np.testing.assert_allclose(found.scores["model"]["delta_pearson"], 1)
    kept = np.setdiff1d(np.arange(40), [7, 20, 39])
    bulks = measured.bulks
    truth = bulks.values[measured.is_tested][:, kept]
    control = bulks.row("ctrl").values[0, kept]
    np.testing.assert_allclose(
        found.scores["no change"]["mae"], np.abs(truth - control).mean(axis=1)
    )
    with pytest.raises(InputDataError, match="None of the 1 genes"):
        compare(measured, table[["target", "other"]], tmp_path)
    nothing = table.assign(**dict.fromkeys(GENES, np.nan))
    with pytest.raises(InputDataError, match=r"no value of 40 of 40 .*Predict more of them"):
        compare(measured, nothing, tmp_path, shared_genes=True)


def test_another_total_is_noted(measured, tmp_path):
    table = truth_table(measured)
    table[GENES] = np.log1p(100 * np.expm1(table[GENES]))
    (note,) = compare(measured, table, tmp_path).notes
    assert "sums to 100 times the measured one" in note


def test_few_cells_and_nothing_to_learn_from_are_noted(tmp_path):
    made_cells(["ctrl"] * 4 + ["g0", "g1", "g1"]).write_h5ad(tmp_path / "cells.h5ad")
    measured = read_measured(tmp_path / "cells.h5ad", COLUMNS)
    bulks = measured.bulks.take(measured.bulks.names != "ctrl")
    table = pd.DataFrame(bulks.values, columns=GENES).assign(target=bulks.names)
    found = compare(measured, table, tmp_path)
    assert list(found.scores) == ["model", "no change"]
    assert "1 perturbations have a single cell" in found.notes[0]
    assert "no other baseline than the controls" in found.notes[1]
    mean = found.mean("model", "mae_de")
    assert mean is not None
    assert mean.num_cells == 1
    assert found.mean("model", "mae").num_cells == 2


def test_bad_files_are_refused_in_a_line(folder, measured, tmp_path):
    table = truth_table(measured)
    for broken, message in (
        (table.rename(columns={"target": "targt"}), "no column 'target'.*Did you mean 'targt'"),
        (table[table["target"] != "g2+g3"], "1 of 3 perturbations to test .* 'g2[+]g3'"),
        (table.assign(g3=np.inf), "infinite"),
        (table.assign(g3=812.0), "hold 812, which as a logarithm to base e"),
    ):
        with pytest.raises((InputDataError, UnknownNameError), match=message):
            compare(measured, broken, tmp_path)
    with pytest.raises(InputDataError, match="raw counts were said"):
        compare(measured, table, tmp_path, values="counts")
    with pytest.raises(UnknownNameError, match=r"no values 'log2'.*Did you mean 'log-2'"):
        compare(measured, table, tmp_path, values="log2")
    with pytest.raises(UsageError, match="'linear' is the name of a baseline"):
        compare(measured, table, tmp_path, model="linear")
    (tmp_path / "p.csv").write_text("a,b\n")
    (tmp_path / "p.parquet").write_text("no table")
    for name, error, message in (
        ("p.csv", UsageError, "give an .h5ad or a .parquet file"),
        ("no.parquet", MissingPathError, "There is no file"),
        ("p.parquet", InputDataError, "cannot be read as a Parquet table"),
    ):
        with pytest.raises(error, match=message):
            read_predicted(tmp_path / name, measured)


def test_genes_and_perturbed_genes_are_found_by_symbol(tmp_path):
    names = ["ctrl"] * 20 + ["S0", "S1", "S2", "S3"] * 8
    cells = made_cells([name.replace("S", "g") for name in names])
    cells.obs["target"] = names
    cells.var["gene_symbol"] = [f"S{i}" for i in range(40)]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    measured = read_measured(tmp_path / "cells.h5ad", COLUMNS)
    bulks = measured.bulks.take(np.isin(measured.bulks.names, ["S0", "S1"]))
    table = pd.DataFrame(bulks.values, columns=[f"S{i}" for i in range(40)])
    table = table.assign(target=bulks.names)
    found = compare(measured, table, tmp_path)
    np.testing.assert_allclose(found.scores["model"]["mae"], 0, atol=1e-12)
    assert "linear" in found.scores  # the perturbed genes are among the measured ones
    with pytest.raises(InputDataError, match="several columns of 1 genes, such as 'g0'"):
        compare(measured, table.assign(g0=1.0), tmp_path)


def test_bad_truth_is_refused_in_a_line(folder, tmp_path):
    made_cells(["ctrl", "g0", "g1"]).write_h5ad(tmp_path / "few.h5ad")
    wrong = ScreenColumns(perturbation="target", control="control")
    with pytest.raises(InputDataError, match="'target' has no 'control' there"):
        read_measured(tmp_path / "few.h5ad", wrong)
    with pytest.raises(UnknownNameError, match="Did you mean 'target'"):
        read_measured(tmp_path / "few.h5ad", ScreenColumns(perturbation="targt", control="ctrl"))
    store = folder / "cells.store"
    with pytest.raises(UsageError, match="is a store, which holds raw counts and no log-2 values"):
        read_measured(store, COLUMNS, values="log-2")
    with pytest.raises(UsageError, match="training cells teach the baselines"):
        read_measured(store, COLUMNS, split=folder / "pairs.parquet", query="train")
    with pytest.raises(InputDataError, match="No perturbed cell is in the split 'validation'"):
        read_measured(store, COLUMNS, split=folder / "pairs.parquet", query="validation")
    from omics.data import make_split, open_store

    make_split(open_store(store), seed=1).save(tmp_path / "random.parquet")
    with pytest.raises(InputDataError, match=r"perturbations, such as .* what is tested was seen"):
        read_measured(store, COLUMNS, split=tmp_path / "random.parquet")
    measured = read_measured(tmp_path / "few.h5ad", COLUMNS)
    one = pd.DataFrame(measured.bulks.values[1:2], columns=GENES).assign(target=["g0"])
    with pytest.raises(InputDataError, match=r"1 perturbation to score \(g0\)"):
        compare(measured, one, tmp_path)
    with pytest.raises(InputDataError, match=r"None of the predicted .*\['g77'\].*separator"):
        compare(measured, one.assign(target="g77"), tmp_path)


def test_controls_outside_training_are_not_learned_from(folder, tmp_path):
    cells = ad.read_h5ad(folder / "cells.h5ad")
    sides = np.where(np.isin(cells.obs["target"], ["g0", "g1"]), "test", "train").astype(object)
    controls = np.flatnonzero(cells.obs["target"] == "ctrl")
    sides[controls[:10]] = "test"
    cells.obs["side"] = sides
    cells.write_h5ad(tmp_path / "cells.h5ad")
    from omics.data import make_split

    store = convert(tmp_path / "cells.h5ad", tmp_path / "cells.store")
    make_split(store, column="side").save(tmp_path / "split.parquet")
    measured = read_measured(tmp_path / "cells.store", COLUMNS, split=tmp_path / "split.parquet")
    assert measured.bulks.row("ctrl").num_cells.tolist() == [len(controls) - 10]
    assert measured.bulks.names[measured.is_tested].tolist() == ["g0", "g1"]
