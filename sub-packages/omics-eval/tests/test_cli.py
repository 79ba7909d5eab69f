from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from omics.data import convert, load_split, make_split, synthesize
from omics.eval import attribute
from omics.eval.embedding import embed
from omics.eval.results import read_results

LABEL = "bulk_labels"


@pytest.fixture
def pbmc_file(pbmc, tmp_path):
    pbmc.write_h5ad(tmp_path / "pbmc.h5ad")
    return tmp_path / "pbmc.h5ad"


@pytest.fixture
def split_file(pbmc_split, tmp_path):
    pbmc_split.save(tmp_path / "split.parquet")
    return tmp_path / "split.parquet"


@pytest.fixture
def no_umap(monkeypatch):
    def first_two(embedding, *, seed, max_cells=0):
        return np.arange(len(embedding)), embedding[:, :2]

    monkeypatch.setattr("omics.eval.report_inputs.umap_coordinates", first_two)


def test_embed_writes_a_file_with_everything_of_the_input(command, bundle_folder, tmp_path):
    cells = synthesize(30, 11, mean_genes=6, seed=1)
    cells.var_names = [f"G{i}" for i in range(11)]
    cells.write_h5ad(tmp_path / "in.h5ad")
    convert(tmp_path / "in.h5ad", tmp_path / "in.store")
    code, out, _ = command(
        "embed", tmp_path / "in.h5ad", "--model", bundle_folder, "--out", tmp_path / "out.h5ad"
    )
    assert code == 0
    assert "out.h5ad: 30 cells with obsm['X_omics']" in out
    assert "genes are among the 11 genes of the store (matched by id)" in out
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    assert (found.X != cells.X).nnz == 0
    assert found.obs["cell_type"].tolist() == cells.obs["cell_type"].tolist()
    code, _, _ = command(
        *("embed", tmp_path / "in.store", "--model", bundle_folder, "--key-added", "X_b"),
        *("--out", tmp_path / "store.h5ad", "--batch-size", 4, "--device", "cpu"),
    )
    assert code == 0
    from_store = ad.read_h5ad(tmp_path / "store.h5ad")
    assert np.array_equal(found.obsm["X_omics"], from_store.obsm["X_b"], equal_nan=True)


def test_embed_of_a_layer_and_of_genes(command, bundle_folder, tmp_path):
    cells = synthesize(30, 11, mean_genes=6, seed=1)
    cells.var_names = [f"G{i}" for i in range(11)]
    cells.write_h5ad(tmp_path / "in.h5ad")
    arguments = ("embed", tmp_path / "in.h5ad", "--model", bundle_folder)
    code, _, _ = command(
        *(*arguments, "--pooling", "mean", "--layer", -1, "--out", tmp_path / "mean.h5ad"),
        *("--batch-tokens", 40),
    )
    assert code == 0
    expected = embed(cells, bundle_folder, pooling="mean", layer=1).obsm["X_omics"]
    assert np.array_equal(ad.read_h5ad(tmp_path / "mean.h5ad").obsm["X_omics"], expected)
    code, out, _ = command(*arguments, "--level", "gene", "--out", tmp_path / "genes.parquet")
    assert (code, "genes.parquet: vectors of 11 genes" in out) == (0, True)
    assert len(pd.read_parquet(tmp_path / "genes.parquet")) == 11
    for wrong, message in (
        (("--layer", 2), "this model has the layers 0 (its inputs) to 1"),
        (("--pooling", "maen"), "Did you mean 'mean'"),
        (("--level", "gene", "--pooling", "mean"), "leave it out at --level gene"),
        (("--level", "gene"), "is no name of a table"),
        (("--precision", "half"), "Known: '32-true'"),
    ):
        code, _, error = command(*arguments, *wrong, "--out", tmp_path / "no.h5ad")
        assert (code, message in error) == (2, True), error
        assert not (tmp_path / "no.h5ad").exists()


