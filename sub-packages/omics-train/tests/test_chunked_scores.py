"""Losses of scores in chunks: the numbers and gradients of all at once, in less memory."""

from __future__ import annotations

import pytest
import torch
from training_parts import GENES, model_of, objective_of, random_tokens

from omics.models.outputs import ScoreRows
from omics.train import chunked_scores
from omics.train.batch_window import fill_totals
from omics.train.chunked_scores import summed_loss
from omics.train.run_config import LossConfig
from omics.train.training_step import training_step


def _layer(num_rows, *, width=5, ids=11, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    leaves = [
        each.requires_grad_() for each in (drawn(num_rows, width), drawn(ids, width), drawn(ids))
    ]
    return leaves, torch.randint(0, ids, (num_rows,), generator=generator)


def _cross_entropy(scores, truth):
    return torch.nn.functional.cross_entropy(scores, truth, reduction="none")


@pytest.mark.parametrize("num_rows", [0, 1, 7, 8, 9])
def test_chunks_give_value_and_gradients_of_all_rows(num_rows):
    leaves, truth = _layer(num_rows)
    whole = _cross_entropy(ScoreRows(*leaves).scores(), truth).sum() * 3
    expected = torch.autograd.grad(whole, leaves)
    found = summed_loss(ScoreRows(*leaves), truth, _cross_entropy, chunk_scores=44) * 3
    torch.testing.assert_close(found.double(), whole, rtol=1e-6, atol=1e-6)
    for gradient, known in zip(torch.autograd.grad(found, leaves), expected, strict=True):
        torch.testing.assert_close(gradient, known)


def test_no_chunk_is_larger_than_asked_and_none_stays():
    sizes = []

    def loss(scores, truth):
        sizes.append(scores.numel())
        return _cross_entropy(scores, truth)

    leaves, truth = _layer(25)
    total = summed_loss(ScoreRows(*leaves), truth, loss, chunk_scores=44)
    assert sizes == [44] * 6 + [11]
    total.backward()
    assert len(sizes) == 7, "scores were computed again"


def test_inner_layers_get_their_gradient_and_a_tied_table_the_sum_of_both():
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(11, 5, generator=generator, requires_grad=True)
    bias = torch.zeros(11, requires_grad=True)
    ids = torch.arange(9)

    def run(chunk_scores):
        hidden = torch.tanh(table[ids])
        rows = ScoreRows(hidden, table, bias)
        total = summed_loss(rows, ids.flip(0), _cross_entropy, chunk_scores=chunk_scores)
        return torch.autograd.grad(total, [table, bias])

    for one, other in zip(run(22), run(10**6), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
@pytest.mark.parametrize("tied", [None, True])
def test_a_training_step_is_the_same_in_chunks(monkeypatch, name, tied):
    loss = LossConfig(name=name, field_name="genes", tied=tied)
    steps = []
    for chunk in (10**9, 34):
        monkeypatch.setattr(chunked_scores, "CHUNK_SCORES_ON_CPU", chunk)
        objective, plan = objective_of([loss], masked=(GENES,))
        model = model_of(plan)
        batch = objective.prepare(random_tokens(6), epoch=0)
        fill_totals([batch])
        assert len(batch.questions["genes"].positions) > 2
        value, _ = training_step(model, batch.to("cpu"), objective)
        value.backward()
        steps.append((value, {n: p.grad for n, p in model.named_parameters()}))
    (one, gradients), (other, same) = steps
    torch.testing.assert_close(one, other)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, same[key], rtol=1e-4, atol=1e-6)
