from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from omics.data.errors import UsageError
from omics.eval.baselines import log_normalise
from omics.eval.highly_variable import highly_variable_genes, normalised_dispersion


def random_expression(num_cells=120, num_genes=400, seed=0):
    generator = np.random.default_rng(seed)
    mean = generator.gamma(0.4, 2.0, num_genes)
    counts = generator.negative_binomial(2, 2 / (2 + mean), (num_cells, num_genes))
    counts[:, :3] = 0
    return log_normalise(sparse.csr_matrix(counts))


@pytest.mark.parametrize("seed", range(3))
def test_random_genes_equal_scanpy(seed):
    expression = random_expression(seed=seed)
    expected = sc.pp.highly_variable_genes(
        ad.AnnData(expression), n_top_genes=60, flavor="seurat", inplace=False
    )
    found = normalised_dispersion(expression)
    # scanpy sums in float32 where the matrix is float32
    assert np.allclose(found, expected["dispersions_norm"], rtol=1e-4, atol=1e-4, equal_nan=True)
    assert np.array_equal(
        highly_variable_genes(expression, 60), np.flatnonzero(expected["highly_variable"])
    )


def test_real_genes_equal_scanpy(real_cells):
    expression = log_normalise(real_cells.X)
    expected = sc.pp.highly_variable_genes(
        ad.AnnData(expression), n_top_genes=200, flavor="seurat", inplace=False
    )
    chosen = highly_variable_genes(expression, 200)
    assert np.array_equal(chosen, np.flatnonzero(expected["highly_variable"]))


def test_a_gene_alone_in_its_bin_has_one():
    expression = random_expression()
    loud = expression.tolil()
    loud[:, 5] = np.linspace(7.5, 8.5, expression.shape[0])[:, None]
    assert normalised_dispersion(loud.tocsr())[5] == 1.0


def test_silent_genes_are_never_chosen():
    chosen = highly_variable_genes(random_expression(), 10_000)
    assert len(chosen) <= 397
    assert chosen.min() >= 3
    assert (np.diff(chosen) > 0).all()


def test_equal_cells_leave_nothing_to_choose():
    same = sparse.csr_matrix(np.ones((4, 5), np.float32))
    with pytest.raises(UsageError, match="None of 5 genes varies among 4 cells"):
        highly_variable_genes(same, 2)


def test_one_cell_has_no_variance():
    with pytest.raises(UsageError, match="at least two training cells"):
        normalised_dispersion(sparse.csr_matrix(np.ones((1, 3))))


def test_the_matrix_is_left_alone():
    expression = random_expression()
    before = expression.copy()
    highly_variable_genes(expression, 10)
    assert (expression != before).nnz == 0