def test_embed_refuses_an_output_before_it_works(command, bundle_folder, pbmc_file, tmp_path):
    (tmp_path / "there.h5ad").write_text("mine")
    arguments = ("embed", pbmc_file, "--model", bundle_folder, "--out")
    code, _, error = command(*arguments, tmp_path / "there.h5ad")
    assert code == 2
    assert "there.h5ad exists; choose another path or add --overwrite." in error
    assert (tmp_path / "there.h5ad").read_text() == "mine"
    code, _, error = command(*arguments, tmp_path / "no" / "out.h5ad")
    assert (code, "There is no folder" in error) == (2, True)
    code, _, error = command(*arguments, tmp_path)
    assert (code, "is a folder; give the path of a file" in error) == (2, True)


def test_embed_says_when_the_key_is_taken(command, bundle_folder, pbmc_file, tmp_path):
    code, _, error = command(
        "embed", pbmc_file, "--model", bundle_folder, "--out", tmp_path / "o.h5ad"
    )
    assert code == 2
    assert "obsm already holds 'X_omics'" in error
    assert not (tmp_path / "o.h5ad").exists()


def test_annotate_writes_labels_and_scores(command, pbmc_file, split_file, pbmc_split, tmp_path):
    code, out, error = command(
        *("annotate", pbmc_file, "--label", LABEL, "--split", split_file),
        *("--out", tmp_path / "out.h5ad", "--results", tmp_path / "results.parquet"),
    )
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "140 test cells, 95% intervals"
    assert [line.split("  ")[0] for line in lines[2:7]] == [
        "X_omics + logistic",
        "PCA + logistic regression",
        "HVG + kNN",
        "majority class",
        "X_omics + logistic minus PCA + logistic regression",
    ]
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    rest = np.setdiff1d(np.arange(700), pbmc_split.rows("train"))
    assert found.obs[f"{LABEL}_pred"].notna().all()
    assert found.obs[f"{LABEL}_confidence"].notna().to_numpy()[rest].all()
    rows = read_results(tmp_path / "results.parquet")
    test = pbmc_split.rows("test")
    right = (
        found.obs[f"{LABEL}_pred"].astype(str).to_numpy()[test]
        == found.obs[LABEL].astype(str).to_numpy()[test]
    )
    assert rows[0].value == pytest.approx(right.mean())
    assert rows[0].bundle == "ab" * 32
    assert rows[0].dataset == "pbmc.h5ad"
    assert f"{rows[0].value:.3f} [{rows[0].low:.3f}, {rows[0].high:.3f}]" in lines[2]


def test_annotate_calls_unsure_cells_unknown_and_tells_what_it_is_worth(
    command, pbmc_file, split_file, pbmc_split, tmp_path
):
    code, out, _ = command(
        *("annotate", pbmc_file, "--label", LABEL, "--split", split_file),
        *("--min-accuracy", "0.9", "--out", tmp_path / "out.h5ad"),
        *("--results", tmp_path / "results.parquet"),
    )
    assert code == 0
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    test = pbmc_split.rows("test")
    given, closest, truth = (
        found.obs[name].astype(str).to_numpy()[test]
        for name in (f"{LABEL}_pred", f"{LABEL}_closest", LABEL)
    )
    rows = {row.metric: row for row in read_results(tmp_path / "results.parquet")[-3:]}
    assert set(rows) == {"calibration_error", "answered", "accuracy_of_answered"}
    known = given != "unknown"
    assert rows["answered"].value == pytest.approx(known.mean())
    assert rows["accuracy_of_answered"].value == pytest.approx((given == truth)[known].mean())
    assert rows["accuracy_of_answered"].n == known.sum()
    first = read_results(tmp_path / "results.parquet")[0]
    assert first.value == pytest.approx((closest == truth).mean())
    assert "unknown below" in out
    assert f"{rows['answered'].value:.3f} [" in out


@pytest.mark.parametrize("method", ["knn", "centroid"])
def test_annotate_as_json(command, pbmc_file, split_file, tmp_path, method):
    code, out, _ = command(
        *("annotate", pbmc_file, "--label", LABEL, "--split", split_file, "--method", method),
        *("--query", "validation", "--out", tmp_path / "out.h5ad", "--json"),
    )
    assert code == 0
    record = json.loads(out)
    assert record["query"] == "validation"
    assert {row["n"] for row in record["results"]} == {70}
    assert record["results"][0]["method"] == f"X_omics + {method}"
    assert record["results"][0]["value"] > 0.5


