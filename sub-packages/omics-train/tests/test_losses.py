from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_parts import (
    CLASSIFY,
    EXPRESSION,
    GENES,
    LABEL,
    NUM_GENES,
    PRETRAIN,
    model_of,
    objective_of,
    random_tokens,
)

from omics.tokenizers import LabelSpec
from omics.train.loss_formulas import negative_binomial, zero_focal
from omics.train.losses_label import class_weights
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


def run(losses, num_cells=6, tokens=None, **options):
    objective, plan = objective_of(losses, **options)
    model = model_of(plan)
    tokens = random_tokens(num_cells) if tokens is None else tokens
    batch = objective.prepare(tokens, epoch=0)
    ready = batch.to("cpu")
    with torch.no_grad():
        output = objective.forward(model, ready)
        sums = {t.name: float(t.total(output, ready)) for t in objective.terms}
    return tokens, batch, output, sums


def half_shown(num_cells=6):
    """Return cells that show every second of their genes, one of them also a gene they lack."""
    tokens = random_tokens(num_cells)
    shown = tokens.targets
    keep = np.arange(len(shown.fields["genes"])) % 2 == 0
    before = np.concatenate([[0], keep.cumsum()])
    genes, values = (shown.fields[name][keep] for name in ("genes", "expression"))
    offsets = before[shown.offsets]
    lacking = np.setdiff1d(np.arange(5, NUM_GENES + 5), shown.fields["genes"][: shown.offsets[1]])[
        :1
    ]
    tokens.fields = {
        "genes": np.concatenate([lacking, genes]).astype(np.int32),
        "expression": np.concatenate([[0.0], values]).astype(np.float32),
    }
    tokens.offsets = np.concatenate([[0], offsets[1:] + 1])
    return tokens


FORMULAS = {
    "mse": lambda p, y: (p[:, :, 0] - y) ** 2,
    "mae": lambda p, y: (p[:, :, 0] - y).abs(),
    "poisson": lambda p, y: p[:, :, 0].exp() - y * p[:, :, 0] + torch.lgamma(y + 1),
    "negative_binomial": lambda p, y: negative_binomial(p[:, :, 0], p[:, :, 1], y),
    "is_zero_bce": lambda p, y: F.binary_cross_entropy_with_logits(
        p[:, :, 0], (y == 0).float(), reduction="none"
    ),
    "is_zero_focal": lambda p, y: zero_focal(p[:, :, 0], y, gamma=2.0),
}


@pytest.mark.parametrize("measured", [range(5, 17), [5, 6, 9, 11, 12, 16]])
@pytest.mark.parametrize("ignore_zero", [None, True])
@pytest.mark.parametrize("target", ["all_genes", "input_genes", "non_input_genes"])
@pytest.mark.parametrize("name", FORMULAS)
def test_whole_cell_losses_equal_their_dense_definition(name, target, ignore_zero, measured):
    if ignore_zero and name.startswith("is_zero"):
        ignore_zero = None
    tokens = half_shown()
    measured = np.array(measured)
    for part in (tokens, tokens.targets):  # A tokenizer makes no token of what is not measured.
        keep = np.isin(part.fields["genes"], measured)
        before = np.concatenate([[0], keep.cumsum()])
        part.fields = {key: values[keep] for key, values in part.fields.items()}
        part.offsets = before[part.offsets]
    loss = LossConfig(
        name=name, field_name="expression", wced_target=target, ignore_zero=ignore_zero
    )
    tokens, batch, output, sums = run([loss], tokens=tokens, measured=measured)
    dense = dense_targets(tokens)[:, measured]
    is_input = torch.zeros(len(tokens), NUM_GENES + 5, dtype=torch.bool)
    is_input[tokens.cell_of_token(), tokens.fields["genes"].astype(int)] = True
    is_input = is_input[:, measured]
    decoded = output.wced["expression"]
    if decoded.shape[1] > len(measured):
        decoded = decoded[:, measured]
    losses = FORMULAS[name](decoded, dense)
    counts = {"all_genes": torch.ones_like(is_input), "input_genes": is_input}.get(
        target, ~is_input
    )
    if ignore_zero:
        counts = counts & (dense > 0)
    source = target.replace("_genes", "")
    key = f"expression_wced{'' if source == 'all' else '_' + source}_{name}"
    assert sums[key] == pytest.approx(float((losses * counts).sum()), rel=1e-4)
    assert batch.counts[key] == int(counts.sum()) > 0


def test_the_default_losses_are_dense_ones_too():
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


def test_a_decoder_is_run_for_the_measured_genes_where_these_are_few():
    few = [5, 6, 9]
    _, _, output, _ = run(PRETRAIN[1:], tokens=only(random_tokens(4), few), measured=few)
    assert output.wced["expression"].shape[1] == 3
    _, _, output, _ = run(PRETRAIN[1:])
    assert output.wced["expression"].shape[1] == NUM_GENES + 5


