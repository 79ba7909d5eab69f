from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from integration_cells import counted_cells

from omics.data.errors import MissingExtraError, UnknownNameError, UsageError
from omics.eval import integrate
from omics.eval.integration.integration_methods import TITLES

PACKAGES = {"harmony": "harmonypy", "scanorama": "scanorama"}
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


if INSTALLED:

    @pytest.mark.parametrize("name", INSTALLED)
    def test_a_method_mixes_the_batches_better_than_pca(name):
        _check_mixing(name)


def test_methods_are_checked_before_any_work(monkeypatch):
    cells = counted_cells(40)
    with pytest.raises(UnknownNameError, match=r"no method 'harmny'.*Did you mean 'harmony'"):
        integrate(cells, label="kind", batch="donor", use_rep="X_good", compare=["harmny"])
    for name, package in PACKAGES.items():
        with pytest.raises(UsageError, match="corrects batches, and no column of batches"):
            integrate(cells, label="kind", use_rep="X_good", compare=[name])
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=r"pip install 'omics-eval\[benchmarking\]'"):
            integrate(cells, label="kind", batch="donor", use_rep="X_good", compare=[name])


def test_a_method_named_twice_is_refused():
    with pytest.raises(UsageError, match="harmony is named twice"):
        integrate(counted_cells(40), label="kind", batch="donor", compare=["harmony", "harmony"])
