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
