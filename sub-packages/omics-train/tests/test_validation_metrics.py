"""Metrics against scikit-learn and scipy, on what the terms of an objective predict."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import pearsonr
from sklearn import metrics as sk
from training_parts import (
    CLASSIFY,
    EXPRESSION,
    GENES,
    LABEL,
    NUM_GENES,
    model_of,
    objective_of,
    random_tokens,
)

from omics.data.errors import ConfigError
from omics.tokenizers import LabelSpec
from omics.train.metric_table import METRICS, lower_is_better, reported
from omics.train.run_config import LossConfig
from omics.train.training_step import validation_step
from omics.train.validation_metrics import ValidationMetrics

OF_CLASSES = [name for name in METRICS["classes"] if name != "gene_errors"]


def validate(losses, batches, *, term=0, **options):
    """Return numbers, confusion matrices, the metrics, and all examples of a term."""
    objective, plan = objective_of(losses, **options)
    model = model_of(plan).eval()
    metrics = ValidationMetrics(objective.terms, num_ids=17, sizes=objective.class_counts)
    examples = []
    for tokens in batches:
        batch = objective.prepare(tokens, epoch=0).to("cpu")
        validation_step(model, batch, objective, metrics)
        with torch.no_grad():
            examples.append(objective.terms[term].examples(objective.forward(model, batch), batch))
    numbers, confusions = metrics.read()
    predicted = torch.cat([each.predicted for each in examples])
    truth = torch.cat([each.truth for each in examples])
    return numbers, confusions, metrics, (predicted, truth, examples)


def of_labels(*, absent=False, **changes):
    batches = [random_tokens(40, seed=1), random_tokens(25, seed=2)]
    for tokens in batches:
        if absent:  # No cell of the third class, in truth at least.
            tokens.labels["cell_type"] %= 2
        tokens.labels["cell_type"][:3] = -100
    return batches


@pytest.mark.parametrize("absent", [False, True])
def test_metrics_of_classes_are_those_of_scikit_learn(absent):
    losses = [LossConfig(name="cross_entropy", label_column_name="cell_type", metrics=OF_CLASSES)]
    numbers, confusions, _, (logits, truth, _) = validate(losses, of_labels(absent=absent))
    assert len(truth) == 59
    p, y = logits.double().softmax(-1).numpy(), truth.numpy()
    z = p.argmax(1)
    present = sorted(set(y) | set(z))
    options = {"average": "macro", "zero_division": 0, "labels": present}
    one = np.eye(3)[y]
    occurs = [c for c in range(3) if 0 < one[:, c].sum() < len(y)]
    expected = {
        "accuracy": sk.accuracy_score(y, z),
        "f1": sk.f1_score(y, z, **options),
        "precision": sk.precision_score(y, z, **options),
        "recall": sk.recall_score(y, z, **options),
        "mcc": sk.matthews_corrcoef(y, z),
        "auc": np.mean([sk.roc_auc_score(one[:, c], p[:, c]) for c in occurs]),
        "auprc": np.mean([sk.average_precision_score(one[:, c], p[:, c]) for c in occurs]),
        "perplexity": np.exp(sk.log_loss(y, p, labels=range(3))),
    }
    assert numbers == pytest.approx({f"cell_type_{k}": v for k, v in expected.items()}, rel=1e-5)
    assert confusions[0].source == "cell_type"
    assert np.array_equal(confusions[0].counts, sk.confusion_matrix(y, z, labels=range(3)))


def test_metrics_of_several_labels_are_those_of_scikit_learn():
    label = LabelSpec(name="tissues", classes=("a", "b", "c"), kind="multilabel")
    batches = [random_tokens(30, seed=seed) for seed in (1, 2)]
    rng = np.random.default_rng(0)
    for tokens in batches:
        tokens.labels["tissues"] = rng.integers(0, 2, (30, 3)).astype(np.float32)
        tokens.labels["tissues"][0] = np.nan
    losses = [
        LossConfig(
            name="bce_with_logits",
            label_column_name="tissues",
            metrics=list(METRICS["multilabel"]),
        )
    ]
    numbers, _, _, (logits, truth, _) = validate(losses, batches, labels=[label])
    p, y = logits.double().sigmoid().numpy(), truth.numpy()
    z = p > 0.5
    expected = {
        "accuracy": (z == y).mean(),
        "f1": sk.f1_score(y, z, average="macro", zero_division=0),
        "precision": sk.precision_score(y, z, average="macro", zero_division=0),
        "recall": sk.recall_score(y, z, average="macro", zero_division=0),
        "auc": sk.roc_auc_score(y, p, average="macro"),
        "auprc": sk.average_precision_score(y, p, average="macro"),
    }
    assert numbers == pytest.approx({f"tissues_{k}": v for k, v in expected.items()}, rel=1e-5)


FIELDS = [
    {"name": "{}"},
    {"name": "{}", "mvc": True},
    {"name": "{}", "wced_target": "all_genes"},
    {"name": "{}", "wced_target": "input_genes"},
    {"name": "{}", "wced_target": "non_input_genes"},
]


def batches_with_zeros():
    batches = [random_tokens(12, seed=seed) for seed in (1, 2)]
    for tokens in batches:
        expression = tokens.fields["expression"]
        expression[3::4] = np.where(expression[3::4] < 0, expression[3::4], 0)
        tokens.targets.fields["expression"][2::3] = 0
        shown = (tokens.fields["genes"] < 5) | (np.arange(tokens.num_tokens) % 3 > 0)
        tokens.fields = {name: values[shown] for name, values in tokens.fields.items()}
        tokens.offsets = np.concatenate([[0], shown.cumsum()])[tokens.offsets]
    return batches


@pytest.mark.parametrize("where", FIELDS)
def test_metrics_of_values_and_zeros_are_those_of_scikit_learn(where):
    names = [name for name in METRICS["zeros"] if name != "confusion_matrix"]
    losses = [
        LossConfig(**{**where, "name": name}, field_name="expression", metrics=[*metrics])
        for name, metrics in [("is_zero_bce", names), ("mse", ("mae", "mse", "pcc"))]
    ]
    numbers, _, _, (logits, truth, _) = validate(losses, batches_with_zeros())
    q, y = logits.double().sigmoid().numpy(), truth.numpy()
    z = q > 0.5
    source = next(iter(numbers)).split("_is_zero_")[0]
    expected = {
        "accuracy": sk.accuracy_score(y, z),
        "f1": sk.f1_score(y, z, zero_division=0),
        "precision": sk.precision_score(y, z, zero_division=0),
        "recall": sk.recall_score(y, z, zero_division=0),
        "mcc": sk.matthews_corrcoef(y, z),
    }
    for name, value in expected.items():
        assert numbers[f"{source}_is_zero_{name}"] == pytest.approx(value, abs=1e-6), name
    # Curves at a thousand thresholds.
    assert numbers[f"{source}_is_zero_auc"] == pytest.approx(sk.roc_auc_score(y, q), abs=0.02)
    precision = sk.average_precision_score(y, q)
    assert numbers[f"{source}_is_zero_auprc"] == pytest.approx(precision, abs=0.03)
    again, _, _, (predicted, values, _) = validate(losses, batches_with_zeros(), term=1)
    assert (predicted == 0).sum() == z.sum()
    wanted = {
        "mae": sk.mean_absolute_error(values, predicted),
        "mse": sk.mean_squared_error(values, predicted),
        "pcc": pearsonr(values, predicted).statistic,
    }
    for name, value in wanted.items():
        assert again[f"{source}_{name}"] == pytest.approx(value, rel=1e-4), name


def test_whole_cell_metrics_see_every_measured_gene_once():
    loss = LossConfig(name="mse", field_name="expression", wced_target="all_genes", metrics=["mse"])
    parts = {}
    for target in ("all_genes", "input_genes", "non_input_genes"):
        loss.wced_target = target
        _, _, _, (_, truth, examples) = validate([loss], batches_with_zeros())
        parts[target] = (len(truth), float(truth.sum()), torch.cat([e.genes for e in examples]))
    assert parts["all_genes"][0] == 24 * NUM_GENES
    for place in (0, 1):
        together = parts["input_genes"][place] + parts["non_input_genes"][place]
        assert parts["all_genes"][place] == pytest.approx(together)
    assert set(parts["all_genes"][2].tolist()) == set(range(5, NUM_GENES + 5))


def test_metrics_of_tokens_are_those_of_scikit_learn():
    names = ["accuracy", "f1", "precision", "recall", "perplexity", "confusion_matrix"]
    losses = [LossConfig(name="cross_entropy", field_name="genes", metrics=names)]
    batches = [random_tokens(20, seed=seed) for seed in (1, 2)]
    numbers, confusions, _, (scores, truth, _) = validate(losses, batches, masked=(GENES,))
    p, y = scores.double().softmax(-1).numpy(), truth.numpy()
    z = p.argmax(1)
    options = {"average": "macro", "zero_division": 0, "labels": sorted(set(y) | set(z))}
    expected = {
        "accuracy": sk.accuracy_score(y, z),
        "f1": sk.f1_score(y, z, **options),
        "precision": sk.precision_score(y, z, **options),
        "recall": sk.recall_score(y, z, **options),
        "perplexity": np.exp(sk.log_loss(y, p, labels=range(17))),
    }
    expected = {f"genes_masked_{k}": v for k, v in expected.items()}
    assert numbers == pytest.approx(expected, rel=1e-5)
    assert confusions[0].counts.sum() == len(y)


@pytest.mark.parametrize("only", [-100, 0])
def test_what_is_not_defined_is_left_out_without_a_warning(only):
    batches = of_labels()
    for tokens in batches:
        tokens.labels["cell_type"][:] = only
    losses = [LossConfig(name="cross_entropy", label_column_name="cell_type", metrics=OF_CLASSES)]
    numbers, _, _, (_, truth, _) = validate(losses, batches)
    assert all(np.isfinite(value) for value in numbers.values())
    assert "cell_type_auc" not in numbers
    assert ("cell_type_accuracy" in numbers) == (len(truth) > 0)


def test_a_correlation_without_spread_and_areas_of_one_kind_are_left_out():
    batches = [random_tokens(6)]
    batches[0].fields["expression"][:] = np.where(batches[0].fields["expression"] < 0, -3, 1.5)
    losses = [
        LossConfig(name="mse", field_name="expression", metrics=["pcc", "mae"]),
        LossConfig(name="is_zero_bce", field_name="expression", metrics=["auc", "auprc", "f1"]),
    ]
    numbers, _, metrics, _ = validate(losses, batches)
    assert set(numbers) == {"expression_masked_mae", "expression_masked_is_zero_f1"}
    assert metrics.read() == ({}, [])


def test_errors_of_genes_are_a_table_beside_those_of_the_mean(tmp_path):
    losses = [LossConfig(name="mse", field_name="expression", metrics=["gene_errors"])]
    numbers, _, metrics, (predicted, truth, examples) = validate(losses, batches_with_zeros())
    assert numbers == {}
    errors = metrics.gene_errors["expression_masked_mse"]
    genes = torch.cat([each.genes for each in examples]).numpy()
    names = [f"g{i}" for i in range(17)]
    errors.write(tmp_path / "genes.parquet", names=names, symbols=names)
    table = pq.read_table(tmp_path / "genes.parquet").to_pandas().set_index("gene")
    assert set(table.index) == {f"g{i}" for i in genes}
    p, y = predicted.double().numpy(), truth.double().numpy()
    for gene in np.unique(genes):
        here = genes == gene
        row = table.loc[f"g{gene}"]
        assert row["predictions"] == here.sum()
        assert row["mae"] == pytest.approx(np.abs(p - y)[here].mean())
        assert row["mse"] == pytest.approx(((p - y)[here] ** 2).mean())
        assert row["mse_of_mean"] == pytest.approx(y[here].var(), abs=1e-9)
        assert row["mean_value"] == pytest.approx(y[here].mean())
        expressed = here & (y > 0)
        assert row["expressed"] == expressed.sum()
        if expressed.any():
            assert row["mae_expressed"] == pytest.approx(np.abs(p - y)[expressed].mean())
    assert errors.means()[5:] == pytest.approx(
        [np.abs(p - y)[genes == g].mean() if (genes == g).any() else np.nan for g in range(5, 17)],
        nan_ok=True,
    )


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"name": "cross_entropy", "label_column_name": "cell_type", "metrics": ["acuracy"]},
            "Did you mean 'accuracy'",
        ),
        (
            {"name": "mse", "field_name": "expression", "metrics": ["f1"]},
            "cannot have the metric 'f1'",
        ),
    ],
)
def test_a_metric_that_a_loss_cannot_have_is_refused(loss, message):
    with pytest.raises(ConfigError, match=message):
        objective_of([LossConfig(**loss)])


def test_a_confusion_matrix_of_thousands_of_classes_is_refused():
    label = LabelSpec(name="donor", classes=tuple(f"d{i}" for i in range(2001)))
    loss = LossConfig(name="cross_entropy", label_column_name="donor", metrics=["confusion_matrix"])
    with pytest.raises(ConfigError, match="2001 classes: a confusion matrix"):
        objective_of([loss], labels=[label])


def test_what_the_history_may_hold_is_known_and_says_which_way_is_better():
    losses = [
        LossConfig(name="cross_entropy", label_column_name="cell_type", group="labels"),
        LossConfig(name="mse", field_name="expression", metrics=["mae", "pcc", "gene_errors"]),
    ]
    objective, _ = objective_of(losses, labels=(LABEL,), masked=(EXPRESSION,))
    terms = reported(objective.terms)
    assert terms == {
        "loss",
        "labels_loss",
        "cell_type_cross_entropy_loss",
        "cell_type_accuracy",
        "cell_type_f1",
        "expression_masked_mse_loss",
        "expression_masked_mae",
        "expression_masked_pcc",
    }
    falling = {term for term in terms if lower_is_better(term)}
    assert falling == {term for term in terms if term.endswith(("loss", "mae"))}
    assert CLASSIFY[0].metrics is None
