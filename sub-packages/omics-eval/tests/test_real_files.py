from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from omics.eval.annotation import label_column
from omics.eval.baselines import counts_of, run_baselines

FILES = sorted(Path(os.environ.get("OMICS_REAL_DATA") or os.devnull).glob("**/*.h5ad"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_baselines_run_on_real_files(path):
    adata = ad.read_h5ad(path)
    counts, _ = counts_of(adata)
    tables = {name: label_column(adata, name) for name in adata.obs.columns}
    sizes = {name: len(set(labels)) for name, labels in tables.items() if None not in set(labels)}
    chosen = [name for name, size in sizes.items() if 2 <= size <= adata.n_obs // 4]
    if not chosen:  # A file without a label is asked for the depth of its cells.
        depth = np.asarray(counts.sum(axis=1)).ravel()
        adata.obs["depth"] = np.where(depth > np.median(depth), "deep", "shallow")
        tables["depth"], chosen = label_column(adata, "depth"), ["depth"]
    order = np.random.default_rng(0).permutation(adata.n_obs)
    train, test = np.sort(order[::2]), np.sort(order[1::2])
    given = run_baselines(counts, tables[chosen[0]], train=train, test=test)
    for annotation in given.values():
        assert len(annotation.labels) == len(test)
        assert set(annotation.labels) <= set(tables[chosen[0]])
        assert ((annotation.confidence > 0) & (annotation.confidence <= 1)).all()
