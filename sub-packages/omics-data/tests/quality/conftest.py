"""A small experiment with known faults: dying, empty and doubled cells, in three batches."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from omics.data import synthesize

NUM_MITO = 13


def _faulty(num_cells=300, num_genes=600, *, seed=1):
    adata = synthesize(num_cells, num_genes, num_batches=3, num_donors=3, seed=seed)
    symbols = [f"GENE{position}" for position in range(num_genes)]
    symbols[:NUM_MITO] = [f"MT-ND{position}" for position in range(NUM_MITO)]
    symbols[20:24] = ["RPS6", "RPL3", "HBA1", "HBEGF"]
    adata.var["gene_symbol"] = symbols
    counts = adata.X.toarray()
    rng = np.random.default_rng(seed)
    dying = np.arange(num_cells) % 20 == 3
    counts[np.ix_(dying, np.arange(NUM_MITO))] += rng.poisson(40, (int(dying.sum()), NUM_MITO))
    thin = np.arange(num_cells) % 25 == 7
    counts[thin] = rng.binomial(counts[thin].astype(int), 0.05)
    doubled = np.flatnonzero(np.arange(num_cells) % 20 == 9)
    counts[doubled] += counts[rng.permutation(num_cells)[: len(doubled)]]
    counts[0] = 0
    adata.X = csr_matrix(counts.astype(np.float32))
    return adata


@pytest.fixture(scope="session")
def faulty_adata():
    """The experiment as AnnData: cell 0 is empty, cells 3, 23, ... are dying."""
    return _faulty()


@pytest.fixture(scope="session")
def faulty_store(faulty_adata, write_store, tmp_path_factory):
    """The same as a store."""
    var = pd.DataFrame(faulty_adata.var[["gene_symbol"]])
    path = tmp_path_factory.mktemp("quality") / "faulty.store"
    return write_store(path, faulty_adata.X, obs=faulty_adata.obs, var=var, block=100)


@pytest.fixture
def in_small_blocks(monkeypatch):
    """Cut stores into blocks of a few cells, so that there are many of them."""
    from omics.data.quality import cell_metrics, store_blocks

    whole = store_blocks.cut_rows

    def cut(store, rows=None, *, limit=0):
        return whole(store, rows, limit=10_000)

    monkeypatch.setattr(store_blocks, "cut_rows", cut)
    monkeypatch.setattr(cell_metrics, "cut_rows", cut)
