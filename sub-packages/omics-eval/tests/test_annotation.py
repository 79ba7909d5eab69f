from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from omics.data.errors import InputDataError, UnknownNameError, UsageError
from omics.eval.annotation import METHODS, annotate, label_column, transfer_labels


@pytest.mark.parametrize("method", METHODS)
def test_distinct_clouds_are_told_apart(clouds, method):
    points, labels = clouds()
    given = transfer_labels(points[:45], labels[:45], points[45:], method=method)
    assert given.labels.tolist() == labels[45:].tolist()
    assert given.confidence.dtype == np.float32
    assert (given.confidence > 0.5).all()
    assert (given.confidence <= 1).all()
    assert given.classes == ("type 0", "type 1", "type 2")


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_between_two_classes_is_less_sure(clouds, method):
    points, labels = clouds(spread=1.5)
    first, second = points[labels == "type 0"].mean(axis=0), points[labels == "type 1"].mean(axis=0)
    given = transfer_labels(points, labels, np.stack([first, (first + second) / 2]), method=method)
    assert given.confidence[1] < given.confidence[0]


@pytest.mark.parametrize("method", METHODS)
def test_nan_cells_get_no_label_and_teach_nothing(clouds, method):
    points, labels = clouds()
    query = points[45:].copy()
    query[3] = np.nan
    query[4, 0] = np.nan
    reference = points[:45].copy()
    clean = transfer_labels(reference[1:], labels[1:45], query, method=method)
    reference[0] = np.nan
    given = transfer_labels(reference, labels[:45], query, method=method)
    assert np.flatnonzero([label is None for label in given.labels]).tolist() == [3, 4]
    assert np.flatnonzero(np.isnan(given.confidence)).tolist() == [3, 4]
    assert np.array_equal(given.labels, clean.labels)


def test_all_query_cells_may_be_nan(clouds):
    points, labels = clouds()
    given = transfer_labels(points, labels, np.full((2, 6), np.nan, np.float32))
    assert given.labels.tolist() == [None, None]


def test_infinite_embeddings_are_a_fault(clouds):
    points, labels = clouds()
    broken = points.copy()
    broken[7, 2] = np.inf
    with pytest.raises(InputDataError, match="infinite values in 1 of 90 cells, first in row 7"):
        transfer_labels(broken, labels, points)


def test_one_class_cannot_be_learned(clouds):
    points, _ = clouds()
    with pytest.raises(InputDataError, match="hold only 'a': at least two classes"):
        transfer_labels(points, np.full(90, "a", dtype=object), points)
    with pytest.raises(InputDataError, match="The 0 usable reference cells hold none"):
        transfer_labels(np.full((2, 6), np.nan, np.float32), np.array(["a", "b"]), points)


def test_an_unknown_method_names_the_nearest(clouds):
    points, labels = clouds()
    with pytest.raises(UnknownNameError, match=r"'logistics'. Did you mean 'logistic'\?"):
        transfer_labels(points, labels, points, method="logistics")


def test_shapes_that_do_not_fit_are_refused(clouds):
    points, labels = clouds()
    with pytest.raises(UsageError, match="90 reference cells of 6 dimensions do not fit 90 labels"):
        transfer_labels(points, labels, points[:, :3])


def test_knn_confidence_is_the_share_of_votes():
    reference = np.zeros((15, 2), np.float32)
    labels = np.array(["a"] * 9 + ["b"] * 6, dtype=object)
    given = transfer_labels(reference, labels, np.zeros((1, 2), np.float32), method="knn")
    assert given.labels[0] == "a"
    assert given.confidence[0] == pytest.approx(0.6)


def test_identical_points_do_not_divide_by_zero():
    points = np.array([[0.0, 0], [0, 0], [1, 1], [1, 1]], np.float32)
    labels = np.array(list("aabb"), dtype=object)
    given = transfer_labels(points, labels, points, method="centroid")
    assert given.labels.tolist() == list("aabb")
    assert np.isfinite(given.confidence).all()


@pytest.fixture
def cells(clouds):
    points, labels = clouds()
    obs = pd.DataFrame({"kind": pd.Categorical(labels)}, index=[f"cell {i}" for i in range(90)])
    return ad.AnnData(np.ones((90, 2), np.float32), obs=obs, obsm={"X_omics": points})


def test_annotate_writes_categories_and_keeps_every_cell(cells):
    names = list(cells.obs_names)
    truth = cells.obs["kind"].astype(str).to_numpy()
    cells.obs.loc[cells.obs_names[:2], "kind"] = None
    returned = annotate(cells, label="kind", reference=np.arange(45))
    assert returned is cells
    assert list(cells.obs_names) == names
    predicted = cells.obs["kind_pred"]
    assert isinstance(predicted.dtype, pd.CategoricalDtype)
    assert predicted.isna().to_numpy().nonzero()[0].tolist() == [0, 1]
    assert predicted.to_numpy()[2:].tolist() == truth[2:].tolist()
    confidence = cells.obs["kind_confidence"]
    assert confidence.dtype == np.float32
    assert confidence.isna().to_numpy()[:45].all()
    assert confidence.notna().to_numpy()[45:].all()


