"""Builders that several tests of omics-data share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from omics.data.storage.store import open_store
from omics.data.storage.store_writer import StoreWriter


def _write_store(
    path, matrix, *, obs=None, var=None, value_kind="counts", block=3, overwrite=False, **options
):
    matrix = csr_matrix(matrix)
    matrix.sort_indices()
    num_cells, num_genes = matrix.shape
    if obs is None:
        obs = pd.DataFrame(index=[f"cell{row}" for row in range(num_cells)])
    if var is None:
        var = pd.DataFrame(index=[f"gene{column}" for column in range(num_genes)])
    with StoreWriter(
        path,
        genes_frame=var,
        value_kind=value_kind,
        overwrite=overwrite,
        provenance={"from": "x"},
        **options,
    ) as writer:
        for begin in range(0, num_cells, block):
            part = matrix[begin : begin + block]
            writer.append(part.indptr, part.indices, part.data)
        writer.finish(obs)
    return open_store(path)


def _random_counts(num_cells, num_genes, *, seed=0, density=0.4, largest=300):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, largest + 1, (num_cells, num_genes))
    return np.where(rng.random((num_cells, num_genes)) < density, counts, 0)


@pytest.fixture(scope="session")
def write_store():
    """Write a matrix as a store and open it."""
    return _write_store


@pytest.fixture(scope="session")
def random_counts():
    """Make a dense matrix of counts."""
    return _random_counts
