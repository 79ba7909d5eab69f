"""Means over cells: taken where they mean something, on the scale that was said."""

from __future__ import annotations

import math

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data import convert
from omics.data.errors import InputDataError, UnknownNameError, UsageError
from omics.eval import pseudobulk_of_counts, pseudobulk_of_values

GROUPS = np.array(["b", "a", None, "b", "a", "b"], dtype=object)


@pytest.fixture
def counts():
    generator = np.random.default_rng(0)
    found = generator.poisson(2.0, (6, 5)).astype(np.float32)
    found[3] = 0  # a cell without counts
    return found


def by_hand(counts, rows):
    counts = counts.astype(np.float64)
    totals = np.maximum(counts[rows].sum(axis=1, keepdims=True), 1)
    return np.log1p((1e4 * counts[rows] / totals).mean(axis=0))


def test_the_mean_of_counts_is_taken_of_shares_and_then_logged(counts):
    found = pseudobulk_of_counts(sparse.csr_matrix(counts), GROUPS)
    assert found.names.tolist() == ["a", "b"]
    assert found.num_cells.tolist() == [2, 3]
    np.testing.assert_allclose(found.values[0], by_hand(counts, [1, 4]), rtol=1e-12)
    np.testing.assert_allclose(found.values[1], by_hand(counts, [0, 3, 5]), rtol=1e-12)
    logs = np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    np.testing.assert_allclose(found.cell_means[1], logs[[0, 3, 5]].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(
        found.cell_variances[1], logs[[0, 3, 5]].var(axis=0, ddof=1), rtol=1e-5, atol=1e-9
    )


def test_a_store_and_its_matrix_have_the_same_pseudobulks(counts, tmp_path):
    cells = ad.AnnData(counts, var=pd.DataFrame(index=[f"g{i}" for i in range(5)]))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    store = convert(tmp_path / "cells.h5ad", tmp_path / "cells.store")
    found, expected = pseudobulk_of_counts(store, GROUPS), pseudobulk_of_counts(counts, GROUPS)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)
    assert found.num_cells.tolist() == expected.num_cells.tolist()


def test_groups_are_formed_within_a_covariate(counts):
    covariate = np.array(["x", "x", "x", "y", "y", None], dtype=object)
    found = pseudobulk_of_counts(counts, GROUPS, covariate=covariate)
    pairs = list(zip(found.covariates, found.names, strict=True))
    assert pairs == [("x", "a"), ("x", "b"), ("y", "a"), ("y", "b")]
    assert found.num_cells.tolist() == [1, 1, 1, 1]
    assert np.isnan(found.cell_variances).all()
    np.testing.assert_allclose(found.values[0], by_hand(counts, [1]))


@pytest.mark.parametrize("log_base", [math.e, 2.0, 10.0, None])
def test_logs_are_undone_averaged_and_taken_again(log_base):
    linear = np.array([[0.0, 3.0], [8.0, 1.0], [1.0, 0.5]])
    scale = 1.0 if log_base is None else np.log(log_base)
    shown = linear if log_base is None else np.log1p(linear) / scale
    found = pseudobulk_of_values(shown, np.array(["p", "p", "q"]), log_base=log_base)
    mean = np.array([[4.0, 2.0], [1.0, 0.5]])
    expected = mean if log_base is None else np.log1p(mean) / scale
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)
    np.testing.assert_allclose(found.values_on(2.0), np.log2(1 + mean), rtol=1e-12)
    np.testing.assert_allclose(found.values_on(None), mean, rtol=1e-12)


def test_reference_fault_14_log2_values_are_not_undone_by_expm1():
    linear = np.array([[1.0, 0.0], [3.0, 400.0]])
    log2 = np.log2(1 + linear)
    found = pseudobulk_of_values(log2, np.array(["p", "p"]), log_base=2.0)
    np.testing.assert_allclose(found.values[0], np.log2(1 + np.array([2.0, 200.0])), rtol=1e-12)
    undone_as_e = np.log1p(np.expm1(log2).mean(axis=0))
    assert np.abs(undone_as_e - found.values[0]).max() > 0.2
    # And the mean is that of the same cells in any other base.
    natural = pseudobulk_of_values(np.log1p(linear), np.array(["p", "p"]), log_base=math.e)
    np.testing.assert_allclose(natural.values_on(2.0), found.values, rtol=1e-12)


def test_a_missing_value_makes_the_mean_of_its_gene_missing():
    values = np.array([[1.0, np.nan], [2.0, 1.0], [0.0, 1.0]])
    found = pseudobulk_of_values(values, np.array(["p", "p", "q"]), log_base=2.0)
    assert np.isnan(found.values).tolist() == [[False, True], [False, False]]


def test_one_group_is_found_by_name(counts):
    found = pseudobulk_of_counts(counts, GROUPS)
    assert found.row("b").num_cells.tolist() == [3]
    with pytest.raises(UnknownNameError, match=r"0 groups 'c' .*Known: 'a', 'b'"):
        found.row("c")


@pytest.mark.parametrize(
    ("values", "log_base", "message"),
    [
        ([[812.0]], math.e, "hold 812, which as a logarithm to base e would be"),
        ([[30.0]], 2.0, "hold 30, which as a logarithm to base 2 would be"),
        ([[np.inf]], 2.0, "infinite"),
        ([[-np.inf]], None, "infinite"),
    ],
)
def test_values_that_are_not_what_was_said_are_refused(values, log_base, message):
    with pytest.raises(InputDataError, match=message):
        pseudobulk_of_values(np.array(values), np.array(["p"]), log_base=log_base)


def test_other_bad_input_is_refused(counts):
    with pytest.raises(InputDataError, match="raw counts were said"):
        pseudobulk_of_counts(counts + 0.5, GROUPS)
    with pytest.raises(UsageError, match="2 groups come with 6 cells"):
        pseudobulk_of_counts(counts, GROUPS[:2])
    with pytest.raises(UsageError, match="No cell has a group"):
        pseudobulk_of_counts(counts, np.full(6, None))
    with pytest.raises(UsageError, match=r"log_base is 1\.0; it is a number above 1"):
        pseudobulk_of_values(counts, GROUPS, log_base=1.0)
    linear = pseudobulk_of_values(np.array([[-2.0]]), np.array(["p"]), log_base=None)
    with pytest.raises(InputDataError, match="-2 has no logarithm"):
        linear.values_on(math.e)
