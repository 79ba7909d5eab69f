from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from omics.data.errors import InputDataError, MissingPathError, UnknownNameError
from omics.eval.report import render_report
from omics.eval.report_inputs import (
    FINE_TUNED,
    FROZEN,
    ReportRequest,
    gather_report,
    read_predictions,
    read_run,
)

LABEL = "bulk_labels"


@pytest.fixture
def predictions(pbmc, pbmc_split, tmp_path):
    """Predictions of the test cells, every tenth one wrong, in another order than the file."""
    rows = pbmc_split.rows("test")[::-1]
    classes = pbmc.obs[LABEL].astype(str).to_numpy()[rows].copy()
    classes[::10] = "Dendritic"
    folder = tmp_path / "predict"
    folder.mkdir()
    table = pd.DataFrame({"row": rows, "cell": pbmc.obs_names[rows], LABEL: classes})
    table[f"{LABEL}_probability"] = np.float32(0.9)
    table.to_parquet(folder / "predictions.parquet")
    return folder


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = ["step,epoch,phase,term,value"]
    for term in ("accuracy", "loss", *(f"extra_{i}" for i in range(6))):
        for step in (10, 20):
            lines += [
                f"{step},{step // 10},{phase},{term},0.5" for phase in ("validation", "train")
            ]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    (folder / "config.yaml").write_text("seed: 7\nname: größe\n", encoding="utf-8")
    facts = {
        "task": "finetune",
        "seconds": 300.0,
        "seed": 7,
        "device": "cpu",
        "versions": {"torch": "2.13"},
    }
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def no_umap(monkeypatch):
    """The first two dimensions in the place of UMAP, which has its own test."""

    def first_two(embedding, *, seed, max_cells=0):
        rows = np.flatnonzero(~np.isnan(embedding).any(axis=1))
        return rows, embedding[rows, :2]

    monkeypatch.setattr("omics.eval.report_inputs.umap_coordinates", first_two)


@pytest.mark.usefixtures("no_umap")
def test_a_report_of_real_cells_compares_all_methods(pbmc, pbmc_split, predictions, run_folder):
    request = ReportRequest(
        label=LABEL,
        dataset="pbmc",
        predictions=predictions,
        runs={"tuning": run_folder},
        commands=["omics-eval report"],
    )
    data = gather_report(pbmc, pbmc_split, request)
    assert [method.name for method in data.methods] == [
        FINE_TUNED,
        FROZEN,
        "PCA + logistic regression",
        "HVG + kNN",
        "majority class",
    ]
    assert data.model == FINE_TUNED
    assert {method.scores.num_cells for method in data.methods} == {140}
    accuracy = {method.name: method.scores.accuracy.value for method in data.methods}
    assert accuracy[FINE_TUNED] > 0.9
    assert accuracy["PCA + logistic regression"] >= 0.75
    assert data.differences["accuracy"].value == pytest.approx(
        accuracy[FINE_TUNED] - accuracy["PCA + logistic regression"]
    )
    assert sum(map(sum, data.cells.values())) == 700
    assert data.cells["Dendritic"] == [168, 24, 48]
    assert [panel.picture.alt.split(":")[0] for panel in data.panels] == [
        "Label",
        "Split",
        "Prediction",
    ]
    assert sum(key.num_cells for key in data.panels[2].keys) == 140
    assert dict(data.facts)["Bundle (sha256)"] == "ab" * 32
    assert any("Fewer than 10 test cells" in note for note in data.notes)
    assert [panel.method for panel in data.calibrations] == [
        FINE_TUNED,
        FROZEN,
        "PCA + logistic regression",
        "HVG + kNN",
    ]
    # The predictions are 0.9 sure of every cell, and right in a little more.
    assert data.calibrations[0].error.value == pytest.approx(accuracy[FINE_TUNED] - 0.9, abs=1e-6)
    assert data.calibrations[0].num_cells == 140
    levels = {level.threshold: level for level in data.trust}
    assert (levels[0.9].number, levels[0.95].number) == (140, 0)
    assert levels[0.8].accuracy.value == accuracy[FINE_TUNED]
    html = render_report(data)
    for part in ("tuning", "name: größe", "5.0 min", "torch 2.13", "omics-eval report"):
        assert part in html