def only(tokens, genes):
    """Return cells with some genes alone."""
    for part in (tokens, tokens.targets):
        keep = np.isin(part.fields["genes"], [2, *genes])
        before = np.concatenate([[0], keep.cumsum()])
        part.fields = {key: values[keep] for key, values in part.fields.items()}
        part.offsets = before[part.offsets]
    return tokens


def test_masked_mse_is_over_the_hidden_tokens():
    _, batch, output, sums = run(PRETRAIN)
    predicted = output.fields["expression_regression"][:, 0].detach().numpy()
    error = ((predicted - batch.questions["expression"].values) ** 2).sum()
    assert sums["expression_masked_mse"] == pytest.approx(float(error), rel=1e-5)
    assert batch.counts["expression_masked_mse"] == len(predicted) > 0


def test_masked_cross_entropy_of_gene_ids():
    losses = [LossConfig(name="cross_entropy", field_name="genes")]
    _, batch, output, sums = run(losses, masked=(GENES,))
    scores = output.fields["genes_token_scores"].log_softmax(-1).detach().numpy()
    truth = batch.questions["genes"].values
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
    examples = objective.terms[0].examples(output, ready)
    assert torch.equal(examples.truth, labels)
    assert torch.equal(examples.predicted, output.labels["cell_type"][2:])


def test_masked_losses_read_their_heads_and_skip_zeros_where_asked():
    names = ("mse", "mae", "is_zero_bce", "is_zero_focal")
    losses = [LossConfig(name=name, field_name="expression") for name in names]
    losses.append(LossConfig(name="mse", field_name="expression", mvc=True, ignore_zero=True))
    tokens = random_tokens(6)
    tokens.fields["expression"][1::3] = np.maximum(tokens.fields["expression"][1::3], 0) * 0
    _, batch, output, sums = run(losses, tokens=tokens)
    truth = torch.tensor(batch.questions["expression"].values)
    value, logit = (output.fields[f"expression_{k}"][:, 0] for k in ("regression", "is_zero"))
    mvc = output.fields["expression_mvc_regression"][:, 0]
    expected = {
        "expression_masked_mse": (value - truth).square().sum(),
        "expression_masked_mae": (value - truth).abs().sum(),
        "expression_masked_is_zero_bce": F.binary_cross_entropy_with_logits(
            logit, (truth == 0).float(), reduction="sum"
        ),
        "expression_masked_is_zero_focal": zero_focal(logit, truth, gamma=2.0).sum(),
        "expression_mvc_mse": ((mvc - truth).square() * (truth > 0)).sum(),
    }
    assert 0 < batch.counts["expression_mvc_mse"] == int((truth > 0).sum()) < len(truth)
    assert batch.counts["expression_masked_mse"] == len(truth)
    for name, wanted in expected.items():
        assert sums[name] == pytest.approx(float(wanted), rel=1e-5)


def test_zero_inflated_predictions_are_zero_where_the_zero_head_says_so():
    losses = [
        LossConfig(name="mse", field_name="expression", ignore_zero=True, link_function="exp"),
        LossConfig(name="is_zero_bce", field_name="expression"),
    ]
    objective, plan = objective_of(losses)
    batch = objective.prepare(random_tokens(8), epoch=0).to("cpu")
    output = objective.forward(model_of(plan), batch)
    output.fields["expression_is_zero"] = output.fields["expression_is_zero"] + 0.25
    value, logit = (output.fields[f"expression_{k}"][:, 0] for k in ("regression", "is_zero"))
    assert 0 < int((logit > 0).sum()) < len(logit)
    examples = objective.terms[0].examples(output, batch)
    assert torch.equal(examples.predicted, torch.where(logit > 0, 0.0, value.exp()))
    assert plan.field_heads[0].link == "exp"


LABELS = [
    LabelSpec(name="tissues", classes=("a", "b", "c"), kind="multilabel"),
    LabelSpec(name="age", classes=(), kind="regression"),
    LabelSpec(
        name="ontology",
        classes=("a", "b", "c"),
        kind="hierarchy",
        nodes={"ab": (0, 1), "all": (0, 1, 2)},
    ),
]
OF_LABELS = [
    LossConfig(name="bce_with_logits", label_column_name="tissues"),
    LossConfig(name="mse", label_column_name="age", shrinkage=0.1),
    LossConfig(name="hce", label_column_name="ontology"),
]


def with_labels(tokens):
    n = len(tokens)
    tissues = np.random.default_rng(1).integers(0, 2, (n, 3)).astype(np.float32)
    tissues[0] = np.nan
    tokens.labels = {
        "tissues": tissues,
        "age": np.array([np.nan, *range(1, n)], np.float32),
        "ontology": np.array([-100, *(i % 5 for i in range(1, n))]),
    }
    return tokens


