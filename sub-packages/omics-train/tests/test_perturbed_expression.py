"""A bundle trained on pairs says what perturbations do, in a file that `omics-eval perturb` reads."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch
from run_parts import SMALL, compose

from omics.data import convert, make_perturbation_split, open_store, synthesize
from omics.data.errors import ConfigError, ExistingPathError, InputDataError
from omics.data.transforms import LogNormalize, TopGenes
from omics.eval import ScreenColumns, compare_perturbations, read_measured, read_predicted
from omics.models import Bundle
from omics.train.control_pairing import ControlPairing, Perturbations
from omics.train.perturbed_expression import perturbed_expression
from omics.train.run_config import PairingConfig
from omics.train.runs import run_tasks

STEPS = "[{name: log_normalize, target_sum: 1000},{name: top_genes, max_genes: 25}]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a screen and of a bundle trained on it."""
    folder = tmp_path_factory.mktemp("perturbed")
    adata = synthesize(150, 30, num_types=2, seed=5)
    names = adata.var_names
    kinds = ["control", names[3], f"{names[7]}+{names[3]}", names[7], names[11]]
    adata.obs["perturbation"] = [kinds[i % 5] for i in range(150)]
    adata.write_h5ad(folder / "cells.h5ad")
    store = convert(folder / "cells.h5ad", folder / "cells.store")
    make_perturbation_split(
        store, column="perturbation", control="control", held_out=[kinds[2], kinds[4]]
    ).save(folder / "split.parquet")
    training = [*SMALL, f"data_module.transforms={STEPS}"]
    run_tasks(composed(folder, "sequence_labeling", folder / "run", *training), folder / "run")
    return folder


def composed(trained, verb, out, *overrides):
    inputs = [f"input_file={trained}/cells.store", f"data_module.split={trained}/split.parquet"]
    pairs = ["data_module.pairing.column=perturbation", f"working_dir={out}"]
    return compose(verb, [*inputs, *pairs, *overrides])


def predicting(trained, out, *overrides):
    checkpoint = f"checkpoint={trained}/run/bundle"
    return composed(trained, "predict", out, checkpoint, *overrides)


def test_predict_writes_what_perturb_scores(trained, tmp_path):
    run_tasks(predicting(trained, tmp_path, "data_module.predict_split=test"), tmp_path)
    found = ad.read_h5ad(tmp_path / "perturbed_expression.h5ad")
    store = open_store(trained / "cells.store")
    kinds = np.asarray(store.obs["perturbation"])
    names = np.asarray(store.genes.ids)
    assert sorted(found.obs["perturbation"]) == sorted([f"{names[7]}+{names[3]}", names[11]])
    assert found.obs["num_cells"].tolist() == [30, 30]
    assert found.var_names.tolist() == names.tolist()
    columns = ScreenColumns(perturbation="perturbation", control="control")
    measured = read_measured(trained / "cells.store", columns, split=trained / "split.parquet")
    predicted = read_predicted(tmp_path / "perturbed_expression.h5ad", measured)
    compared = compare_perturbations(measured, predicted, shared_genes=True)
    assert list(compared.scores) == ["model", "no change", "mean of training", "additive", "linear"]
    assert np.isfinite(compared.scores["model"]["mae"]).all()
    assert (kinds == "control").sum() == 30
    with pytest.raises(ExistingPathError, match=r"perturbed_expression.h5ad exists"):
        run_tasks(predicting(trained, tmp_path), tmp_path)


def test_the_mean_is_of_expected_expression_over_the_cells_asked(trained, tmp_path):
    store = open_store(trained / "cells.store")
    bundle = Bundle.load(trained / "run" / "bundle")
    # Heads that say the same of every token: a value of 2, not zero with a probability of a quarter.
    state = bundle.model.state_dict()
    said = {"regression": 2.0, "is_zero": np.log(3.0)}
    with torch.no_grad():
        for name, value in state.items():
            for kind, constant in said.items():
                if f"label_expression_{kind}" in name:
                    last = name.endswith("bias") and value.shape == (1,)
                    value.fill_(constant if last else 0.0)
    config = predicting(trained, tmp_path)
    found = perturbed_expression(config, bundle, store, np.arange(len(store)))
    # The bundle's cells sum to 1,000, what is written to 10,000.
    expected = np.log1p(10 * 0.25 * np.expm1(2.0))
    asked = ~np.isnan(found.X)
    np.testing.assert_allclose(found.X[asked], expected, rtol=1e-5)
    # Asked are the genes that some control holds, and the perturbed ones, among all that were cut to.
    perturbations = Perturbations.read(store, PairingConfig(column="perturbation"))
    pairs = ControlPairing.of(
        store,
        perturbations,
        controls=np.flatnonzero(perturbations.code == -1),
        steps=[LogNormalize(target_sum=1000), TopGenes(max_genes=25)],
        training=False,
        seed=config.seed,
    )
    rows = pairs.usable(np.arange(len(store)))
    batch = pairs.pair(store.take(rows), epoch=0)
    seen = np.zeros(asked.shape, bool)
    seen[perturbations.code[rows][batch.cell_of_entry()], batch.genes] = True
    assert np.array_equal(asked, seen)
    assert found.obs["perturbation"].tolist() == perturbations.names.tolist()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["embedding.level=gene"], ConfigError, "Leave embedding and output out, or pairing"),
        (["output.formats=[csv]"], ConfigError, "Leave embedding and output out, or pairing"),
        (["data_module.pairing.control=ctrl"], InputDataError, "no value 'ctrl'"),
        (["data_module.predict_split=validation"], ConfigError, "There are no cells in the split"),
    ],
)
def test_what_cannot_be_asked_is_refused(trained, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        run_tasks(predicting(trained, tmp_path, *overrides), tmp_path)
    assert not list(tmp_path.iterdir())


def test_bundles_that_cannot_say_it_are_refused(trained, tmp_path):
    store = open_store(trained / "cells.store")
    config = predicting(trained, tmp_path)
    bundle = Bundle.load(trained / "run" / "bundle")
    controls = np.flatnonzero(np.asarray(store.obs["perturbation"]) == "control")
    with pytest.raises(InputDataError, match="None of the cells to predict has a perturbation"):
        perturbed_expression(config, bundle, store, controls)
    bundle.transforms = [TopGenes(max_genes=5)]
    with pytest.raises(ConfigError, match="made by no step, and a mean over cells"):
        perturbed_expression(config, bundle, store, controls)