@pytest.mark.usefixtures("no_umap")
def test_without_predictions_the_page_is_about_the_frozen_embedding(pbmc, pbmc_split):
    pbmc.obsm["X_omics"] = np.random.default_rng(0).normal(size=(700, 4)).astype(np.float32)
    pbmc.obsm["X_omics"][pbmc_split.rows("test")[:3]] = np.nan
    data = gather_report(pbmc, pbmc_split, ReportRequest(label=LABEL, dataset="pbmc"))
    assert data.model == FROZEN
    assert len(data.methods) == 4
    assert any("3 test cells have no embedding" in note for note in data.notes)
    html = render_report(data)
    assert "is worse than the plain baseline" in html


@pytest.mark.usefixtures("no_umap")
def test_predictions_without_a_confidence_and_a_threshold_of_the_file(
    pbmc, pbmc_split, predictions
):
    path = predictions / "predictions.parquet"
    pd.read_parquet(path).drop(columns=f"{LABEL}_probability").to_parquet(path)
    pbmc.uns[f"{LABEL}_unknown_below"] = 0.71828
    request = ReportRequest(label=LABEL, dataset="pbmc", predictions=predictions)
    data = gather_report(pbmc, pbmc_split, request)
    assert data.calibrations[0].method == FROZEN
    assert data.trust == []
    assert dict(data.facts)["Unknown in this file below a confidence of"] == "0.718"
    assert "What a threshold would leave" not in render_report(data)


@pytest.mark.usefixtures("no_umap")
def test_embeddings_stand_side_by_side(pbmc, pbmc_split):
    generator = np.random.default_rng(0)
    pbmc.obsm["X_random"] = generator.normal(size=(700, 4)).astype(np.float32)
    pbmc.obsm["X_random"][pbmc_split.rows("test")[:3]] = np.nan
    pbmc.obs["donor"] = generator.choice(["d1", "d2"], 700)
    request = ReportRequest(label=LABEL, dataset="pbmc", others=["X_random"], batch="donor")
    data = gather_report(pbmc, pbmc_split, request)
    ours, random = "X_omics + logistic regression", "X_random + logistic regression"
    assert [method.name for method in data.methods][:2] == [ours, random]
    assert data.model == ours
    assert list(data.comparisons) == [
        random,
        "PCA + logistic regression",
        "HVG + kNN",
        "majority class",
    ]
    difference = data.comparisons[random]["accuracy"]
    scores = {method.name: method.scores.accuracy.value for method in data.methods}
    assert difference.interval.value == pytest.approx(scores[ours] - scores[random])
    assert difference.p_holm < 0.001
    assert data.integration.methods == ("X_omics", "X_random", "PCA")
    assert data.integration.num_cells == 697
    assert [panel.picture.alt.split(":")[0] for panel in data.panels][-1] == "Label, X_random"
    assert dict(data.facts)["Bundle of X_omics (sha256)"] == "ab" * 32
    note = "3 test cells have no embedding in X_random (no expressed gene that the model knows)"
    assert any(each.startswith(note) for each in data.notes)
    html = render_report(data)
    assert f"It is better than {random}" in html
    assert data.integration.verdict() in html


@pytest.mark.usefixtures("no_umap")
def test_what_cannot_be_scored_is_said(pbmc, pbmc_split):
    train, test = pbmc_split.rows("train"), pbmc_split.rows("test")
    labels = pbmc.obs[LABEL].astype(object)
    labels.iloc[train[np.asarray(labels.iloc[train] == "CD34+")]] = None
    labels.iloc[test[np.asarray(labels.iloc[test] == "CD19+ B")]] = "Dendritic"
    pbmc.obs[LABEL] = labels
    notes = gather_report(pbmc, pbmc_split, ReportRequest(label=LABEL, dataset="d")).notes
    assert any(n.startswith("10 training or test cells have no label") for n in notes)
    assert any("No training cell is of the class CD34+" in n for n in notes)
    assert any("No test cell is of the class CD19+ B" in n for n in notes)