def test_other_kinds_of_labels_skip_unlabelled_cells():
    tokens = with_labels(random_tokens(6))
    _, batch, output, sums = run(OF_LABELS, labels=LABELS, tokens=tokens)
    assert set(batch.counts.values()) == {5.0}
    tissues = output.labels["tissues"][1:]
    bce = F.binary_cross_entropy_with_logits(
        tissues, torch.tensor(tokens.labels["tissues"][1:]), reduction="none"
    )
    assert sums["tissues_bce_with_logits"] == pytest.approx(float(bce.mean(-1).sum()), rel=1e-5)
    age = output.labels["age"][1:, 0]
    mse = ((age - torch.arange(1.0, 6.0)) ** 2 + 0.1 * age**2).sum()
    assert sums["age_mse"] == pytest.approx(float(mse), rel=1e-5)
    p = output.labels["ontology"].softmax(-1)
    below = [p[1, 1], p[2, 2], p[3, 0] + p[3, 1], torch.tensor(1.0), p[5, 0]]
    hce = -torch.stack(below).log().sum()
    assert sums["ontology_hce"] == pytest.approx(float(hce), rel=1e-4)


def test_a_predicted_class_below_a_node_is_right():
    objective, plan = objective_of(OF_LABELS[2:], labels=LABELS[2:])
    batch = objective.prepare(with_labels(random_tokens(6)), epoch=0).to("cpu")
    output = objective.forward(model_of(plan), batch)
    output.labels["ontology"][3] = torch.tensor([0.0, 1.0, 5.0])  # c, and the label is `ab`
    output.labels["ontology"][4] = torch.tensor([0.0, 1.0, 5.0])  # c, and the label is `all`
    truth = objective.terms[0].examples(output, batch).truth
    assert truth.tolist() == [1, 2, 1, 2, 0]


@pytest.mark.parametrize(
    ("losses", "labels"),
    [
        (PRETRAIN, ()),
        (CLASSIFY, None),
        (OF_LABELS, LABELS),
        ([LossConfig(name="cross_entropy", field_name="genes")], ()),
        ([LossConfig(name="focal", field_name="genes")], ()),
        ([LossConfig(name="mae", field_name="expression", wced_target="input_genes")], ()),
        ([LossConfig(name="mse", field_name="expression", mvc=True)], ()),
        ([LossConfig(name="focal", label_column_name="cell_type")], None),
    ],
)
def test_a_batch_without_targets_gives_zero_with_a_graph(losses, labels):
    options = {} if labels is None else {"labels": labels}
    masked = (GENES,) if losses[0].field_name == "genes" else (EXPRESSION,)
    objective, plan = objective_of(losses, change_ratio=0.0, masked=masked, **options)
    model = model_of(plan)
    tokens = random_tokens(3)
    tokens.labels["cell_type"][:] = -100
    tokens.labels |= {
        "tissues": np.full((3, 3), np.nan, np.float32),
        "age": np.full(3, np.nan, np.float32),
        "ontology": np.full(3, -100),
    }
    empty = random_tokens(1)
    tokens.targets = type(tokens)(
        fields={name: values[:0] for name, values in empty.targets.fields.items()},
        offsets=np.zeros(4, np.int64),
        rows=tokens.rows,
    )
    if losses[0].wced_target == "input_genes":  # Only [CLS] is left.
        tokens.fields = {name: v[tokens.offsets[:-1]] for name, v in tokens.fields.items()}
        tokens.offsets = np.arange(4)
    batch = objective.prepare(tokens, epoch=0)
    output = objective.forward(model, batch.to("cpu"))
    empty_terms = 0
    for term in objective.terms:
        total = term.total(output, batch.to("cpu"))
        assert torch.isfinite(total)
        assert total.requires_grad
        if term.count(batch) == 0:
            empty_terms += 1
            assert float(total.detach()) == 0.0
    assert empty_terms


def test_class_weights_average_one_over_the_cells():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, -100])
    balanced = class_weights(labels, 4, 1.0)
    assert balanced[3] == 0
    assert float((balanced[labels[:7]]).mean()) == pytest.approx(1.0)
    assert float(balanced[2] / balanced[0]) == pytest.approx(4.0)
    assert class_weights(labels, 3, 0.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.gpu
def test_a_step_waits_for_nothing_on_the_device():
    from omics.train.batch_window import fill_totals
    from omics.train.training_step import training_step

    losses = [
        *PRETRAIN,
        *CLASSIFY,
        LossConfig(name="mae", field_name="expression", wced_target="non_input_genes"),
        LossConfig(name="is_zero_focal", field_name="expression", wced_target="input_genes"),
        LossConfig(name="mse", field_name="expression", mvc=True, ignore_zero=True),
        *OF_LABELS,
    ]
    objective, plan = objective_of(losses, labels=[LABEL, *LABELS])
    model = model_of(plan).cuda()
    tokens = [random_tokens(6, seed=seed) for seed in (0, 1)]
    for each in tokens:
        each.labels = {**with_labels(each).labels, "cell_type": np.arange(6) % 3}
    batches = [objective.prepare(each, epoch=0) for each in tokens]
    for batch in batches:
        fill_totals([batch])
    objective = objective.to("cuda")
    training_step(model, batches[0].to("cuda"), objective)[
        0
    ].backward()  # Sets up what is set up once.
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(model, batches[1].to("cuda"), objective)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
