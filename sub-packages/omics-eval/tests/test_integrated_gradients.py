"""Integrated gradients on flat tokens: closed form, captum cell by cell, completeness."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from attribution_parts import bundle_of
from captum.attr import IntegratedGradients

from omics.data.errors import MissingExtraError
from omics.eval.gene_baseline import GeneBaseline
from omics.eval.integrated_gradients import integrated_gradients, label_logits, log_odds
from omics.models import OmicsModel, RaggedLayout
from omics.models.model_config import LabelHeadConfig
from omics.tokenizers import LabelSpec, TokenBatch

GENES = [f"g{i}" for i in range(20)]
CLASSES = LabelSpec(name="kind", classes=("x", "y", "z"))
NUMBER = LabelSpec(name="age", classes=(), kind="regression")
LENGTHS = (5, 1, 9, 0, 7)  # of the cells, [CLS] included; one has no gene, one no token


@pytest.fixture
def batch():
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    genes = np.concatenate(
        [[2, *(5 + generator.permutation(20)[: n - 1])] for n in LENGTHS if n]
    ).astype(np.int32)
    values = generator.gamma(2.0, size=len(genes)).astype(np.float32)
    values[genes == 2] = -3.0
    return TokenBatch(
        fields={"genes": genes, "expression": values},
        offsets=offsets,
        rows=np.arange(len(LENGTHS)),
    )


def explained(bundle, spec, batch, targets, *, steps=32, kind="mask"):
    baseline = GeneBaseline.of(bundle, kind)
    compared = baseline.instead_of(batch, baseline.is_gene(batch))
    scores = integrated_gradients(bundle.model, batch, compared, targets, spec=spec, steps=steps)
    return scores, compared


def odds(bundle, spec, batch, targets):
    logits = torch.from_numpy(label_logits(bundle.model, batch, label=spec.name))
    return log_odds(spec, logits, torch.from_numpy(targets)).numpy()


def test_log_odds_are_those_of_the_softmax_and_ignore_what_all_logits_share():
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
    classes = torch.tensor([0, 2])
    chance = logits.softmax(1).gather(1, classes[:, None])[:, 0]
    assert torch.allclose(log_odds(CLASSES, logits, classes), (chance / (1 - chance)).log())
    assert torch.allclose(
        log_odds(CLASSES, logits + 5, classes), log_odds(CLASSES, logits, classes)
    )
    several = LabelSpec(name="kind", classes=("x", "y", "z"), kind="multilabel")
    assert log_odds(several, logits, classes).tolist() == [1.0, 1.0]
    assert log_odds(NUMBER, logits[:, :1], torch.tensor([0, 0])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("kind", ["mask", "zero"])
@pytest.mark.parametrize("attention", ["softmax", "favor"])
def test_scores_add_up_to_the_change_of_the_log_odds(batch, kind, attention):
    bundle = bundle_of(GENES, [CLASSES], attention=attention)
    targets = np.array([0, 1, 2, 0, 1])
    scores, compared = explained(bundle, CLASSES, batch, targets[:, None], steps=64, kind=kind)
    assert set(scores) == {"genes", "expression"}
    total = sum(scores.values())[:, 0]
    sums = np.bincount(batch.cell_of_token(), total, minlength=len(batch))
    change = odds(bundle, CLASSES, batch, targets) - odds(bundle, CLASSES, compared, targets)
    assert np.abs(change).max() > 0.1
    np.testing.assert_allclose(sums, change, atol=2e-4)
    special = batch.fields["genes"] == 2
    assert (total[special] == 0).all()
    assert (total[~special] != 0).all()


def test_a_linear_model_has_its_closed_form(batch):
    bundle = bundle_of(GENES, [NUMBER], num_layers=0, final_norm=False, pooled_norm=False)
    model = bundle.model
    targets = np.zeros((len(batch), 1), np.int64)
    scores, compared = explained(bundle, NUMBER, batch, targets, steps=1)
    with torch.no_grad():
        here = model.embedding.parts(batch.to_torch().fields)
        there = model.embedding.parts(compared.to_torch().fields)
        weights = model.label_heads[0].decoder.weight[0] * model.label_heads[0].scale
    lengths = torch.tensor(LENGTHS)[torch.from_numpy(batch.cell_of_token())]
    for name in ("genes", "expression"):
        expected = ((here[name] - there[name]) @ weights / lengths).numpy()
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(scores[name][:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("positions", ["none", "rope"])
def test_a_flat_batch_equals_captum_on_each_padded_cell(batch, positions):
    bundle = bundle_of(GENES, [CLASSES], positions=positions, num_layers=2)
    model = bundle.model
    targets = np.array([2, 0, 1, 0, 0])
    scores, compared = explained(bundle, CLASSES, batch, targets[:, None], steps=20)
    with torch.no_grad():
        whole = sum(model.embedding.parts(batch.to_torch().fields).values())
        start = sum(model.embedding.parts(compared.to_torch().fields).values())
    longest = max(LENGTHS) + 3
    for cell in (0, 2, 4):
        first, last = batch.offsets[cell : cell + 2]
        length = last - first

        def padded(rows, first=first, last=last, length=length):
            filled = torch.zeros(1, longest, rows.shape[1])
            filled[0, :length] = rows[first:last]
            return filled

        def forward(rectangle, length=length, target=int(targets[cell])):
            offsets = length * torch.arange(len(rectangle) + 1)
            layout = RaggedLayout.from_offsets(offsets)
            blank = TokenBatch(fields={"genes": []}, offsets=offsets, rows=offsets[1:])
            flat = rectangle[:, :length].flatten(0, 1)
            chance = model(blank, layout, inputs=flat).labels["kind"].softmax(1)[:, target]
            return torch.logit(chance)

        expected = IntegratedGradients(forward).attribute(
            padded(whole), padded(start), n_steps=20, method="gausslegendre"
        )
        expected = expected[0].sum(-1).numpy()
        np.testing.assert_allclose(
            sum(scores.values())[first:last, 0], expected[:length], atol=2e-5
        )
        assert (expected[length:] == 0).all()


def test_many_classes_and_cells_at_once_equal_one_by_one(batch):
    bundle = bundle_of(GENES, [CLASSES])
    every = np.tile(np.arange(3), (len(batch), 1))
    together, _ = explained(bundle, CLASSES, batch, every, steps=8)
    for number in range(3):
        alone = np.full((len(batch), 1), -1)
        alone[2] = number
        scores, _ = explained(bundle, CLASSES, batch, alone, steps=8)
        for name, values in scores.items():
            first, last = batch.offsets[2:4]
            np.testing.assert_allclose(
                values[first:last, 0], together[name][first:last, number], atol=1e-6
            )
            assert not values[:first].any()
            assert not values[last:].any()


def test_a_head_that_reverses_gradients_in_training_is_explained_as_any_other(batch):
    plain = bundle_of(GENES, [CLASSES])
    heads = (LabelHeadConfig(name="kind", num_classes=3, gradient_reversal=0.7),)
    config = plain.model.model_config
    reversed_ = OmicsModel.build(replace(config, labels=heads), seed=0).eval()
    reversed_.load_state_dict(plain.model.state_dict())
    targets = np.zeros((len(batch), 1), np.int64)
    expected, compared = explained(plain, CLASSES, batch, targets, steps=4)
    found = integrated_gradients(reversed_, batch, compared, targets, spec=CLASSES, steps=4)
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)


def test_without_captum_one_line_says_what_to_install(batch, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtraError) as caught:
        explained(bundle_of(GENES, [CLASSES]), CLASSES, batch, np.zeros((5, 1), np.int64))
    assert str(caught.value) == (
        "Integrated gradients need captum, which is not installed. Run: "
        "pip install 'omics-eval[attribution]'"
    )