def test_too_few_embedded_cells_leave_the_umap_out(pbmc, pbmc_split):
    keep = pbmc_split.rows("train")[[0, 1, 3, 5]]
    embedding = np.full((700, 2), np.nan, np.float32)
    embedding[keep] = np.arange(8).reshape(4, 2)
    pbmc.obsm["X_omics"] = embedding
    data = gather_report(pbmc, pbmc_split, ReportRequest(label=LABEL, dataset="d"))
    assert data.panels == []
    assert "There is no UMAP: 4 cells have an embedding." in data.notes


@pytest.mark.usefixtures("no_umap")
def test_a_sample_is_owned_up_to(pbmc, pbmc_split, monkeypatch):
    monkeypatch.setattr("omics.eval.report_inputs.MAX_CELLS", 500)
    data = gather_report(pbmc, pbmc_split, ReportRequest(label=LABEL, dataset="d"))
    assert any("random sample of 700 of 700 embedded cells" in note for note in data.notes)


def test_predictions_are_put_where_their_cells_are(pbmc, pbmc_split, predictions):
    given = read_predictions(predictions, LABEL, pbmc)
    test = pbmc_split.rows("test")
    assert all(given.labels[row] is not None for row in test)
    assert sum(label is not None for label in given.labels) == 140
    truth = pbmc.obs[LABEL].astype(str).to_numpy()
    assert (given.labels[test] == truth[test]).mean() > 0.9
    assert (given.confidence[test] == np.float32(0.9)).all()
    assert np.isnan(given.confidence).sum() == 560


def test_a_test_cell_without_prediction_is_an_error(pbmc, pbmc_split, predictions):
    path = predictions / "predictions.parquet"
    pd.read_parquet(path).iloc[:100].to_parquet(path)
    request = ReportRequest(label=LABEL, dataset="d", predictions=predictions)
    with pytest.raises(InputDataError, match="no prediction for 40 of 140 test cells, first row"):
        gather_report(pbmc, pbmc_split, request)


def test_predictions_of_other_cells_are_refused(pbmc, predictions):
    shuffled = pbmc[np.random.default_rng(0).permutation(700)].copy()
    with pytest.raises(InputDataError, match=r"belongs to other cells: \d+ of 140 predictions"):
        read_predictions(predictions, LABEL, shuffled)
    with pytest.raises(InputDataError, match="belongs to other cells"):
        read_predictions(predictions, LABEL, pbmc[:10].copy())


def test_predictions_that_are_not_there_are_named(pbmc, predictions, tmp_path):
    with pytest.raises(MissingPathError, match="omics-train predict"):
        read_predictions(tmp_path, LABEL, pbmc)
    with pytest.raises(UnknownNameError, match=r"no column 'labels'. Did you mean 'bulk_labels'"):
        read_predictions(predictions, "labels", pbmc)
    (predictions / "predictions.parquet").write_text("nothing")
    with pytest.raises(InputDataError, match="not a Parquet file"):
        read_predictions(predictions, LABEL, pbmc)


def test_a_run_shows_its_loss_first_and_says_what_it_leaves_out(run_folder):
    run = read_run("tuning", run_folder)
    assert len(run.curves) == 6
    assert run.curves[0].alt.startswith("tuning: loss: loss by training step for train, validation")
    assert run.note == "Not drawn: extra_4, extra_5 (in history.csv)."
    assert ("Duration", "5.0 min") in run.facts
    assert run.configuration.endswith("größe\n")


def test_a_run_without_steps_is_shown(run_folder):
    (run_folder / "history.csv").write_text("step,epoch,phase,term,value\n")
    run = read_run("r", run_folder)
    assert run.curves == []
    assert run.note == "The run logged nothing."


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "history.csv"])
def test_a_run_folder_that_lacks_a_file_is_named(run_folder, name):
    (run_folder / name).unlink()
    with pytest.raises(MissingPathError, match=f"run 'r' has no .*{name}"):
        read_run("r", run_folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "{"),
        ("run.json", "[1]"),
        ("history.csv", "a,b\n1,2\n"),
        ("history.csv", ""),
        ("history.csv", "step,epoch,phase,term,value\nx,1,train,loss,0.5\n"),
        ("history.csv", "step,epoch,value\n1,1,0.5\n"),
    ],
)
def test_a_damaged_run_file_is_refused(run_folder, name, text):
    (run_folder / name).write_text(text)
    with pytest.raises(InputDataError, match=name):
        read_run("r", run_folder)
