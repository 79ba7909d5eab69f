"""The gradient of a step must not depend on how its cells fall on processes and micro-batches."""

from __future__ import annotations

import socket
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training_parts import CLASSIFY, PRETRAIN, model_of, objective_of, random_tokens

from omics.train.batch_window import with_totals
from omics.train.run_config import LossConfig
from omics.train.training_step import training_step

NUM_CELLS = 12
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


def gradients(bounds, *, window, world_size=1, divide_by, losses=LOSSES):
    """Return the gradients of one step over the cells between the bounds."""
    objective, plan = objective_of(losses)
    model = model_of(plan)
    tokens = random_tokens(NUM_CELLS, seed=4)
    parts = [objective.prepare(slice_of(tokens, a, b), epoch=0) for a, b in pairwise(bounds)]
    for batch in with_totals(parts, window=window, world_size=world_size):
        loss, _ = training_step(model, batch.to("cpu"), objective)
        (loss / divide_by).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def relative(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("losses", [LOSSES, MORE_LOSSES])
@pytest.mark.parametrize("bounds", [[0, 5, 12], [0, 1, 2, 12], [0, 0, 12]])
def test_accumulation_over_uneven_micro_batches_changes_nothing(bounds, losses):
    whole = gradients([0, NUM_CELLS], window=1, divide_by=1, losses=losses)
    window = len(bounds) - 1
    split = gradients(bounds, window=window, divide_by=window, losses=losses)
    assert relative(split, whole) < 1e-5


def test_a_short_last_window_is_a_full_mean_of_what_is_there():
    whole = gradients([0, NUM_CELLS], window=1, divide_by=1)
    # The trainer divides by the configured number of micro-batches although only one is left.
    short = gradients([0, NUM_CELLS], window=4, divide_by=4)
    assert relative(short, whole) < 1e-5


def test_local_means_would_be_wrong():
    """The habit this replaces: dividing each micro-batch by its own counts."""
    whole = gradients([0, NUM_CELLS], window=1, divide_by=1)
    local = gradients([0, 1, NUM_CELLS], window=1, divide_by=2)
    assert relative(local, whole) > 0.05


def _process(rank, port, bounds, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    gradient = gradients(bounds[rank], window=len(bounds[rank]) - 1, world_size=2, divide_by=2)
    gradient /= len(bounds[rank]) - 1
    dist.all_reduce(gradient)
    # The micro-batches were divided by 2 above in place of DDP's mean over two processes.
    results[rank] = gradient.numpy()
    dist.destroy_process_group()


@pytest.mark.parametrize("bounds", [([0, 9], [9, 12]), ([0, 1, 6], [6, 7, 12])])
def test_two_processes_with_uneven_cells_give_the_gradient_of_one(bounds):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(_process, (port, bounds, results), nprocs=2)
        found = torch.tensor(np.array(results[0]))
    whole = gradients([0, NUM_CELLS], window=1, divide_by=1)
    assert relative(found, whole) < 1e-5
