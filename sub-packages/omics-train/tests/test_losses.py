from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_parts import (
    CLASSIFY,
    GENES,
    NUM_GENES,
    PRETRAIN,
    model_of,
    objective_of,
    random_tokens,
)

from omics.train.losses import WcedIsZero, WcedMse, class_weights
from omics.train.run_config import LossConfig


def dense_targets(tokens):
    """Return [n, V] values of the full cells, zero where a gene is not expressed."""
    dense = torch.zeros(len(tokens), NUM_GENES + 5)
    targets = tokens.targets
    for i in range(len(tokens)):
        begin, end = targets.offsets[i], targets.offsets[i + 1]
        dense[i, targets.fields["genes"][begin:end].astype(int)] = torch.tensor(
            targets.fields["expression"][begin:end]
        )
    return dense


def run(losses, num_cells=6, **options):
    objective, plan = objective_of(losses, **options)
    model = model_of(plan)
    tokens = random_tokens(num_cells)
    batch = objective.prepare(tokens, epoch=0)
    ready = batch.to("cpu")
    with torch.no_grad():
        output = objective.forward(model, ready)
    sums = {t.name: float(t.total(output, ready)) for t in objective.terms}
    return tokens, batch, output, sums


def test_whole_cell_terms_equal_their_dense_definition():
    tokens, batch, output, sums = run(PRETRAIN)
    dense = dense_targets(tokens)
    logits = output.wced["expression"][:, 5:]
    is_zero = (dense[:, 5:] == 0).float()
    bce = F.binary_cross_entropy_with_logits(logits[:, :, 0], is_zero, reduction="sum")
    assert sums["expression_wced_is_zero_bce"] == pytest.approx(float(bce), rel=1e-5)
    assert batch.counts["expression_wced_is_zero_bce"] == is_zero.numel()
    mse = ((logits[:, :, 1] - dense[:, 5:]).square() * (1 - is_zero)).sum()
    assert sums["expression_wced_mse"] == pytest.approx(float(mse), rel=1e-5)
    assert batch.counts["expression_wced_mse"] == float((1 - is_zero).sum())


def test_whole_cell_mse_over_all_genes_counts_zeros_too():
    losses = [LossConfig(name="mse", field_name="expression", wced_target="all_genes")]
    tokens, batch, output, sums = run(losses)
    dense = dense_targets(tokens)[:, 5:]
    expected = (output.wced["expression"][:, 5:, 0] - dense).square().sum()
    assert sums["expression_wced_mse"] == pytest.approx(float(expected), rel=1e-5)
    assert batch.counts["expression_wced_mse"] == dense.numel()


def test_genes_the_store_does_not_measure_are_no_targets():
    tokens, batch, output, _ = run(PRETRAIN)
    ready = batch.to("cpu")
    expressed = np.unique(tokens.targets.fields["genes"])
    some = torch.tensor(expressed.astype(np.int64))
    term = WcedIsZero(name="z", weight=1.0, field="expression", output=0, measured=some)
    logits = output.wced["expression"][:, some, 0]
    is_zero = (dense_targets(tokens)[:, some] == 0).float()
    expected = F.binary_cross_entropy_with_logits(logits, is_zero, reduction="sum")
    assert float(term.total(output, ready)) == pytest.approx(float(expected), rel=1e-5)
    assert term.count(batch) == is_zero.numel()
    mse = WcedMse(
        name="m", weight=1.0, field="expression", output=1, ignore_zero=False, measured=some
    )
    assert mse.count(batch) == is_zero.numel()


def test_masked_mse_is_over_the_hidden_tokens():
    _, batch, output, sums = run(PRETRAIN)
    predicted = output.fields["expression_regression"][:, 0].detach().numpy()
    error = ((predicted - batch.hidden_values["expression"]) ** 2).sum()
    assert sums["expression_masked_mse"] == pytest.approx(float(error), rel=1e-5)
    assert batch.counts["expression_masked_mse"] == len(predicted) > 0


def test_masked_cross_entropy_of_gene_ids():
    losses = [LossConfig(name="cross_entropy", field_name="genes")]
    _, batch, output, sums = run(losses, masked=(GENES,))
    scores = output.fields["genes_token_scores"].log_softmax(-1).detach().numpy()
    truth = batch.hidden_values["genes"]
    expected = -scores[np.arange(len(truth)), truth].sum()
    assert sums["genes_masked_cross_entropy"] == pytest.approx(float(expected), rel=1e-5)


def test_label_cross_entropy_is_weighted_and_skips_unlabelled_cells():
    objective, plan = objective_of(CLASSIFY)
    tokens = random_tokens(6)
    tokens.labels["cell_type"][:2] = -100
    batch = objective.prepare(tokens, epoch=0)
    ready = batch.to("cpu")
    with torch.no_grad():
        output = objective.forward(model_of(plan), ready)
    weights = objective.terms[0].class_weight
    labels = torch.tensor(tokens.labels["cell_type"][2:])
    log_p = output.labels["cell_type"][2:].log_softmax(-1)
    expected = -(weights[labels] * log_p[torch.arange(4), labels]).sum()
    assert float(objective.terms[0].total(output, ready)) == pytest.approx(
        float(expected), rel=1e-5
    )
    assert batch.counts["cell_type_cross_entropy"] == pytest.approx(float(weights[labels].sum()))
    right, labelled = objective.correct(output, ready)["cell_type_accuracy"]
    assert int(labelled) == 4
    assert int(right) == int((output.labels["cell_type"][2:].argmax(-1) == labels).sum())


@pytest.mark.parametrize("losses", [PRETRAIN, CLASSIFY])
def test_a_batch_without_targets_gives_zero_with_a_graph(losses):
    objective, plan = objective_of(losses, change_ratio=0.0)
    model = model_of(plan)
    tokens = random_tokens(3)
    tokens.labels["cell_type"][:] = -100
    empty = random_tokens(1)
    tokens.targets = type(tokens)(
        fields={name: values[:0] for name, values in empty.targets.fields.items()},
        offsets=np.zeros(4, np.int64),
        rows=tokens.rows,
    )
    batch = objective.prepare(tokens, epoch=0)
    output = objective.forward(model, batch.to("cpu"))
    for term in objective.terms:
        total = term.total(output, batch.to("cpu"))
        assert torch.isfinite(total)
        if term.count(batch) == 0:
            assert float(total.detach()) == 0.0
            assert total.requires_grad


def test_class_weights_average_one_over_the_cells():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, -100])
    balanced = class_weights(labels, 4, 1.0)
    assert balanced[3] == 0
    assert float((balanced[labels[:7]]).mean()) == pytest.approx(1.0)
    assert float(balanced[2] / balanced[0]) == pytest.approx(4.0)
    assert class_weights(labels, 3, 0.0).tolist() == [1.0, 1.0, 1.0]
