from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from training_parts import (
    CLASSIFY,
    EXPRESSION,
    GENES,
    LABEL,
    PRETRAIN,
    asked_of,
    heads_of,
    model_of,
    objective_of,
    random_tokens,
)

from omics.data.errors import ConfigError, InputDataError
from omics.tokenizers import FieldSpec, LabelSpec
from omics.train.batch_window import fill_totals
from omics.train.head_plan import plan_heads, with_label_losses
from omics.train.run_config import LossConfig
from omics.train.training_batch import FixedShape
from omics.train.training_step import training_step

BINS = FieldSpec(
    name="expression",
    kind="discrete",
    vocabulary_size=8,
    special_ids=(0, 1, 2, 3, 4),
    mask_id=4,
    token_values=(*[float("nan")] * 5, 0.0, 1.0, 2.0),
)


def planned(losses, *, labels=(LABEL,), **options):
    return plan_heads(losses, asked_of(losses, labels=labels, **options), heads_of(labels))


def test_without_sampled_input_the_whole_cell_is_its_own_target_before_masking():
    objective, _ = objective_of(PRETRAIN)
    tokens = random_tokens(4)
    with_target = objective.prepare(tokens, epoch=0)
    tokens.targets = None
    without = objective.prepare(tokens, epoch=0)
    for part in ("cell", "gene", "value"):
        ours, theirs = (
            getattr(batch.whole_cells["expression"].expressed, part)
            for batch in (without, with_target)
        )
        assert np.array_equal(ours, theirs)
    assert without.counts == with_target.counts


@pytest.mark.parametrize(
    ("losses", "leading", "share"),
    [(PRETRAIN[:1], 0, "some"), (PRETRAIN[:1], None, None), (CLASSIFY, 1, "first")],
)
def test_tokens_that_losses_read_are_found_on_the_host(losses, leading, share):
    objective, _ = objective_of(losses, change_ratio=0.2)
    objective = dataclasses.replace(objective, leading_tokens=leading)
    tokens = random_tokens(6)
    batch = objective.prepare(tokens, epoch=0)
    if share is None:
        assert batch.asked is None
    elif share == "first":
        assert np.array_equal(batch.asked, tokens.offsets[:-1][tokens.lengths > 0])
    else:
        assert np.array_equal(batch.asked, batch.questions["expression"].positions)
        assert 0 < len(batch.asked) < tokens.num_tokens / 3


def test_most_tokens_are_not_picked_out():
    objective, _ = objective_of(PRETRAIN[:1], change_ratio=0.95)
    objective = dataclasses.replace(objective, leading_tokens=0)
    assert objective.prepare(random_tokens(6), epoch=0).asked is None


def test_a_batch_without_questions_still_gives_every_weight_a_gradient():
    """Of zero: other processes wait for it."""
    objective, plan = objective_of(PRETRAIN[:1], change_ratio=1e-9, labels=())
    objective = dataclasses.replace(objective, leading_tokens=0)
    batch = objective.prepare(random_tokens(6), epoch=0)
    assert len(batch.questions["expression"].positions) == 0
    fill_totals([batch])
    model = model_of(plan).train()
    training_step(model, batch.to("cpu"), objective)[0].backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("shape", [None, FixedShape(num_tokens=400, longest=100)])
def test_a_step_on_the_tokens_that_are_read_is_one_on_all(shape):
    losses = [*PRETRAIN[:1], *CLASSIFY]
    objective, plan = objective_of(losses, change_ratio=0.2)
    model = model_of(plan, pooling="first_token").train()
    leading = model.model_config.leading_tokens()
    assert leading == 1
    found = []
    for number in (leading, None):
        each = dataclasses.replace(objective, leading_tokens=number)
        batch = dataclasses.replace(each.prepare(random_tokens(6), epoch=0), shape=shape)
        fill_totals([batch])
        moved = batch.to("cpu")
        assert (moved.asked is None) == (number is None)
        if shape is not None and number is not None:
            assert len(moved.asked.tokens) in shape.asked_sizes(400)
            assert moved.asked.layout.longest >= int(moved.asked.layout.lengths.max())
        model.zero_grad()
        loss, sums = training_step(model, moved, each)
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([loss.detach(), *(total for total, _ in sums.values()), *gradients])
    assert len(found[0]) > 20
    for some, every in zip(*found, strict=True):
        assert torch.allclose(some, every, atol=1e-5, rtol=1e-4)


def test_hidden_values_of_thinned_cells_are_those_they_had():
    objective, _ = objective_of(PRETRAIN[:1], denoised=["expression"])
    tokens = random_tokens(6)
    whole = tokens.targets.fields["expression"].copy()
    is_gene = tokens.fields["genes"] >= 5
    tokens.fields["expression"][is_gene] = whole / 2
    tokens.fields["expression"][np.flatnonzero(is_gene)[::4]] = 0.0  # Lost all of its counts.
    asked = objective.prepare(tokens, epoch=0).questions["expression"]
    place = np.cumsum(is_gene) - 1
    assert len(asked.values)
    assert np.array_equal(asked.values, whole[place[asked.positions]])


