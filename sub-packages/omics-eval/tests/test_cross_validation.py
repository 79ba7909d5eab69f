"""Labelled cells answered by the other folds: nothing of a cell leaks into its own answer."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from omics.data.errors import InputDataError, UnknownNameError
from omics.eval.annotating.cross_validation import annotate_folds, fold_thresholds
from omics.eval.annotation import METHODS
from omics.eval.baselines import PCA_LOGISTIC, counts_of, log_normalise, pca_logistic
from omics.eval.comparison import (
    LabelledFolds,
    baseline_predictions,
    labelled_cells,
    labelled_folds,
    result_rows,
)

LABEL = "bulk_labels"


def _donors(number=240, *, seed=0, num_donors=6):
    """Cells of two classes in donors that share no cell: each donor is a point of its own."""
    random = np.random.default_rng(seed)
    donor = np.arange(number) % num_donors
    kind = (donor // 2 + np.arange(number) // num_donors) % 2
    points = 8.0 * np.eye(num_donors)[donor] + 0.1 * random.normal(size=(number, num_donors))
    obs = pd.DataFrame(
        {"kind": np.array(["a", "b"])[kind], "donor": [f"d{d}" for d in donor]},
        index=[f"c{i}" for i in range(number)],
    )
    return ad.AnnData(obs=obs, obsm={"X_omics": points.astype(np.float32)})


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_leak_has_no_effect(clouds, method):
    points, labels = clouds()
    obs = pd.DataFrame({"kind": labels}, index=[f"c{i}" for i in range(90)])
    cells = ad.AnnData(obs=obs, obsm={"X_omics": points})
    folds = labelled_folds(cells, label="kind", num_folds=3)
    annotate_folds(cells, folds, key="kind", method=method)
    before = cells.obs["kind_confidence"].to_numpy()
    # Its own label, its embedding's scale and that of the others of its fold: none may matter.
    inside = folds.folds == 1
    first = np.flatnonzero(inside)[0]
    changed = folds.labels.copy()
    changed[inside] = "type 0"
    leaky = LabelledFolds(
        labels=changed,
        classes=folds.classes,
        query=folds.query,
        query_name="held-out",
        unlabelled=0,
        folds=folds.folds,
    )
    cells.obsm["X_omics"][np.flatnonzero(inside)[1:]] *= 1000
    annotate_folds(cells, leaky, key="leaky", method=method)
    assert cells.obs["leaky_confidence"].to_numpy()[first] == before[first]
    assert cells.obs["leaky_pred"].iloc[first] == labels[first]


def test_donors_held_out_whole_show_what_cells_would_hide():
    cells = _donors()
    donor = cells.obs["donor"].to_numpy()
    # The class is a property of the donor: known from its other cells, and to nobody else.
    cells.obs["kind"] = np.where(np.isin(donor, ["d0", "d1", "d2"]), "a", "b")
    right = {}
    for groups in (None, "donor"):
        folds = labelled_folds(cells, label="kind", num_folds=3, groups=groups)
        annotate_folds(cells, folds, key=f"by {groups}")
        right[groups] = (cells.obs[f"by {groups}_pred"] == cells.obs["kind"]).mean()
    assert right[None] == 1.0
    assert right["donor"] < 0.8


def test_cells_without_a_label_are_answered_and_not_scored(clouds):
    points, labels = clouds()
    labels = labels.copy()
    labels[:10] = None
    obs = pd.DataFrame({"kind": labels}, index=[f"c{i}" for i in range(90)])
    cells = ad.AnnData(obs=obs, obsm={"X_omics": points})
    cells.obsm["X_omics"][20] = np.nan
    folds = labelled_folds(cells, label="kind", num_folds=4)
    assert (len(folds.query), folds.unlabelled) == (80, 10)
    annotate_folds(cells, folds, key="kind")
    truth = [f"type {i % 3}" for i in range(90)]
    given = cells.obs["kind_pred"].astype(object).to_numpy()
    assert [i for i in range(90) if given[i] != truth[i]] == [20]
    assert np.flatnonzero(np.isnan(cells.obs["kind_confidence"])).tolist() == [20]


def test_a_threshold_of_a_fold_is_found_on_the_others():
    folds = LabelledFolds(
        labels=np.array(["a"] * 400, dtype=object),
        classes=("a",),
        query=np.arange(400),
        query_name="held-out",
        unlabelled=0,
        folds=np.repeat([0, 1], 200),
    )
    confidence = np.tile(np.linspace(0, 1, 200), 2)
    # In fold 0 every answer is right, in fold 1 those above one half.
    right = np.concatenate([np.ones(200, bool), confidence[200:] > 0.5])
    overall, thresholds = fold_thresholds(folds, confidence, right, num_cells=401, min_accuracy=0.9)
    assert thresholds[200] == 0.0
    assert 0.4 < thresholds[0] < 0.5
    assert thresholds[0] > overall
    assert thresholds[400] == overall
    assert len(set(thresholds[:200])) == len(set(thresholds[200:400])) == 1


def test_unsure_cells_are_unknown_by_the_threshold_of_their_fold():
    random = np.random.default_rng(0)
    codes = random.integers(0, 2, 3000)
    points = random.normal(size=(3000, 3)) + 1.2 * codes[:, None]
    obs = pd.DataFrame({"kind": np.array(["a", "b"])[codes]}, index=np.arange(3000).astype(str))
    cells = ad.AnnData(obs=obs, obsm={"X_omics": points.astype(np.float32)})
    folds = labelled_folds(cells, label="kind", num_folds=5)
    annotate_folds(cells, folds, key="kind", min_accuracy=0.92)
    given = cells.obs["kind_pred"].astype(str)
    known = given != "unknown"
    assert 0.1 < known.mean() < 0.9
    assert (given == cells.obs["kind"])[known].mean() > 0.91
    assert cells.obs["kind_closest"].isin(["a", "b"]).all()
    assert 0.5 < cells.uns["kind_unknown_below"] < 1


def test_baselines_are_fitted_to_the_other_folds_alone(pbmc):
    folds = labelled_folds(pbmc, label=LABEL, num_folds=3)
    baselines = baseline_predictions(counts_of(pbmc)[0], folds)
    taught, asked = folds.query[folds.folds != 2], folds.query[folds.folds == 2]
    by_hand = pca_logistic(
        log_normalise(pbmc.X[taught]), folds.labels[taught], log_normalise(pbmc.X[asked])
    )
    given = baselines[PCA_LOGISTIC]
    assert given.labels[folds.folds == 2].tolist() == by_hand.labels.tolist()
    assert np.array_equal(given.confidence[folds.folds == 2], by_hand.confidence)
    rows = result_rows(
        folds.truth, {n: a.labels for n, a in baselines.items()}, task="t", dataset="d"
    )
    assert {row.n for row in rows} == {700}


def test_a_class_within_one_fold_is_named():
    cells = _donors()
    cells.obs.loc[cells.obs["donor"] == "d3", "kind"] = "rare"
    assert labelled_folds(cells, label="kind", num_folds=3, groups="donor").untaught == ["rare"]
    assert labelled_folds(cells, label="kind", num_folds=3).untaught == []


def test_columns_that_do_not_serve_are_refused():
    cells = _donors()
    with pytest.raises(InputDataError, match=r"are of 6 groups, which cannot .* in 7 folds"):
        labelled_folds(cells, label="kind", num_folds=7, groups="donor")
    with pytest.raises(UnknownNameError, match="Did you mean 'donor'"):
        labelled_folds(cells, label="kind", num_folds=2, groups="doner")
    cells.obs["one"] = "same"
    with pytest.raises(InputDataError, match="hold only 'same': at least two classes"):
        labelled_folds(cells, label="one", num_folds=2)
    with pytest.raises(InputDataError, match="are of 1 group, which"):
        labelled_folds(cells, label="kind", num_folds=2, groups="one")
    cells.obs["none"] = None
    with pytest.raises(InputDataError, match="None of the 240 cells has a label in obs"):
        labelled_cells(cells, label="none")
    cells.obs.iloc[3, cells.obs.columns.get_loc("donor")] = None
    with pytest.raises(
        InputDataError, match="1 of 240 labelled cells have no 'donor', first row 3"
    ):
        labelled_folds(cells, label="kind", num_folds=2, groups="donor")
    # A cell without a label needs no donor.
    cells.obs.iloc[3, cells.obs.columns.get_loc("kind")] = None
    assert labelled_folds(cells, label="kind", num_folds=2, groups="donor").unlabelled == 1


def test_folds_that_leave_one_class_to_learn_are_refused():
    cells = _donors(num_donors=2)
    cells.obs["kind"] = np.where(cells.obs["donor"] == "d0", "a", "b")
    folds = labelled_folds(cells, label="kind", num_folds=2, groups="donor")
    with pytest.raises(InputDataError, match=r"hold only '[ab]': at least two classes"):
        annotate_folds(cells, folds, key="kind")
