"""Metrics of validation over two processes are those of one, also where one saw nothing of a kind."""

from __future__ import annotations

import numpy as np
import pytest
from process_parts import of_two_processes
from training_parts import EXPRESSION, GENES, LABEL, model_of, objective_of, random_tokens

from omics.tokenizers import LabelSpec
from omics.train.metric_table import METRICS
from omics.train.run_config import LossConfig
from omics.train.training_step import validation_step
from omics.train.validation_metrics import ValidationMetrics

TISSUES = LabelSpec(name="tissues", classes=("x", "y"), kind="multilabel")
LOSSES = [
    LossConfig(name="mse", field_name="expression", metrics=list(METRICS["values"])),
    LossConfig(name="is_zero_bce", field_name="expression", metrics=list(METRICS["zeros"])),
    LossConfig(name="cross_entropy", field_name="genes", metrics=list(METRICS["tokens"])),
    LossConfig(
        name="cross_entropy",
        label_column_name="cell_type",
        metrics=[name for name in METRICS["classes"] if name != "gene_errors"],
    ),
    LossConfig(
        name="bce_with_logits",
        label_column_name="tissues",
        metrics=list(METRICS["multilabel"]),
    ),
]


def batches(*, unlabelled):
    """Return two batches; the second has no labels if wanted, and no cells without them."""
    made = [random_tokens(20, seed=1), random_tokens(15, seed=2)]
    for tokens in made:
        values = tokens.fields["expression"]
        values[::3] = np.where(values[::3] > 0, 0, values[::3])
        rng = np.random.default_rng(7)
        tokens.labels["tissues"] = rng.integers(0, 2, (len(tokens.rows), 2)).astype(np.float32)
    if unlabelled:
        made[1].labels["cell_type"][:] = -100
        made[1].labels["tissues"][:] = np.nan
        # Only special tokens: nothing to hide.
        made[1].fields["genes"][:] = 2
        made[1].fields["expression"][:] = -3
    return made


def measured(numbers, *, unlabelled):
    """Return metrics, confusion matrices and errors of genes of some of the batches."""
    objective, plan = objective_of(LOSSES, labels=(LABEL, TISSUES), masked=(EXPRESSION, GENES))
    model = model_of(plan).eval()
    metrics = ValidationMetrics(objective.terms, num_ids=17, sizes=objective.class_counts)
    for number in numbers:
        tokens = batches(unlabelled=unlabelled)[number]
        batch = objective.prepare(tokens, epoch=0).to("cpu")
        validation_step(model, batch, objective, metrics)
    found, confusions = metrics.read()
    # After the joined reading one process may look at the tables alone.
    errors = {name: each.means() for name, each in metrics.gene_errors.items()}
    return found, {each.source: each.counts.numpy() for each in confusions}, errors


def _both(rank):
    return [measured([rank], unlabelled=unlabelled) for unlabelled in (False, True)]


def test_metrics_of_two_processes_are_those_of_one():
    found = of_two_processes(_both)
    for unlabelled in (False, True):
        numbers, confusions, errors = measured([0, 1], unlabelled=unlabelled)
        sources = {name.rsplit("_", 1)[0] for name in numbers}
        assert sources >= {"cell_type", "tissues", "genes_masked"}
        for each in (process[unlabelled] for process in found):
            assert each[0] == pytest.approx(numbers, rel=1e-5)
            assert set(each[1]) == set(confusions)
            for source, counts in confusions.items():
                assert np.array_equal(each[1][source], counts)
            for name, means in errors.items():
                assert each[2][name] == pytest.approx(means, nan_ok=True)
