"""Micro-batches of a number of tokens: full, of one shape for compiled code, and resumable."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from resume_parts import assert_same_run, stop_after_each_step, train_in_pieces
from run_parts import SMALL, compose
from test_global_counts import MORE_LOSSES
from torch._dynamo.utils import counters
from training_parts import CLASSIFY, PRETRAIN, model_of, objective_of, random_tokens

from omics.data.errors import ConfigError
from omics.data.storage.store import open_store
from omics.data.transforms import Dropout, LogNormalize, SampleGenes, TopGenes
from omics.models import attention
from omics.train.batch_window import fill_totals
from omics.train.token_budget import TokenBudget, kept_genes
from omics.train.train_run import prepare_training, train
from omics.train.training_batch import FixedShape
from omics.train.training_step import training_step

BUDGET = 500


def setting(atlas, folder, *overrides, recipe="pretrain"):
    return compose(recipe, [*atlas.cells, f"working_dir={folder}", *SMALL, *overrides])


def _gradients(shape, *, pooling):
    """Return loss, sums and gradients of a step on filled or plain tokens."""
    objective, plan = objective_of(MORE_LOSSES)
    model = model_of(plan, pooling=pooling)
    batch = objective.prepare(random_tokens(5, seed=4), epoch=0)
    fill_totals([batch])
    batch.shape = shape
    moved = batch.to("cpu")
    loss, sums = training_step(model, moved, objective)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return moved, loss, sums, found


@pytest.mark.parametrize("pooling", ["mean", "first_token", "mean_after_first"])
@pytest.mark.parametrize("shape", [FixedShape(num_tokens=200, longest=20)])
def test_filler_changes_neither_losses_nor_gradients(shape, pooling):
    plain, loss, sums, gradients = _gradients(None, pooling=pooling)
    filled, same_loss, same_sums, same = _gradients(shape, pooling=pooling)
    assert len(filled.tokens.fields["genes"]) == 200 > len(plain.tokens.fields["genes"])
    assert len(filled.layout) == 64
    assert filled.layout.num_cells == 5
    torch.testing.assert_close(same_loss, loss)
    for name, (total, count) in sums.items():
        torch.testing.assert_close(same_sums[name][0], total)
        assert same_sums[name][1] == count
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, atol=1e-6, rtol=1e-4)


def test_what_exceeds_a_shape_is_filled_up_to_one_of_few():
    shape = FixedShape(num_tokens=800, longest=100)
    assert [shape.filled(number) for number in (1, 800, 801, 900, 901)] == [
        800,
        800,
        900,
        900,
        1000,
    ]


@pytest.mark.parametrize(
    "steps",
    [
        [LogNormalize()],
        [SampleGenes(keep_low=0.5, keep_high=0.5)],
        [SampleGenes(keep_low=0.4, keep_high=1.0)],
        [SampleGenes(keep_low=0.5, keep_high=0.9), Dropout(drop_share=0.2)],
    ],
)
def test_the_share_of_sampled_genes_and_its_variance_are_those_of_a_simulation(steps):
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 200, 400)
    share, variance = kept_genes(steps, lengths)
    totals = []
    for _ in range(2000):
        chosen = rng.choice(lengths, 30)
        kept, expected = chosen, share * chosen.sum()
        chance = np.ones(30)
        for step in steps:
            if isinstance(step, SampleGenes):
                chance = chance * rng.uniform(step.keep_low, step.keep_high, 30)
            elif isinstance(step, Dropout):
                chance = chance * (1 - step.drop_share)
        totals.append(rng.binomial(kept, chance).sum() - expected)
    totals = np.array(totals)
    size = share * lengths.mean() * 30
    assert abs(totals.mean()) < 5 * max(totals.std(), 1e-9) / np.sqrt(2000) + 1e-9
    assert totals.var() == pytest.approx(variance * size, rel=0.15, abs=1e-9)


def test_batches_hold_the_budget_and_are_full(atlas, tmp_path):
    config = setting(
        atlas,
        tmp_path,
        f"data_module.batch_tokens={BUDGET}",
        "data_module.augmentations=[]",
        "trainer.losses=[{field_name: expression, name: mse}]",
    )
    training = prepare_training(config, open_store(atlas.store))
    for epoch in range(2):
        assert len(training.batches) == training.batches.epochs[0].loader.num_batches(epoch)
        sizes = [batch.tokens.num_tokens for step in training.batches for batch in step.batches]
        assert max(sizes) <= BUDGET
        assert np.mean(sizes[:-1]) > 0.98 * BUDGET
    assert len(training.validation) == len(list(training.validation))


def test_a_run_of_budgets_stopped_after_every_step_is_the_run_that_was_not(
    atlas, tmp_path, monkeypatch
):
    overrides = [
        f"data_module.batch_tokens={BUDGET}",
        "trainer.accumulate_grad_batches=2",
        "trainer.losses=[{field_name: expression, name: mse, metrics: [gene_errors]}]",
        "data_module.augmentations=[{name: sample_genes, keep_low: 0.5, keep_high: 1.0}]",
    ]
    train(setting(atlas, tmp_path / "whole", *overrides), tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after_each_step(patched)
        stops = train_in_pieces(
            setting(atlas, tmp_path / "pieces", *overrides), tmp_path / "pieces"
        )
    assert stops > 3
    assert_same_run(tmp_path / "whole", tmp_path / "pieces")
    other = setting(atlas, tmp_path / "whole", *overrides, "data_module.batch_tokens=900")
    other.resume = True
    with pytest.raises(ConfigError, match="had 1,000 tokens and has 1,800"):
        train(other, tmp_path / "whole")


def test_attention_is_computed_as_asked_and_gives_the_same_run(atlas, tmp_path, monkeypatch):
    calls = []
    padded = attention.BACKENDS["padded"]
    monkeypatch.setitem(
        attention.BACKENDS,
        "padded",
        lambda *given, **options: calls.append(1) or padded(*given, **options),
    )
    losses = []
    for name in ("loop", "padded"):
        config = setting(
            atlas,
            tmp_path / name,
            f"trainer.attention_backend={name}",
            "trainer.max_epochs=1",
            "model.dropout=0.0",
        )
        train(config, tmp_path / name)
        assert bool(calls) == (name == "padded")
        last = (tmp_path / name / "history.csv").read_text().splitlines()[-1]
        losses.append(float(last.split(",")[4]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# While it compiles, torch warns of what it does itself.
@pytest.mark.filterwarnings("default")
def test_compiled_blocks_train_like_others_and_are_compiled_once(atlas, tmp_path):
    overrides = [
        f"data_module.batch_tokens={BUDGET}",
        "model.num_layers=2",
        "model.dropout=0.0",
        "trainer.max_epochs=1",
    ]
    torch._dynamo.reset()
    counters.clear()
    histories = []
    for name, switch in (("plain", "false"), ("compiled", "true")):
        config = setting(atlas, tmp_path / name, *overrides, f"trainer.compile={switch}")
        model = train(config, tmp_path / name).model
        assert model.encoder.compiled is None
        lines = (tmp_path / name / "history.csv").read_text().splitlines()
        histories.append([line.split(",") for line in lines[1:]])
    for plain, compiled in zip(*histories, strict=True):
        assert plain[:4] == compiled[:4]
        assert float(plain[4]) == pytest.approx(float(compiled[4]), rel=1e-3, abs=1e-5)
    # Before and behind the attention of a cell, in training and in validation: no batch adds one.
    assert 0 < counters["stats"]["unique_graphs"] <= 8
    throughput = (tmp_path / "compiled" / "throughput.csv").read_text().splitlines()
    fill = dict(zip(throughput[0].split(","), throughput[1].split(","), strict=True))["fill"]
    assert 0.5 < float(fill) < 1


@pytest.mark.filterwarnings("default")
def test_asked_tokens_are_compiled_for_two_numbers_of_them():
    """Traced and not made into machine code: that is what takes long."""
    objective, plan = objective_of([*PRETRAIN[:1], *CLASSIFY], change_ratio=0.1)
    objective = dataclasses.replace(objective, leading_tokens=1)
    model = model_of(plan, pooling="first_token", num_layers=2).train()
    torch._dynamo.reset()
    counters.clear()
    blocks = model.encoder.layers
    model.encoder.compiled = [torch.compile(x, dynamic=False, backend="eager") for x in blocks]
    asked, filled, graphs = set(), set(), []
    for seed in range(8):
        batch = objective.prepare(random_tokens(4 + seed, seed=seed), epoch=seed)
        batch.shape = FixedShape(num_tokens=400, longest=20)
        fill_totals([batch])
        moved = batch.to("cpu")
        training_step(model, moved, objective)[0].backward()
        asked.add(len(batch.asked))
        filled.add(len(moved.asked.tokens))
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(asked) > 4
    assert filled <= set(FixedShape.asked_sizes(400))
    # The other blocks, and the last one for each number.
    assert 0 < graphs[-1] <= (1 + len(filled)) * graphs[0]
    assert len(set(graphs)) == len(filled)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data_module.batch_tokens=20"], "batch_tokens is 20, and the longest training cell has"),
        (
            ["data_module.batch_tokens=900", "data_module.batch_size=4"],
            "batch_size is 4 cells and data_module.batch_tokens 900 tokens",
        ),
        (
            [
                "data_module.batch_tokens=900",
                "data_module.augmentations=[]",
                "data_module.transforms=[{name: log_normalize}, {name: random_zeros, fill_to: 60}]",
            ],
            "the step 'random_zeros' adds others",
        ),
        (["trainer.attention_backend=lop"], "is 'lop'. Did you mean 'loop'"),
        (["trainer.attention_backend=varlen"], "attention_backend=varlen trains on CUDA alone"),
        (["trainer.optimizer=mouon"], "is 'mouon'. Did you mean 'muon'"),
        (["trainer.muon_momentum=0.9"], "read with trainer.optimizer=muon alone"),
        (["trainer.compile=true"], "trainer.compile needs batches of one shape"),
        (
            [
                "data_module.batch_tokens=900",
                "trainer.curriculum=[{max_epochs: 1, batch_size: 4}]",
            ],
            r"curriculum\[0\].batch_size counts cells",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(atlas, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        train(setting(atlas, tmp_path / "run", *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cells_count_for_what_steps_and_tokenizer_leave_of_them():
    lengths = np.array([10, 500, 2000])
    found = {
        name: TokenBudget.of(3000, steps, lengths=lengths, num_special=1, max_length=limit).longest
        for name, steps, limit in (
            ("whole", [], None),
            ("step", [TopGenes(max_genes=300)], None),
            ("tokenizer", [TopGenes(max_genes=300)], 200),
        )
    }
    assert found == {"whole": 2001, "step": 301, "tokenizer": 200}
