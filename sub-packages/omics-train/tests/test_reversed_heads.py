"""Heads of hidden labels that take several steps for each step of the encoder."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from process_parts import of_two_processes
from run_parts import SMALL, compose
from test_global_counts import slice_of
from training_parts import CLASSIFY, LABEL, model_of, objective_of, random_tokens

from omics.train.batch_window import fill_totals
from omics.train.reversed_heads import ReversedHeads
from omics.train.train_run import train
from omics.train.training_step import training_step

NUM_CELLS = 12
HEAD = {"label_heads.0.decoder.weight", "label_heads.0.decoder.bias"}


def _stepped(bounds, *, steps, world_size=1):
    """Return the weights before and after a step over cells, with its further steps of the head."""
    objective, plan = objective_of(CLASSIFY)
    plan = replace(plan, labels=tuple(replace(x, gradient_reversal=1.0) for x in plan.labels))
    model = model_of(plan).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    heads = ReversedHeads.of(model, {LABEL.name: steps}, 1.0)
    tokens = random_tokens(NUM_CELLS, seed=4)
    batches = [objective.prepare(slice_of(tokens, a, b), epoch=0) for a, b in pairwise(bounds)]
    fill_totals(batches, world_size=world_size)
    heads.forget()
    for batch in batches:
        moved = batch.to("cpu")
        loss, _ = training_step(model, moved, objective)
        loss.backward()
        heads.keep(moved)
    if world_size > 1:
        for parameter in model.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= world_size
    optimizer.step()
    heads.learn(optimizer, objective.terms)
    return before, dict(model.state_dict()), (model, objective, batches)


def test_further_steps_move_the_head_alone_and_lower_its_loss():
    before, once, (model, objective, batches) = _stepped([0, NUM_CELLS], steps=1)
    _, often, (better, _, _) = _stepped([0, NUM_CELLS], steps=30)
    moved = {name for name in once if not torch.equal(once[name], often[name])}
    assert moved == HEAD
    assert any(not torch.equal(before[name], once[name]) for name in before.keys() - moved)
    losses = []
    for each in (model, better):
        each.eval()
        losses.append(float(training_step(each, batches[0].to("cpu"), objective)[0].detach()))
    assert losses[1] < 0.8 * losses[0]


def test_micro_batches_of_a_step_are_learnt_together():
    _, whole, _ = _stepped([0, NUM_CELLS], steps=4)
    _, split, _ = _stepped([0, 1, 5, NUM_CELLS], steps=4)
    for name in HEAD:
        torch.testing.assert_close(split[name], whole[name], rtol=1e-3, atol=1e-5)


def _of_rank(rank):
    _, after, _ = _stepped([[0, 9], [9, NUM_CELLS]][rank], steps=4, world_size=2)
    return {name: value.numpy() for name, value in after.items()}


def test_two_processes_move_a_head_like_one():
    _, whole, _ = _stepped([0, NUM_CELLS], steps=4)
    for found in of_two_processes(_of_rank):
        for name in HEAD:
            torch.testing.assert_close(
                torch.from_numpy(found[name]), whole[name], rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize("steps", [1, 6])
def test_a_run_takes_them_and_leaves_no_hook(atlas, tmp_path, monkeypatch, steps):
    taken = []
    plain = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, closure=None: taken.append(1) or plain(self, closure),
    )
    column = f"{{label_column_name: donor3, gradient_reversal: 1.0, reversal_head_steps: {steps}}}"
    config = compose(
        "pretrain",
        [
            *atlas.cells,
            f"working_dir={tmp_path / 'run'}",
            *SMALL,
            f"label_columns=[cell_type, {column}]",
            "trainer.max_steps=3",
            "trainer.losses=[]",
            "fields=[{field_name: genes, encoder: embedding}]",
        ],
    )
    bundle = train(config, tmp_path / "run")
    assert len(taken) == 3 * steps
    assert all(not head._forward_pre_hooks for head in bundle.model.label_heads)