def test_annotate_keeps_earlier_labels_unless_told(command, pbmc, split_file, tmp_path):
    pbmc.obs[f"{LABEL}_pred"] = "mine"
    pbmc.write_h5ad(tmp_path / "in.h5ad")
    arguments = (
        *("annotate", tmp_path / "in.h5ad", "--label", LABEL, "--split", split_file),
        *("--out", tmp_path / "o.h5ad"),
    )
    code, _, error = command(*arguments)
    assert code == 2
    assert f"obs already holds '{LABEL}_pred'" in error
    assert command(*arguments, "--overwrite")[0] == 0


def test_a_mistyped_column_names_the_nearest(command, pbmc_file, split_file, tmp_path):
    for verb in ("annotate", "report"):
        code, _, error = command(
            *(verb, pbmc_file, "--label", "bulk_lables", "--split", split_file),
            *("--out", tmp_path / "out"),
        )
        assert code == 2
        assert "no column 'bulk_lables'" in error
        assert "Did you mean 'bulk_labels'?" in error


def test_a_split_of_another_dataset_is_refused(command, pbmc, split_file, tmp_path):
    pbmc[:100].copy().write_h5ad(tmp_path / "part.h5ad")
    code, _, error = command(
        *("report", tmp_path / "part.h5ad", "--label", LABEL, "--split", split_file),
        *("--out", tmp_path / "r.html"),
    )
    assert code == 3
    assert "The split belongs to another dataset: it lists 700 cells and the file has 100" in error


def test_a_column_of_one_class_is_refused(command, pbmc, split_file, tmp_path):
    pbmc.obs["only"] = "same"
    pbmc.write_h5ad(tmp_path / "in.h5ad")
    for verb in ("annotate", "report"):
        code, _, error = command(
            *(verb, tmp_path / "in.h5ad", "--label", "only", "--split", split_file),
            *("--out", tmp_path / "out"),
        )
        assert code == 3
        assert "hold only 'same': at least two classes are needed" in error


def test_a_file_of_another_kind_is_refused(command, split_file, tmp_path):
    (tmp_path / "page.h5ad").write_text("<!doctype html><p>404")
    code, _, error = command(
        *("report", tmp_path / "page.h5ad", "--label", LABEL, "--split", split_file),
        *("--out", tmp_path / "r.html"),
    )
    assert code == 3
    assert "page.h5ad" in error
    code, _, error = command(
        *("report", tmp_path / "absent.h5ad", "--label", LABEL, "--split", split_file),
        *("--out", tmp_path / "r.html"),
    )
    assert code == 2
    assert "absent.h5ad" in error


def test_scaled_values_have_no_baselines(command, pbmc, split_file, tmp_path):
    pbmc.X = pbmc.X.log1p()
    pbmc.write_h5ad(tmp_path / "in.h5ad")
    code, _, error = command(
        *("report", tmp_path / "in.h5ad", "--label", LABEL, "--split", split_file),
        *("--out", tmp_path / "r.html"),
    )
    assert code == 3
    assert "Counts are needed, and none of X holds whole non-negative numbers" in error


@pytest.mark.usefixtures("no_umap")
def test_report_compares_files_or_keys(command, pbmc, pbmc_file, split_file, tmp_path):
    pbmc.obsm["X_omics"] = np.random.default_rng(0).normal(size=(700, 3)).astype(np.float32)
    pbmc.write_h5ad(tmp_path / "noise.h5ad")
    shared = ("--label", LABEL, "--split", split_file)
    out = tmp_path / "report.html"
    code, _, error = command("report", pbmc_file, tmp_path / "noise.h5ad", *shared, "--out", out)
    assert (code, error) == (0, "")
    html = out.read_text(encoding="utf-8")
    for part in ("pbmc + logistic regression", "It is better than noise + logistic regression"):
        assert part in html
    code, _, error = command(
        *("report", pbmc_file, tmp_path / "noise.h5ad", *shared),
        *("--use-rep", "X_omics", "--use-rep", "X_other", "--out", tmp_path / "no.html"),
    )
    assert (code, "one file with several: not both at once" in error) == (2, True)


