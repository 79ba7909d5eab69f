"""Which classes are explained, and what is checked of each cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attribution_parts import bundle_of
from scipy import stats

from omics.data.errors import ConfigError, InputDataError, UnknownNameError, UsageError
from omics.eval.explained_cells import (
    AttributionOptions,
    Explainer,
    rank_correlations,
    shuffled_model,
    targets_of,
    top_tokens,
)
from omics.models import Bundle
from omics.tokenizers import LabelSpec, TokenBatch

GENES = [f"g{i}" for i in range(30)]
KIND = LabelSpec(name="kind", classes=("x", "y", "z"))
OPTIONS = AttributionOptions(steps=16, num_top=3)
WANTED = np.ones(3, bool)
LOGITS = np.array([[2.0, 1.0, -1.0], [-3.0, -1.0, -2.0]])


def batch_of(lengths, seed=0):
    """Cells of so many genes behind [CLS]."""
    generator = np.random.default_rng(seed)
    genes = np.concatenate([[2, *(5 + generator.permutation(30)[:n])] for n in lengths])
    values = generator.gamma(2.0, size=len(genes)).astype(np.float32)
    values[genes == 2] = -3.0
    return TokenBatch(
        fields={"genes": genes.astype(np.int32), "expression": values},
        offsets=np.concatenate([[0], np.cumsum(np.array(lengths) + 1)]),
        rows=np.arange(10, 10 + len(lengths)),
    )


def test_a_cell_is_explained_for_its_class_or_for_every_wanted_one():
    assert targets_of(KIND, LOGITS, WANTED, every=False).tolist() == [[0], [1]]
    only = np.array([False, True, True])
    assert targets_of(KIND, LOGITS, only, every=False).tolist() == [[-1], [1]]
    assert targets_of(KIND, LOGITS, only, every=True).tolist() == [[1, 2], [1, 2]]


def test_of_several_labels_each_that_is_given_and_of_a_number_its_value():
    several = replace(KIND, kind="multilabel")
    assert targets_of(several, LOGITS, WANTED, every=False).tolist() == [[0, 1], [-1, -1]]
    number = LabelSpec(name="age", classes=(), kind="regression")
    assert targets_of(number, LOGITS[:, :1], WANTED[:1], every=False).tolist() == [[0], [0]]


def test_top_tokens_are_genes_and_the_highest():
    batch = batch_of([4, 1, 0])
    is_gene = np.asarray(batch.fields["genes"]) != 2
    order = np.array([9.0, 1.0, 4.0, -2.0, 3.0, 9.0, -5.0, 9.0])
    found = top_tokens(batch, order, is_gene, 2)
    assert found.tolist() == [False, False, True, False, True, False, True, False]


def test_rank_correlations_are_those_of_scipy_with_ties():
    generator = np.random.default_rng(0)
    lengths = [12, 1, 0, 7, 5]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    first = generator.integers(0, 5, offsets[-1]).astype(float)
    second = generator.normal(size=offsets[-1])
    second[-5:] = 1.0
    found = rank_correlations(offsets, first, second)
    for index in (0, 3):
        own = slice(offsets[index], offsets[index + 1])
        assert found[index] == pytest.approx(stats.spearmanr(first[own], second[own]).statistic)
    assert np.isnan(found[[1, 2, 4]]).all()


def test_a_shuffled_model_has_the_same_weights_in_another_order():
    model = bundle_of(GENES, [KIND]).model
    head = shuffled_model(model, prefix="label_heads.0.", seed=[1])
    whole = shuffled_model(model, prefix="", seed=[1])
    own = dict(model.named_parameters())
    for name, weights in head.named_parameters():
        assert torch.equal(weights, own[name]) != (name == "label_heads.0.decoder.weight") or (
            name == "label_heads.0.decoder.bias"
        )
    for name, weights in whole.named_parameters():
        assert torch.equal(weights.flatten().sort().values, own[name].flatten().sort().values)
    table = "embedding.fields.genes.weight"
    assert not torch.equal(dict(whole.named_parameters())[table], own[table])


def test_each_pair_has_the_genes_of_its_cell_and_scores_that_add_up():
    bundle = bundle_of(GENES, [KIND])
    batch = batch_of([6, 0, 9])
    explainer = Explainer(bundle, replace(OPTIONS, targets="every", classes=["z", "y"]))
    found = explainer.explain(batch, seen=np.array([True, False, True]))
    assert found.rows.tolist() == [10, 10, 12, 12]
    assert found.classes.tolist() == [1, 2, 1, 2]
    assert np.diff(found.offsets).tolist() == [6, 6, 9, 9]
    assert found.genes.tolist()[:6] == batch.fields["genes"][1:7].tolist()
    np.testing.assert_allclose(found.scores, sum(found.of_field.values()), atol=1e-12)
    assert set(found.measured) == {
        "completeness_error",
        "drop_top",
        "drop_random",
        "correlation_shuffled_head",
        "correlation_shuffled_model",
    }
    assert (found.measured["completeness_error"] < 0.01).all()
    few = Explainer(bundle, replace(OPTIONS, steps=1, targets="every"))
    rough = few.explain(batch, seen=np.array([True, False, True])).measured["completeness_error"]
    assert rough.max() > found.measured["completeness_error"].max()


def test_hiding_all_genes_undoes_the_whole_change():
    # With at least as many top genes as a cell has, top and random ones are the same: all.
    bundle = bundle_of(GENES, [KIND])
    batch = batch_of([6, 9])
    found = Explainer(bundle, replace(OPTIONS, num_top=9)).explain(batch, seen=np.ones(2, bool))
    sums = np.add.reduceat(found.scores, found.offsets[:-1])
    np.testing.assert_allclose(found.measured["drop_top"], sums, atol=0.02)
    assert np.array_equal(found.measured["drop_top"], found.measured["drop_random"])


def test_random_genes_depend_on_the_cell_alone():
    bundle = bundle_of(GENES, [KIND])
    both = batch_of([12, 15])
    alone = TokenBatch(
        fields={name: values[13:] for name, values in both.fields.items()},
        offsets=np.array([0, 16]),
        rows=both.rows[1:],
    )
    explainer = Explainer(bundle, OPTIONS)
    together = explainer.explain(both, seen=np.ones(2, bool)).measured["drop_random"]
    found = explainer.explain(alone, seen=np.ones(1, bool)).measured["drop_random"]
    assert found[0] == pytest.approx(together[1], abs=1e-5)
    other = Explainer(bundle, replace(OPTIONS, seed=1))
    assert other.explain(both, seen=np.ones(2, bool)).measured["drop_random"][1] != together[1]


def test_roll_out_is_the_same_for_a_shuffled_head():
    explainer = Explainer(bundle_of(GENES, [KIND]), replace(OPTIONS, method="rollout"))
    found = explainer.explain(batch_of([6, 9]), seen=np.ones(2, bool))
    assert found.measured["correlation_shuffled_head"].tolist() == pytest.approx([1.0, 1.0])
    assert (found.measured["correlation_shuffled_model"] < 0.99).all()
    assert "completeness_error" not in found.measured
    assert not found.of_field


def test_a_model_that_gives_no_numbers_is_refused():
    bundle = bundle_of(GENES, [KIND])
    with torch.no_grad():
        bundle.model.label_heads[0].decoder.bias[1] = torch.nan
    with pytest.raises(InputDataError, match=r"not finite, first for the cell in row 11"):
        Explainer(bundle, replace(OPTIONS, checks=False)).explain(
            batch_of([6, 9]), seen=np.array([False, True])
        )


def two_labels():
    return bundle_of(GENES, [KIND, LabelSpec(name="sex", classes=("f", "m"))])


def unlabelled():
    plain = bundle_of(GENES, [])
    return Bundle(model=plain.model, tokenizer=plain.tokenizer)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (unlabelled, {}, ConfigError, "no label heads, so there is no answer to explain"),
        (two_labels, {}, ConfigError, "the labels kind, sex: name one"),
        (two_labels, {"label": "sexx"}, UnknownNameError, "Did you mean 'sex'"),
        (
            two_labels,
            {"label": "sex", "classes": ["m", "g"]},
            UnknownNameError,
            "The label 'sex' has no class 'g'. Known: 'f', 'm'",
        ),
    ],
)
def test_what_cannot_be_explained_is_said(make, options, error, message):
    with pytest.raises(error) as caught:
        Explainer(make(), AttributionOptions(**options))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "integrated_gradient"}, ConfigError, "Did you mean 'integrated_gradients'"),
        ({"baseline": "zeros"}, ConfigError, "Did you mean 'zero'"),
        ({"targets": "all"}, ConfigError, "Known: 'predicted', 'every'"),
        ({"steps": 0}, UsageError, "steps is 0; it must be at least 1"),
        ({"max_cells": 0}, UsageError, "max_cells is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error) as caught:
        AttributionOptions(**options)
    assert message in str(caught.value)
