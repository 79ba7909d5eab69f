"""The gradient of a step must not depend on how its cells fall on processes and micro-batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist
from process_parts import of_two_processes
from training_parts import CLASSIFY, PRETRAIN, model_of, objective_of, random_tokens

from omics.train.batch_window import fill_totals
from omics.train.run_config import LossConfig
from omics.train.training_step import training_step

NUM_CELLS = 12
UNEVEN = [([0, 9], [9, 12]), ([0, 1, 6], [6, 7, 12])]
LOSSES = [*PRETRAIN, *CLASSIFY]
MORE_LOSSES = [
    *LOSSES,
    *(
        LossConfig(name=name, field_name="expression", wced_target=target, **options)
        for target in ("input_genes", "non_input_genes")
        for name, options in [("mse", {}), ("mae", {"ignore_zero": True}), ("is_zero_focal", {})]
    ),
    LossConfig(name="is_zero_bce", field_name="expression", mvc=True),
    LossConfig(name="mae", field_name="expression", ignore_zero=True, shrinkage=0.1),
    LossConfig(name="focal", label_column_name="cell_type", class_weight_exponent=0.5),
]


def slice_of(tokens, start, stop):
    """Return some consecutive cells of a token batch."""

    def cut(batch):
        begin, end = batch.offsets[start], batch.offsets[stop]
        return replace(
            batch,
            fields={name: values[begin:end] for name, values in batch.fields.items()},
            offsets=batch.offsets[start : stop + 1] - begin,
            rows=batch.rows[start:stop],
            labels={name: values[start:stop] for name, values in batch.labels.items()},
            targets=None if batch.targets is None else cut(batch.targets),
        )

    return cut(tokens)


def gradients(bounds, *, world_size=1, losses=LOSSES, local=False):
    """Return the gradients of one step over the cells between the bounds."""
    objective, plan = objective_of(losses)
    model = model_of(plan)
    tokens = random_tokens(NUM_CELLS, seed=4)
    parts = [objective.prepare(slice_of(tokens, a, b), epoch=0) for a, b in pairwise(bounds)]
    for group in [[part] for part in parts] if local else [parts]:
        fill_totals(group, world_size=world_size)
    for batch in parts:
        loss, _ = training_step(model, batch.to("cpu"), objective)
        loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def relative(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("losses", [LOSSES, MORE_LOSSES])
@pytest.mark.parametrize("bounds", [[0, 5, 12], [0, 1, 2, 12], [0, 0, 12]])
def test_accumulation_over_uneven_micro_batches_changes_nothing(bounds, losses):
    whole = gradients([0, NUM_CELLS], losses=losses)
    split = gradients(bounds, losses=losses)
    assert relative(split, whole) < 1e-5


def test_a_process_without_a_cell_has_a_gradient_of_zero_everywhere():
    assert not gradients([0, 0]).any()


def test_local_means_would_be_wrong():
    """The habit this replaces: dividing each micro-batch by its own counts."""
    whole = gradients([0, NUM_CELLS])
    local = gradients([0, 1, NUM_CELLS], local=True) / 2
    assert relative(local, whole) > 0.05


def _of_rank(rank):
    results = {}
    for bounds in UNEVEN:
        gradient = gradients(bounds[rank], world_size=2)
        dist.all_reduce(gradient)
        # As DDP, which averages over the processes.
        results[str(bounds)] = (gradient / 2).numpy()
    objective, _ = objective_of(LOSSES)
    batches = [objective.prepare(random_tokens(3, seed=rank), epoch=0)]
    for wants in (False, True):
        wish = wants and rank == 1
        results[wants] = fill_totals(batches, world_size=2, wants_stop=wish)
    return results


@pytest.fixture(scope="module")
def found():
    """Return what two processes found, by rank and question."""
    return of_two_processes(_of_rank)


@pytest.mark.parametrize("bounds", UNEVEN)
def test_two_processes_with_uneven_cells_give_the_gradient_of_one(found, bounds):
    gradient = torch.tensor(np.array(found[0][str(bounds)]))
    assert relative(gradient, gradients([0, NUM_CELLS])) < 1e-5


def test_a_process_that_is_asked_to_stop_tells_the_others(found):
    for rank in (0, 1):
        assert [found[rank][wants] for wants in (False, True)] == [False, True]