def test_annotated_cells_survive_the_file(cells, tmp_path):
    annotate(cells, label="kind", reference=np.arange(90) < 45, key_added="guess")
    cells.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    assert back.obs["guess_pred"].tolist() == cells.obs["guess_pred"].tolist()


def test_a_missing_embedding_says_how_to_make_it(cells):
    with pytest.raises(UnknownNameError, match=r"'X_omic'. Did you mean 'X_omics'\? Write one"):
        annotate(cells, label="kind", reference=np.arange(45), use_rep="X_omic")


def test_a_missing_column_names_the_nearest(cells):
    with pytest.raises(UnknownNameError, match=r"no column 'kindd' among its 1. Did you mean 'kin"):
        label_column(cells, "kindd")


def test_label_columns_become_text(cells):
    cells.obs["number"] = [1, 2] * 45
    cells.obs["flag"] = pd.array([True, None] * 45, dtype="boolean")
    assert label_column(cells, "number")[:2].tolist() == ["1", "2"]
    assert label_column(cells, "flag")[:2].tolist() == ["True", None]


def _two_clouds(number, *, distance, seed=0):
    """Return cells of two overlapping classes, as an AnnData with donors."""
    rng = np.random.default_rng(seed)
    code = rng.integers(0, 2, number)
    points = rng.normal(size=(number, 3)) + distance * code[:, None]
    obs = pd.DataFrame(
        {"kind": np.array(["a", "b"])[code], "donor": [f"d{i % 4}" for i in range(number)]},
        index=[f"c{i}" for i in range(number)],
    )
    return ad.AnnData(obs=obs, obsm={"X_omics": points.astype(np.float32)})


@pytest.mark.parametrize("groups", [None, "donor"])
@pytest.mark.parametrize("method", METHODS)
def test_unsure_cells_are_unknown_and_the_rest_is_right_as_often_as_wanted(method, groups):
    cells = _two_clouds(12_000, distance=1.2)
    reference = np.arange(2000)
    annotate(
        cells, label="kind", reference=reference, method=method, min_accuracy=0.92, groups=groups
    )
    given = cells.obs["kind_pred"].astype(str).to_numpy()[2000:]
    closest = cells.obs["kind_closest"].astype(str).to_numpy()[2000:]
    truth = cells.obs["kind"].to_numpy()[2000:]
    threshold = cells.uns["kind_unknown_below"]
    unsure = cells.obs["kind_confidence"].to_numpy()[2000:] < threshold
    assert ((given == "unknown") == unsure).all()
    assert (given[~unsure] == closest[~unsure]).all()
    assert 0.1 < unsure.mean() < 0.9
    assert (closest == truth).mean() < 0.9
    assert (given == truth)[~unsure].mean() > 0.91
    assert (cells.obs["kind_pred"].astype(str)[:2000] == cells.obs["kind"][:2000]).all()


def test_where_nothing_is_sure_enough_all_are_unknown():
    cells = _two_clouds(400, distance=0.0)
    annotate(cells, label="kind", reference=np.arange(200), min_accuracy=0.999)
    assert cells.uns["kind_unknown_below"] == np.inf
    assert set(cells.obs["kind_pred"].astype(str)[200:]) == {"unknown"}
    # Answers without a threshold leave nothing of the one before.
    annotate(cells, label="kind", reference=np.arange(200), overwrite=True)
    assert "kind_unknown_below" not in cells.uns
    assert "kind_closest" not in cells.obs


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": "donor", "method": "knn"}, UsageError, "groups say what is held out"),
        ({"min_accuracy": 1.5}, UsageError, "above 0 and at most 1"),
        ({"min_accuracy": 0.9, "groups": "donr"}, UnknownNameError, "Did you mean 'donor'"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(options, error, message):
    cells = _two_clouds(60, distance=3.0)
    with pytest.raises(error, match=message):
        annotate(cells, label="kind", reference=np.arange(30), **options)
    assert "kind_pred" not in cells.obs


def test_too_little_to_hold_out_is_refused():
    cells = _two_clouds(60, distance=3.0)
    rows = np.flatnonzero(cells.obs["donor"] == "d0")
    with pytest.raises(InputDataError, match="are of 1 group; at least two"):
        annotate(cells, label="kind", reference=rows, min_accuracy=0.9, groups="donor")
    cells.obs["none"] = None
    with pytest.raises(InputDataError, match="60 of 60 labelled cells have no 'none', first row 0"):
        annotate(cells, label="kind", reference=np.arange(60), groups="none")
    rows = np.concatenate([np.flatnonzero(cells.obs["kind"] == k)[:2] for k in "ab"])
    with pytest.raises(InputDataError, match="4 reference cells of 2 classes are too few"):
        annotate(cells, label="kind", reference=rows, min_accuracy=0.9)


def test_a_class_called_unknown_is_refused():
    cells = _two_clouds(60, distance=3.0)
    cells.obs["kind"] = cells.obs["kind"].replace("b", "unknown")
    with pytest.raises(UsageError, match="A class of 'kind' is called 'unknown'"):
        annotate(cells, label="kind", reference=np.arange(30), min_accuracy=0.9)