def test_every_gene_of_the_input_is_asked_for_its_value_in_the_target():
    losses = [
        LossConfig(name="mse", field_name="label_expression"),
        LossConfig(name="is_zero_bce", field_name="label_expression"),
    ]
    objective, plan = objective_of(losses, answered=["label_expression"])
    assert [head.name for head in plan.field_heads] == [
        "label_expression_regression",
        "label_expression_is_zero",
    ]
    tokens = random_tokens(5, seed=1)
    tokens.targets = random_tokens(5, seed=2).targets  # Other genes than the input has.
    batch = objective.prepare(tokens, epoch=0)
    asked = batch.questions["label_expression"]
    assert np.array_equal(asked.positions, np.flatnonzero(tokens.fields["genes"] >= 5))
    cell = tokens.cell_of_token()
    target_cell = tokens.targets.cell_of_token()
    for position, value in zip(asked.positions, asked.values, strict=True):
        same = (target_cell == cell[position]) & (
            tokens.targets.fields["genes"] == tokens.fields["genes"][position]
        )
        assert value == (tokens.targets.fields["expression"][same].sum() if same.any() else 0.0)
    assert 0 < np.count_nonzero(asked.values) < len(asked.values)
    output = objective.forward(model_of(plan), batch.to("cpu"))
    assert output.fields["label_expression_is_zero"].shape == (len(asked.values), 1)


def test_the_input_does_not_depend_on_the_target():
    """Which genes the answer expresses must not be seen in the input, whatever it is."""
    objective, _ = objective_of(
        [LossConfig(name="mse", field_name="label_expression")], answered=["label_expression"]
    )
    tokens = random_tokens(5, seed=1)
    inputs = []
    for seed in (2, 3):
        tokens.targets = random_tokens(5, seed=seed).targets
        batch = objective.prepare(tokens, epoch=0)
        inputs.append((batch.tokens, batch.questions["label_expression"].positions))
        assert batch.tokens.targets is None
    for name in ("genes", "expression"):
        assert np.array_equal(inputs[0][0].fields[name], inputs[1][0].fields[name])
    assert np.array_equal(inputs[0][1], inputs[1][1])


def test_bins_are_decoded_and_expected_by_their_numbers():
    losses = [
        LossConfig(name="token_value", field_name="expression"),
        LossConfig(name="mse", field_name="expression", wced_target="all_genes"),
    ]
    objective, _ = objective_of(losses, masked=(BINS,), fields=(GENES, BINS))
    tokens = random_tokens(4)
    for part in (tokens, tokens.targets):
        values = part.fields["expression"]
        bins = np.where(values < 0, 2, 5 + np.minimum(values, 2).astype(int))
        part.fields["expression"] = bins.astype(np.int32)
    batch = objective.prepare(tokens, epoch=0)
    expressed = batch.whole_cells["expression"].expressed.value
    number = tokens.targets.fields["expression"] - 5
    assert np.array_equal(expressed, number[number > 0])
    assert objective.terms[0].token_values[5:].tolist() == [0.0, 1.0, 2.0]
    assert objective.class_counts["expression_masked"] == 8


def test_heads_follow_from_the_losses():
    plan = planned([*PRETRAIN, *CLASSIFY])
    assert [(h.field, h.kind) for h in plan.field_heads] == [("expression", "regression")]
    assert [(w.field, w.outputs) for w in plan.wced] == [("expression", ("is_zero_bce", "mse"))]
    assert [(x.name, x.num_classes) for x in plan.labels] == [("cell_type", 3)]
    counts = [
        LossConfig(name="negative_binomial", field_name="expression"),
        LossConfig(name="is_zero_focal", field_name="expression", mvc=True),
        LossConfig(name="poisson", field_name="expression", wced_target="input_genes"),
        LossConfig(name="cross_entropy", field_name="genes", tied=True),
    ]
    plan = planned(counts, masked=(EXPRESSION, GENES))
    assert [(h.name, h.link, h.tied) for h in plan.field_heads] == [
        ("expression_regression", "exp", False),
        ("expression_log_dispersion", "identity", False),
        ("expression_mvc_is_zero", "identity", False),
        ("genes_token_scores", "identity", True),
    ]
    assert [(w.outputs, w.link) for w in plan.wced] == [(("mse",), "exp")]


def test_every_kind_of_label_has_a_loss_by_default():
    kinds = {"class": "cross_entropy", "multilabel": "bce_with_logits", "regression": "mse"}
    labels = [LabelSpec(name=kind, classes=("a", "b"), kind=kind) for kind in (*kinds, "hierarchy")]
    losses = with_label_losses([], labels)
    assert [loss.name for loss in losses] == [*kinds.values(), "hce"]
    assert [loss.label_column_name for loss in losses] == [spec.name for spec in labels]
    assert with_label_losses(CLASSIFY, [LABEL]) == CLASSIFY


def test_an_objective_of_labels_hides_nothing():
    objective, _ = objective_of(CLASSIFY)
    assert not objective.is_self_supervised
    assert objective.prepare(random_tokens(3), epoch=0).questions == {}


