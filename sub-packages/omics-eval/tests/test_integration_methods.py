from __future__ import annotations

import logging
import sys
import warnings
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from integration_cells import counted_cells

from omics.data.errors import MissingExtraError, UnknownNameError, UsageError
from omics.eval import integrate
from omics.eval.baselines import log_normalise
from omics.eval.integration.integration_methods import (
    TITLES,
    MethodInput,
    corrected_embedding,
)

PACKAGES = {"harmony": "harmonypy", "scanorama": "scanorama", "scvi": "scvi"}
INSTALLED = [name for name, package in PACKAGES.items() if find_spec(package) is not None]


def _check_mixing(name):
    cells = counted_cells(400)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - what the packages seed
    found = integrate(cells, label="kind", batch="donor", use_rep="X_good", compare=[name])
    assert found.methods == ("X_good", TITLES[name], "PCA")
    for metric in ("ilisi", "pcr_comparison"):
        scores = [found.scores[method][metric].value for method in found.methods[1:]]
        assert scores[0] > scores[1] + 0.05, metric
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("name", ["liger", *INSTALLED])
def test_a_method_mixes_the_batches_better_than_pca(name):
    _check_mixing(name)


class _Scvi(ModuleType):
    """Stands in for the package: a model whose latent values are made of what it was given."""

    def __init__(self):
        super().__init__("scvi")
        self.__spec__ = ModuleSpec("scvi", None)
        self.settings = SimpleNamespace(seed=None)
        self.trained = {}
        package = self

        class SCVI:
            def __init__(self, adata, n_latent):
                assert package.settings.seed == 3
                self.adata, self.width = adata, n_latent

            @staticmethod
            def setup_anndata(adata, *, batch_key):
                package.batches = adata.obs[batch_key].tolist()

            def train(self, **options):
                package.trained = options
                sys.stdout.write("training")
                sys.stderr.write("done")
                warnings.warn("few workers", stacklevel=1)
                logging.getLogger("lightning").warning("hello")
                np.random.random()  # noqa: NPY002 - as the package does
                torch.rand(1)

            def get_latent_representation(self):
                package.counts = self.adata.X
                return np.tile(self.adata.X.sum(axis=1), (1, self.width))

        self.model = SimpleNamespace(SCVI=SCVI)


def test_scvi_gets_counts_and_keeps_quiet(monkeypatch, capsys, caplog):
    package = _Scvi()
    monkeypatch.setitem(sys.modules, "scvi", package)
    cells = counted_cells(60)
    numbers, tensors = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    inputs = MethodInput(
        counts=cells.X,
        expression=log_normalise(cells.X),
        components=np.zeros((60, 5), np.float32),
        batches=cells.obs["donor"].to_numpy(dtype=object),
    )
    title, embedding = corrected_embedding("scvi", inputs, seed=3)
    assert (title, embedding.shape, embedding.dtype) == ("scVI", (60, 30), np.float32)
    assert package.batches == cells.obs["donor"].tolist()
    assert (package.counts != cells.X).nnz == 0
    assert package.trained["early_stopping"] is True
    assert package.trained["accelerator"] == "cpu"
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []
    assert np.array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), tensors)
    found = integrate(
        cells, label="kind", batch="donor", use_rep="X_good", compare=["scvi"], seed=3
    )
    assert found.methods == ("X_good", "scVI", "PCA")


def test_methods_are_checked_before_any_work(monkeypatch):
    cells = counted_cells(40)
    with pytest.raises(UnknownNameError, match=r"no method 'harmny'.*Did you mean 'harmony'"):
        integrate(cells, label="kind", batch="donor", use_rep="X_good", compare=["harmny"])
    with pytest.raises(UsageError, match="LIGER corrects batches, and no column of batches"):
        integrate(cells, label="kind", use_rep="X_good", compare=["liger"])
    for name, package in PACKAGES.items():
        with pytest.raises(UsageError, match="corrects batches, and no column of batches"):
            integrate(cells, label="kind", use_rep="X_good", compare=[name])
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=r"pip install 'omics-eval\[benchmarking\]'"):
            integrate(cells, label="kind", batch="donor", use_rep="X_good", compare=[name])


def test_a_method_named_twice_is_refused():
    with pytest.raises(UsageError, match="harmony is named twice"):
        integrate(counted_cells(40), label="kind", batch="donor", compare=["harmony", "harmony"])
