"""Made-up cells: counts, with types that can be found again."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import UsageError
from omics.data.synthetic import synthesize


def test_shape_names_and_types_are_those_of_a_real_file():
    data = synthesize(120, 200, num_types=3, num_batches=2, num_donors=4)
    assert data.shape == (120, 200)
    assert data.X.dtype == np.float32
    assert data.X.format == "csr"
    assert (data.X.data >= 1).all()
    assert (data.X.data == np.round(data.X.data)).all()
    assert data.var_names[:2].tolist() == ["ENSG00000000000", "ENSG00000000001"]
    assert data.var["gene_symbol"].iloc[3] == "GENE3"
    assert data.obs_names.is_unique
    assert [str(data.obs[name].dtype) for name in ("cell_type", "batch", "donor")] == [
        "category"
    ] * 3
    assert data.obs.groupby("donor", observed=True)["batch"].nunique().max() == 1


def test_same_seed_same_cells():
    one, two, other = (synthesize(50, 40, seed=seed) for seed in (1, 1, 2))
    assert (one.X != two.X).nnz == 0
    assert one.obs.equals(two.obs)
    assert (one.X != other.X).nnz > 0


@pytest.mark.parametrize("mean_genes", [50, 400])
def test_cells_express_about_as_many_genes_as_asked(mean_genes):
    data = synthesize(300, 1000, mean_genes=mean_genes)
    detected = (data.X > 0).sum(axis=1)
    assert 0.8 * mean_genes < detected.mean() < 1.1 * mean_genes


def test_markers_stand_out_in_their_type():
    data = synthesize(600, 500, num_types=4, seed=3)
    counts = data.X.toarray() / np.asarray(data.X.sum(axis=1))
    for name in data.obs["cell_type"].cat.categories:
        inside = (data.obs["cell_type"] == name).to_numpy()
        marking = (data.var["marker_of"] == name).to_numpy()
        assert marking.sum() == 25
        fold = counts[inside][:, marking].mean() / counts[~inside][:, marking].mean()
        assert fold > 3


def test_types_can_be_found_again_across_batches():
    data = synthesize(800, 600, num_types=4, seed=1)
    values = np.log1p(1e4 * data.X.toarray() / np.asarray(data.X.sum(axis=1)))
    train = (data.obs["batch"] == "batch0").to_numpy()
    types = data.obs["cell_type"].cat.codes.to_numpy()
    centres = np.stack([values[train & (types == each)].mean(axis=0) for each in range(4)])
    distances = ((values[~train][:, None] - centres) ** 2).sum(axis=2)
    assert np.mean(distances.argmin(axis=1) == types[~train]) > 0.95


def test_types_and_batches_differ_as_much_as_asked():
    def fold(column, group, genes, **options):
        adata = synthesize(2000, 200, num_types=2, seed=3, **options)
        inside = (adata.obs[column] == group).to_numpy()
        counts = adata.X.toarray()[:, genes(adata)]
        return float(np.median(counts[inside].mean(0) / counts[~inside].mean(0)))

    def markers(adata):
        return np.flatnonzero(adata.var["marker_of"] == "type1")

    plain = fold("cell_type", "type1", markers, marker_fold=1.0)
    assert 0.7 < plain < 1.4
    assert fold("cell_type", "type1", markers, marker_fold=5.0) > 3

    def spread(effect):
        adata = synthesize(2000, 200, seed=3, batch_effect=effect)
        inside = (adata.obs["batch"] == "batch1").to_numpy()
        means = adata.X[inside].mean(0), adata.X[~inside].mean(0)
        return float(np.std(np.log(means[0] + 1e-3) - np.log(means[1] + 1e-3)))

    assert spread(1.0) > 3 * spread(0.1)


def test_blocks_do_not_show(monkeypatch):
    whole = synthesize(30, 40)
    monkeypatch.setattr("omics.data.synthetic._BLOCK_VALUES", 40 * 7)
    blocks = synthesize(30, 40)
    assert blocks.shape == whole.shape
    assert blocks.obs.equals(whole.obs)


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (1, 2)])
def test_small_experiments_work(shape):
    assert synthesize(*shape).shape == shape


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"num_cells": -1}, "num_cells and seed must not be negative"),
        ({"num_genes": 0}, "num_genes must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"num_types": 0}, "num_types is 0"),
        ({"num_batches": 5, "num_donors": 4}, "every batch needs a donor"),
        ({"mean_genes": 19}, "mean_genes is 19; with 20 genes it must be between 1 and 18"),
        ({"mean_genes": 0}, "mean_genes is 0"),
        ({"marker_fold": 0.5}, "marker_fold is 0.5"),
        ({"batch_effect": -0.1}, "batch_effect -0.1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, found):
    with pytest.raises(UsageError, match=found):
        synthesize(**{"num_cells": 10, "num_genes": 20, **options})