def test_a_target_that_is_not_finite_names_its_cell():
    objective, _ = objective_of(PRETRAIN[1:])
    tokens = random_tokens(4, first_row=7)
    tokens.targets.fields["expression"][tokens.targets.offsets[2]] = np.inf
    with pytest.raises(InputDataError, match="'expression' of the cell in row 9 holds inf"):
        objective.prepare(tokens, epoch=0)


def test_constants_move_to_the_device_of_the_model_and_counts_stay_on_the_host():
    losses = [*PRETRAIN, *CLASSIFY, LossConfig(name="token_value", field_name="expression")]
    objective, _ = objective_of(losses[:4])
    moved = objective.to("meta")
    for term in moved.terms:
        for each in dataclasses.fields(term):
            value = getattr(term, each.name)
            assert not isinstance(value, torch.Tensor) or value.device.type == "meta"
    assert objective.prepare(random_tokens(3), epoch=0).counts.keys() == {
        term.name for term in objective.terms
    }


FIELD = {"field_name": "expression"}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "mse"}, "needs either field_name or label_column_name"),
        (
            {"name": "mse", "label_column_name": "cell_type", **FIELD},
            "needs either field_name or label_column_name",
        ),
        ({"name": "cross_entropy", "label_column_name": "cell_typ"}, "Did you mean 'cell_type'"),
        ({"name": "mse", "label_column_name": "cell_type"}, "use cross_entropy or focal"),
        ({"name": "hce", "label_column_name": "cell_type"}, "does not fit a label of kind 'class'"),
        ({"name": "poisson", "label_column_name": "cell_type"}, "is not for labels"),
        ({"name": "msee", **FIELD}, "Did you mean 'mse'"),
        ({"name": "mse", "field_name": "expresion"}, "Did you mean 'expression'"),
        ({"name": "mse", "field_name": "genes"}, "does not fit the discrete field"),
        ({"name": "cross_entropy", **FIELD}, "does not fit the continuous"),
        ({"name": "token_value", "field_name": "genes"}, "needs a field of bins"),
        ({"name": "mse", "wced_target": "all_gene", **FIELD}, "Did you mean 'all_genes'"),
        ({"name": "focal", "wced_target": "all_genes", **FIELD}, "unknown for a whole cell"),
        (
            {"name": "mse", "field_name": "genes", "wced_target": "all_genes"},
            "'genes', which holds no values",
        ),
        ({"name": "negative_binomial", "mvc": True, **FIELD}, "unknown with mvc"),
        ({"name": "mse", "weight": -1.0, **FIELD}, "must not be negative"),
        ({"name": "mse", "link_function": "log", **FIELD}, "link_function 'log'"),
        ({"name": "mse", "shrinkage": -1.0, **FIELD}, r"shrinkage -1\.0; it must not be negative"),
        (
            {"name": "cross_entropy", "label_column_name": "cell_type", "label_smoothing": 1.0},
            r"label_smoothing 1\.0",
        ),
        ({"name": "is_zero_bce", "ignore_zero": True, **FIELD}, "does not use ignore_zero"),
        ({"name": "is_zero_bce", "gamma": 2.0, **FIELD}, "does not use gamma"),
        ({"name": "mse", "class_weight_exponent": 1.0, **FIELD}, "does not use class_weight_exp"),
        (
            {"name": "mse", "mvc": True, "wced_target": "all_genes", **FIELD},
            "does not use wced_target",
        ),
        (
            {"name": "cross_entropy", "label_column_name": "cell_type", "mvc": True},
            "does not use mvc: it has class_weight_exponent, label_smoothing",
        ),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused(loss, message):
    asked = dataclasses.replace(asked_of([]), hidden=frozenset({"expression", "genes"}))
    with pytest.raises(ConfigError, match=message):
        plan_heads([LossConfig(**loss)], asked)


def test_no_losses_and_repeated_losses_are_refused():
    with pytest.raises(ConfigError, match=r"trainer\.losses is empty"):
        planned([])
    with pytest.raises(ConfigError, match="a term twice"):
        objective_of([PRETRAIN[0], PRETRAIN[0]])


def test_a_field_that_is_hidden_and_predicted_by_no_loss_is_refused():
    asked = dataclasses.replace(asked_of([]), hidden=frozenset({"expression"}))
    with pytest.raises(ConfigError, match="'expression' is masked and no loss predicts it"):
        plan_heads(PRETRAIN[1:], asked)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([{"name": "mse"}, {"name": "poisson"}], "another loss of the same head has 'identity'"),
        (
            [{"name": "mse", "link_function": "softplus"}, {"name": "mae"}],
            "another loss of the same head has 'softplus'",
        ),
        (
            [
                {"name": "mse", "wced_target": "all_genes"},
                {"name": "negative_binomial", "wced_target": "input_genes"},
            ],
            "Give both the same link_function",
        ),
    ],
)
def test_losses_that_read_one_head_in_two_ways_are_refused(losses, message):
    with pytest.raises(ConfigError, match=message):
        planned([LossConfig(**loss, **FIELD) for loss in losses])
