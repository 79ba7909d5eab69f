from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from omics.data.errors import InputDataError, UsageError
from omics.eval.baselines import (
    HVG_KNN,
    MAJORITY,
    PCA_LOGISTIC,
    counts_of,
    log_normalise,
    majority_class,
    principal_components,
    run_baselines,
)
from omics.eval.classification import accuracy, macro_f1


@pytest.fixture(scope="module")
def real_results(real_cells, pbmc_split):
    labels = np.asarray(real_cells.obs["bulk_labels"].astype(str), dtype=object)
    train, test = pbmc_split.rows("train"), pbmc_split.rows("test")
    return labels[test], run_baselines(real_cells.X, labels, train=train, test=test)


def test_real_cells_reach_the_known_scores(real_results):
    truth, given = real_results
    assert 0.75 <= accuracy(truth, given[PCA_LOGISTIC].labels) <= 0.90
    assert 0.55 <= macro_f1(truth, given[PCA_LOGISTIC].labels) <= 0.80
    assert 0.72 <= accuracy(truth, given[HVG_KNN].labels) <= 0.88
    assert accuracy(truth, given[MAJORITY].labels) == pytest.approx(48 / 140)


def test_baselines_repeat_exactly(real_cells, pbmc_split, real_results):
    labels = np.asarray(real_cells.obs["bulk_labels"].astype(str), dtype=object)
    train, test = pbmc_split.rows("train"), pbmc_split.rows("test")
    again = run_baselines(real_cells.X, labels, train=train, test=test)
    for name, annotation in real_results[1].items():
        assert np.array_equal(annotation.labels, again[name].labels)
        assert np.array_equal(annotation.confidence, again[name].confidence)


def test_what_a_test_cell_gets_does_not_depend_on_the_other_test_cells(real_cells, pbmc_split):
    labels = np.asarray(real_cells.obs["bulk_labels"].astype(str), dtype=object)
    train, test = pbmc_split.rows("train"), pbmc_split.rows("test")
    whole = run_baselines(real_cells.X, labels, train=train, test=test)
    half = run_baselines(real_cells.X, labels, train=train, test=test[:70])
    for name in whole:
        assert np.array_equal(whole[name].labels[:70], half[name].labels)


def test_log_normalise_equals_scanpy(real_cells):
    expected = real_cells.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    found = log_normalise(real_cells.X)
    assert found.dtype == np.float32
    assert np.abs((found - expected.X).data).max() < 1e-5


def test_an_empty_cell_stays_empty():
    counts = sparse.csr_matrix(np.array([[0, 0], [3, 1]], np.uint16))
    found = log_normalise(counts, target_sum=4)
    assert found.toarray() == pytest.approx(np.log1p([[0, 0], [3, 1]]))


def test_components_are_those_of_the_training_cells():
    generator = np.random.default_rng(0)
    train = generator.random((30, 8))
    first, second = principal_components(
        sparse.csr_matrix(train), sparse.csr_matrix(train[:4]), num_components=3
    )
    centred = train - train.mean(axis=0)
    expected = np.linalg.svd(centred, compute_uv=False)[:3] ** 2
    assert np.allclose((first.astype(float) ** 2).sum(axis=0), expected, rtol=1e-4)
    assert np.allclose(first[:4], second, atol=1e-5)


def test_fewer_cells_than_components_still_work():
    matrix = sparse.csr_matrix(np.random.default_rng(0).random((4, 9)))
    assert principal_components(matrix, matrix)[0].shape == (4, 3)


def test_a_class_that_no_training_cell_has_is_never_given(clouds):
    points, labels = clouds()
    counts = sparse.csr_matrix(np.rint(np.abs(points) * 10).astype(np.int32))
    train = np.flatnonzero(labels != "type 2")[:40]
    test = np.setdiff1d(np.arange(len(labels)), train)
    given = run_baselines(counts, labels, train=train, test=test)
    for annotation in given.values():
        assert set(annotation.labels) <= {"type 0", "type 1"}


def test_one_training_class_is_refused(clouds):
    points, _ = clouds()
    counts = sparse.csr_matrix(np.rint(np.abs(points) * 10))
    labels = np.full(90, "only", dtype=object)
    with pytest.raises(InputDataError, match="hold only 'only': at least two classes"):
        run_baselines(counts, labels, train=np.arange(40), test=np.arange(40, 90))


def test_overlapping_or_empty_splits_are_refused():
    counts, labels = sparse.csr_matrix(np.eye(4)), np.array(list("abab"), dtype=object)
    with pytest.raises(UsageError, match="1 cells are in training and in test, first row 1"):
        run_baselines(counts, labels, train=np.array([0, 1]), test=np.array([1, 2]))
    with pytest.raises(UsageError, match="4 labelled training and 0 labelled test cells"):
        run_baselines(counts, labels, train=np.arange(4), test=np.arange(0))


def test_majority_ties_go_to_the_first_class():
    given = majority_class(np.array(["b", "a", "b", "a"]), 2)
    assert given.labels.tolist() == ["a", "a"]
    assert given.confidence.tolist() == [0.5, 0.5]


def test_counts_are_found_where_they_are():
    counts = sparse.csr_matrix(np.array([[1.0, 0], [2, 3]], np.float32))
    logged = log_normalise(counts)
    assert counts_of(ad.AnnData(counts))[1] == "X"
    assert counts_of(ad.AnnData(counts.toarray()))[1] == "X"
    layered = ad.AnnData(logged, layers={"a_counts": counts, "counts": counts})
    assert counts_of(layered)[1] == "layers/counts"
    with_raw = ad.AnnData(counts)
    with_raw.raw = with_raw.copy()
    with_raw.X = logged
    found, place = counts_of(with_raw)
    assert place == "raw.X"
    assert (found != counts).nnz == 0


@pytest.mark.parametrize("bad", [0.5, -1.0, np.nan, np.inf])
def test_values_that_are_no_counts_are_refused(bad):
    adata = ad.AnnData(np.array([[1.0, bad], [2, 3]], np.float32))
    with pytest.raises(InputDataError, match="none of X holds whole non-negative numbers"):
        counts_of(adata)
