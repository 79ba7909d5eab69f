"""`omics-eval annotate` without a split, by a model's head, and in an ontology."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from omics.data import make_split
from omics.eval.baselines import PCA_LOGISTIC
from omics.eval.results import read_results

LABEL = "bulk_labels"
OBO = "format-version: 1.2\nontology: tiny\n" + "".join(
    f"\n[Term]\nid: {term}\nname: {name}\n" + "".join(f"is_a: {above}\n" for above in parents)
    for term, name, parents in (
        ("C:0", "cell", []),
        ("C:1", "inner", ["C:0"]),
        ("C:2", "type0", ["C:1"]),
        ("C:3", "type1", ["C:1"]),
        ("C:4", "type2", ["C:0"]),
    )
)


@pytest.fixture
def pbmc_file(pbmc, tmp_path):
    pbmc = pbmc[:350].copy()
    pbmc.obs["donor"] = np.array([f"d{i % 7}" for i in range(350)])
    pbmc.obs.iloc[:30, 0] = None
    pbmc.write_h5ad(tmp_path / "pbmc.h5ad")
    return tmp_path / "pbmc.h5ad"


@pytest.fixture
def planted_file(planted_cells, tmp_path):
    """Cells of the planted bundle, with an embedding that knows their types."""
    adata = planted_cells.adata.copy()
    codes = np.unique(adata.obs["cell_type"], return_inverse=True)[1]
    noise = np.random.default_rng(0).normal(size=(adata.n_obs, 3))
    adata.obsm["X_omics"] = (3 * np.eye(3)[codes] + noise).astype(np.float32)
    adata.write_h5ad(tmp_path / "planted.h5ad")
    make_split(planted_cells.store, stratify="cell_type", seed=0).save(tmp_path / "split.parquet")
    return tmp_path / "planted.h5ad"


def test_folds_score_every_labelled_cell_and_donors_make_the_intervals(
    command, pbmc_file, tmp_path
):
    scores = {}
    for name, options in (("cells", ()), ("donors", ("--groups", "donor"))):
        code, out, error = command(
            *("annotate", pbmc_file, "--label", LABEL, "--folds", 3, *options, "--seed", 1),
            *("--out", tmp_path / f"{name}.h5ad", "--results", tmp_path / f"{name}.parquet"),
        )
        assert (code, error) == (0, "")
        assert out.splitlines()[0] == "320 held-out cells, 95% intervals"
        scores[name] = {(r.method, r.metric): r for r in read_results(tmp_path / f"{name}.parquet")}
    assert "Intervals are over 7 groups of donor." in out
    found = ad.read_h5ad(tmp_path / "donors.h5ad")
    assert found.obs[f"{LABEL}_pred"].notna().all()
    truth = found.obs[LABEL].astype(object).to_numpy()
    right = (found.obs[f"{LABEL}_pred"].astype(object).to_numpy() == truth)[30:]
    row = scores["donors"]["X_omics + logistic", "accuracy"]
    assert row.value == pytest.approx(right.mean())
    assert 0.6 < row.value < 1
    by_donor = [right[found.obs["donor"].to_numpy()[30:] == f"d{d}"].mean() for d in range(7)]
    assert min(by_donor) <= row.low < row.value < row.high <= max(by_donor)
    for method in (PCA_LOGISTIC, f"X_omics + logistic minus {PCA_LOGISTIC}"):
        metric = "accuracy" if method == PCA_LOGISTIC else "accuracy_difference"
        assert scores["donors"][method, metric].n == 320
    # Wilson's interval is of cells.
    share = scores["cells"]["X_omics + logistic", "accuracy"]
    z = 1.959964
    centre = (share.value + z**2 / (2 * 320)) / (1 + z**2 / 320)
    assert (share.low + share.high) / 2 == pytest.approx(centre, abs=1e-6)


def test_a_head_labels_and_is_scored_beside_what_the_labels_teach(
    command, planted_cells, planted_file, tmp_path
):
    (tmp_path / "t.obo").write_text(OBO)
    code, out, error = command(
        *("annotate", planted_file, "--label", "cell_type", "--method", "head", "--device", "cpu"),
        *("--model", planted_cells.bundle.path, "--split", tmp_path / "split.parquet"),
        *("--min-accuracy", "0.8", "--ontology", tmp_path / "t.obo"),
        *("--out", tmp_path / "out.h5ad", "--results", tmp_path / "r.parquet"),
    )
    assert (code, error) == (0, "")
    rows = read_results(tmp_path / "r.parquet")
    accuracy = {row.method: row for row in rows if row.metric == "accuracy"}
    assert next(iter(accuracy)) == "label head"
    assert {PCA_LOGISTIC, "majority class"} < set(accuracy)
    assert accuracy["label head"].bundle == planted_cells.bundle.digest
    assert accuracy["label head"].value > 0.7
    metrics = {row.metric for row in rows if row.method == "label head"}
    assert metrics >= {"calibration_error", "answered", "lineage_accuracy", "hierarchical_f1"}
    lineage = {row.method: row.value for row in rows if row.metric == "exact_term"}
    assert lineage["label head"] == accuracy["label head"].value
    for part in ("same lineage", "steps away", "unknown below", "label head minus PCA"):
        assert part in out
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    assert found.obs["cell_type_confidence"].notna().all()
    assert found.obs["cell_type_closest"].notna().all()


def test_a_head_needs_no_labels(command, planted_cells, planted_file, tmp_path):
    arguments = ("annotate", planted_file, "--method", "head", "--head", "cell_type")
    arguments += ("--model", planted_cells.bundle.path)
    code, out, _ = command(*arguments, "--label", "guess", "--out", tmp_path / "o.h5ad", "--json")
    assert code == 0
    record = json.loads(out)
    assert (record["results"], record["query"]) == ([], "")
    assert record["notes"] == ["obs has no column 'guess': the cells are labelled, and not scored."]
    found = ad.read_h5ad(tmp_path / "o.h5ad")
    assert (found.obs["guess_pred"].astype(str) == found.obs["cell_type"]).mean() > 0.7
    code, _, error = command(
        *(*arguments, "--label", "guess", "--results", tmp_path / "r.parquet"),
        *("--out", tmp_path / "no.h5ad"),
    )
    assert (code, "obs has no column 'guess'" in error) == (2, True)
    code, out, _ = command(*arguments, "--label", "cell_type", "--out", tmp_path / "all.h5ad")
    assert code == 0
    assert "400 labelled cells, 95% intervals" in out
    assert "fair if the model has seen none of them" in out
    assert "PCA" not in out


def test_classes_that_a_head_does_not_know_are_named(
    command, planted_cells, planted_file, tmp_path
):
    adata = ad.read_h5ad(planted_file)
    kinds = adata.obs["cell_type"].astype(str).to_numpy()
    kinds[:8] = "stranger"
    adata.obs["cell_type"] = kinds
    adata.obs["donor"] = "only"
    adata.write_h5ad(tmp_path / "in.h5ad")
    code, out, _ = command(
        *("annotate", tmp_path / "in.h5ad", "--label", "cell_type", "--method", "head"),
        *("--model", planted_cells.bundle.path, "--folds", 3, "--out", tmp_path / "o.h5ad"),
    )
    assert code == 0
    assert "The head knows no class 'stranger': its 8 held-out cells count as wrong." in out
    assert "majority class" in out
    code, out, _ = command(
        *("annotate", tmp_path / "in.h5ad", "--label", "cell_type", "--method", "knn"),
        *("--split", tmp_path / "split.parquet", "--groups", "donor", "--out", tmp_path / "k.h5ad"),
    )
    assert code == 0
    assert "All test cells are of one donor: intervals are over cells." in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "Say which cells teach logistic: --split FILE"),
        (("--folds", 3, "--split", "SPLIT"), "both say which cells teach"),
        (("--folds", 3, "--query", "test"), "--query test is a part of a split"),
        (("--folds", 3, "--model", "b"), "--model is of --method head"),
        (("--folds", 3, "--device", "cpu"), "--device is of --method head"),
        (("--method", "head"), "add --model, a fine-tuned bundle"),
        (("--method", "head", "--model", "b", "--use-rep", "X"), "leave --use-rep out"),
        (("--folds", 3, "--ontology", "none.obo"), "There is no ontology file none.obo"),
        (("--folds", 9, "--groups", "batch"), "cannot be held out whole in 9 folds"),
        (("--folds", 3, "--ontology", "OBO"), "None of the 3 labels, such as 'type0', is an id"),
        (("--method", "head", "--model", "BUNDLE", "--head", "cel"), "has no head 'cel'"),
    ],
)
def test_bad_input_ends_in_a_line(command, planted_cells, planted_file, tmp_path, options, message):
    (tmp_path / "t.obo").write_text(OBO.replace("name: type", "name: kind "))
    paths = {
        "SPLIT": tmp_path / "split.parquet",
        "OBO": tmp_path / "t.obo",
        "BUNDLE": planted_cells.bundle.path,
    }
    given = [paths.get(option, option) for option in options]
    code, _, error = command(
        *("annotate", planted_file, "--label", "cell_type", *given, "--out", tmp_path / "no.h5ad")
    )
    assert code in (2, 3)
    assert message in error
    assert not (tmp_path / "no.h5ad").exists()


def test_a_class_of_one_cell_is_held_out_once_and_wrong(command, planted_file, tmp_path):
    adata = ad.read_h5ad(planted_file)
    kinds = adata.obs["cell_type"].astype(object)
    kinds.iloc[0] = "single"
    adata.obs["cell_type"] = pd.Categorical(kinds)
    adata.write_h5ad(tmp_path / "in.h5ad")
    code, out, _ = command(
        *("annotate", tmp_path / "in.h5ad", "--label", "cell_type", "--folds", 4),
        *("--out", tmp_path / "o.h5ad"),
    )
    assert code == 0
    assert "All cells of the class 'single' lie in one fold, so that none teaches it" in out
    assert ad.read_h5ad(tmp_path / "o.h5ad").obs["cell_type_pred"].iloc[0] != "single"