@pytest.mark.usefixtures("no_umap")
def test_report_writes_one_page_and_names_it(command, pbmc, pbmc_file, pbmc_split, tmp_path):
    pbmc_split.save(tmp_path / "split.parquet")
    test = pbmc_split.rows("test")
    (tmp_path / "predict").mkdir()
    pd.DataFrame(
        {
            "row": test,
            "cell": pbmc.obs_names[test],
            LABEL: pbmc.obs[LABEL].astype(str).to_numpy()[test],
        }
    ).to_parquet(tmp_path / "predict" / "predictions.parquet")
    run = tmp_path / "run"
    run.mkdir()
    (run / "history.csv").write_text("step,epoch,phase,term,value\n5,1,train,loss,0.25\n")
    (run / "config.yaml").write_text("seed: 41\n")
    (run / "run.json").write_text('{"task": "pretrain", "seconds": 8.0}')
    arguments = (
        *("report", pbmc_file, "--label", LABEL, "--split", tmp_path / "split.parquet"),
        *("--predictions", tmp_path / "predict", "--run", f"pretraining={run}"),
        *("--command", "first command", "--command", "second command"),
        *("--out", tmp_path / "report.html"),
    )
    code, out, error = command(*arguments)
    assert (code, error) == (0, "")
    assert out.splitlines()[-1] == str(tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in ("fine-tuned model is better", "seed: 41", "first command\nsecond command"):
        assert part in html
    assert "<script" not in html
    code, _, error = command(*arguments)
    assert (code, "exists" in error) == (2, True)
    assert command(*arguments, "--overwrite")[0] == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html


@pytest.mark.parametrize("text", ["noequals", "=folder", "name="])
def test_a_run_that_is_not_name_and_folder_is_refused(
    command, pbmc_file, split_file, tmp_path, text
):
    code, _, error = command(
        *("report", pbmc_file, "--label", LABEL, "--split", split_file),
        *("--run", text, "--out", tmp_path / "r.html"),
    )
    assert code == 2
    assert f"--run {text!r} is not NAME=PATH" in error


def test_two_runs_of_one_name_are_refused(command, pbmc_file, split_file, tmp_path):
    code, _, error = command(
        *("report", pbmc_file, "--label", LABEL, "--split", split_file),
        *("--run", "a=x", "--run", "a=y", "--out", tmp_path / "r.html"),
    )
    assert (code, "names 'a' twice" in error) == (2, True)


def test_help_of_every_verb_is_in_sentences(command):
    for verb in ("embed", "annotate", "report"):
        code, out, _ = command(verb, "--help")
        assert code == 0
        assert "--out" in out


def test_attribute_writes_tables_and_says_what_they_hold(command, planted_cells, tmp_path):
    store, bundle = planted_cells.store, planted_cells.bundle
    make_split(store, stratify="cell_type", seed=0).save(tmp_path / "split.parquet")
    arguments = ("attribute", store.path, "--model", bundle.path, "--steps", 4, "--top", 5)
    code, out, _ = command(
        *(*arguments, "--split", tmp_path / "split.parquet", "--max-cells", 12, "--seed", 2),
        *("--class", "type1", "--class", "type2", "--targets", "every", "--out", tmp_path / "out"),
        *("--baseline", "zero", "--device", "cpu", "--model", bundle.path),
    )
    assert code == 0
    expected = attribute(
        store,
        bundle,
        rows=load_split(tmp_path / "split.parquet").rows("test"),
        steps=4,
        num_top=5,
        max_cells=12,
        seed=2,
        device="cpu",
        classes=["type1", "type2"],
        targets="every",
        baseline="zero",
    )
    scores = pd.read_parquet(tmp_path / "out/attributions.parquet")
    assert np.array_equal(scores["score"], expected.scores["score"])
    for line in expected.lines():
        assert line in out
    assert "top_genes_shared_by_bundles (type1): 1, n 12" in out
    code, _, error = command(*arguments, "--out", tmp_path / "out")
    assert (code, "attributions.parquet exists already" in error) == (2, True)
    for wrong, message in (
        (("--query", "test"), "add --split FILE"),
        (("--label", "celltype"), "Did you mean 'cell_type'"),
        (("--method", "rollout", "--baseline", "none"), "'none' is not one of"),
    ):
        code, _, error = command(*arguments, *wrong, "--out", tmp_path / "no")
        assert (code, message in error) == (2, True), error
        assert not (tmp_path / "no").exists()
