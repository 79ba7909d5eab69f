"""Every packaged recipe composes, builds and takes two steps; its bundle embeds cells."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from run_parts import SMALL, compose
from typer.testing import CliRunner

from omics.data.converting.conversion import convert
from omics.data.errors import ConfigError
from omics.data.splits import make_split
from omics.data.storage.store import open_store
from omics.data.synthetic import synthesize
from omics.models import Bundle, embed_cells
from omics.train.cli import app
from omics.train.hydra_entry import recipes
from omics.train.runs import run_tasks
from omics.train.train_run import prepare_training

TYPE = "label_columns.0.label_column_name=cell_type"
DONOR = "label_columns.1.label_column_name=donor3"
# What a recipe leaves to its user.
SETTINGS = {
    "mlm": [],
    "rda_mlm": [],
    "wced": [],
    "wced_multitask": ["label_columns=[cell_type,donor3]"],
    "multitask": ["label_columns=[cell_type,donor3]"],
    "grl": [TYPE, DONOR, "data_module.batch_size=16"],
    "sequence_labeling": ["data_module.pairing.column=perturbation"],
    "bulk_unlabeled": [],
    "bulk_labeled": ["label_columns=[cell_type]"],
    "pretrain": [],
}
# The terms that the two steps must report.
TERMS = {
    "mlm": {"expression_masked_mse_loss", "expression_masked_is_zero_bce_loss"},
    "rda_mlm": {"expression_masked_mse_loss", "expression_masked_is_zero_bce_loss"},
    "wced": {"shown_loss", "unseen_loss", "expression_wced_non_input_mse_loss"},
    "wced_multitask": {"cell_type_cross_entropy_loss", "donor3_cross_entropy_loss", "shown_loss"},
    "multitask": {"genes_masked_cross_entropy_loss", "cell_type_accuracy"},
    "grl": {"cell_type_cross_entropy_loss", "donor3_cross_entropy_loss"},
    "sequence_labeling": {"label_expression_mse_loss", "label_expression_is_zero_bce_loss"},
    "bulk_unlabeled": {"expression_masked_mse_loss", "expression_wced_is_zero_bce_loss"},
    "bulk_labeled": {"expression_masked_mse_loss", "cell_type_cross_entropy_loss"},
    "pretrain": {"expression_masked_mse_loss", "expression_wced_mse_loss"},
}
# Verbs that need a checkpoint, or cells of their own, have tests of their own.
ELSEWHERE = {
    "finetune",
    "test",
    "predict",
    "interpret",
    "bioformers",
    "bioformers_linear",
    "bioformers_test",
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> SimpleNamespace:
    """Cells with types, donors and perturbations of one or two genes."""
    folder = tmp_path_factory.mktemp("recipes")
    adata = synthesize(120, 60, num_types=3, seed=5)
    adata.obs["donor3"] = [f"d{i % 3}" for i in range(adata.n_obs)]
    names = ["control", adata.var_names[4], f"{adata.var_names[7]}+{adata.var_names[9]}"]
    adata.obs["perturbation"] = [names[i % 3] for i in range(adata.n_obs)]
    adata.write_h5ad(folder / "cells.h5ad")
    store = convert(folder / "cells.h5ad", folder / "cells.store")
    make_split(store, seed=0).save(folder / "split.parquet")
    return SimpleNamespace(
        store=store,
        overrides=[
            f"input_file={folder}/cells.store",
            f"data_module.split={folder}/split.parquet",
        ],
    )


def test_each_recipe_is_tried():
    assert set(recipes()) == set(SETTINGS) | ELSEWHERE


@pytest.mark.parametrize("recipe", SETTINGS)
def test_a_recipe_composes_builds_and_takes_two_steps(cells, tmp_path, recipe):
    overrides = [
        *cells.overrides,
        *SMALL,
        *SETTINGS[recipe],
        f"working_dir={tmp_path}/run",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
    ]
    run_tasks(compose(recipe, overrides), tmp_path / "run")
    lines = (tmp_path / "run/history.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    for phase in ("train", "validation"):
        found = {term: float(value) for _, _, which, term, value in rows if which == phase}
        wanted = {term for term in TERMS[recipe] if phase == "train" or term.endswith("_loss")}
        assert wanted <= set(found)
        assert np.isfinite(list(found.values())).all()
    assert rows[-1][0] == "2"
    bundle = Bundle.load(tmp_path / "run/bundle")
    assert bundle.label_specs == Bundle.load(tmp_path / "run/bundle").label_specs
    if recipe != "sequence_labeling":  # Which asks for a perturbation of each cell.
        assert np.isfinite(embed_cells(bundle, open_store(cells.store.path))).all()


def test_a_label_column_without_a_loss_has_the_loss_of_its_kind(cells):
    overrides = [*cells.overrides, *SMALL, "working_dir=x", "label_columns=[cell_type,donor3]"]
    losses = (
        "trainer.losses=[{label_column_name: donor3, name: focal},"
        "{field_name: expression, name: mse}]"
    )
    training = prepare_training(compose("mlm", [*overrides, losses]), cells.store)
    names = [term.name for term in training.objective.terms]
    assert names == ["donor3_focal", "expression_masked_mse", "cell_type_cross_entropy"]


def test_zeros_are_among_what_the_masked_recipe_asks_for(cells):
    training = prepare_training(
        compose("mlm", [*cells.overrides, *SMALL, "working_dir=x"]), cells.store
    )
    batches = [batch for step in training.batches for batch in step.batches]
    values = np.concatenate([batch.questions["expression"].values for batch in batches])
    assert 0 < (values == 0).mean() < 0.5


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("wecd", [], "no recipe 'wecd'.*Did you mean 'wced'"),
        ("multitask", [], r"label_columns is not set: add label_columns=\[COLUMN,COLUMN\]\."),
        ("grl", [TYPE], r"label_columns\.1\.label_column_name is not set: add"),
        ("sequence_labeling", [], r"data_module\.pairing\.column is not set: add"),
        ("wced", ["trainer.loses=[]"], "no configuration key .*Did you mean 'losses'"),
    ],
)
def test_a_recipe_says_what_it_needs(cells, tmp_path, recipe, overrides, message):
    arguments = ["pretrain", "-cn", recipe, *cells.overrides, f"working_dir={tmp_path}/r"]
    result = CliRunner().invoke(app, [*arguments, *overrides])
    assert isinstance(result.exception, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise result.exception
    assert not (tmp_path / "r").exists()
