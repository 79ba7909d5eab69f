"""What a run tells of its speed: before it starts, while it runs, and in its folder."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from run_parts import SMALL, compose

from omics.data.cell_source import open_cells
from omics.train import throughput, training_curves
from omics.train.batch_window import fill_totals
from omics.train.flops import kept_values, training_flops
from omics.train.history import History
from omics.train.run_plan import EFFICIENCY, plan_run
from omics.train.throughput import ThroughputMeter, workload
from omics.train.train_run import prepare_training, train
from omics.train.training_curves import write_curves

if TYPE_CHECKING:
    from pathlib import Path
    from types import SimpleNamespace


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock that the meter reads."""
    made = Clock()
    monkeypatch.setattr(throughput.time, "perf_counter", made)
    return made


@pytest.fixture
def small(atlas: SimpleNamespace, tmp_path: Path):
    """Return a prepared training and its configuration."""
    config = compose("pretrain", [*atlas.cells, *SMALL, f"working_dir={tmp_path}"])
    with open_cells(str(atlas.store)) as store:
        yield prepare_training(config, store), config


def test_a_batch_asks_what_its_terms_ask(small) -> None:
    """Tokens of the cells, and of the head that answers masked tokens."""
    training, _ = small
    (batch,) = training.batches.read([np.arange(5)], 0)
    work = workload(batch, training.objective)
    assert (work.lengths == batch.tokens.lengths).all()
    assert work.asked == {"expression_regression": len(batch.questions["expression"].positions)}
    assert work.decodes
    fill_totals([batch])
    output = training.objective.forward(training.model, batch.to("cpu"))
    assert len(output.fields["expression_regression"]) == work.asked["expression_regression"]


def test_the_meter_counts_training_alone(small, clock: Clock, tmp_path: Path) -> None:
    """The clock stands still in validation; an epoch is a row."""
    training, _ = small
    batches = training.batches.read([np.arange(5), np.arange(3)], 0)
    sizes = training.model.model_config
    flops = sum(training_flops(sizes, workload(each, training.objective)) for each in batches)
    tokens = sum(each.tokens.num_tokens for each in batches)
    meter = ThroughputMeter(
        config=sizes, objective=training.objective, peak_tflops=1e-3, world_size=2
    )
    assert meter.line() == ""
    meter.start()
    meter.add(batches)
    clock.now += 3
    meter.pause()
    clock.now += 50
    meter.pause()
    meter.start()
    clock.now += 1
    rates = meter.rates()
    assert rates["cells_per_second"] == pytest.approx(2 * 8 / 4)
    assert rates["tokens_per_second"] == pytest.approx(2 * tokens / 4)
    assert rates["fill"] == 1
    assert rates["mfu"] == pytest.approx(flops / 4 / 1e9)
    assert re.fullmatch(
        rf"4 cells/s, {tokens / 2:,.0f} tokens/s, fill 100%, \S+ TFLOP/s, MFU \d+%", meter.line()
    )
    meter.end_epoch(7, 1)
    meter.end_epoch(7, 1)
    meter.write(tmp_path / "t.csv")
    (row,) = csv.DictReader((tmp_path / "t.csv").read_text().splitlines())
    assert (row["step"], row["epoch"], row["seconds"], row["cells"]) == ("7", "1", "4.000", "16")
    assert float(row["mfu"]) == pytest.approx(rates["mfu"], rel=1e-4)


def test_rows_of_cells_that_are_padded_are_not_full(small, clock: Clock) -> None:
    """Slots of a rectangle as wide as the longest cell; work of frozen models is not told."""
    training, _ = small
    (batch,) = training.batches.read([np.arange(5)], 0)
    lengths = batch.tokens.lengths
    meter = ThroughputMeter(
        config=training.model.model_config,
        objective=training.objective,
        is_padded=True,
        is_whole=False,
    )
    meter.start()
    meter.add([batch])
    clock.now += 1
    rates = meter.rates()
    assert rates["fill"] == pytest.approx(lengths.sum() / (lengths.max() * 5))
    assert set(rates) == {"cells_per_second", "tokens_per_second", "fill"}


def test_rows_of_a_run_that_goes_on_are_kept(small, tmp_path: Path) -> None:
    """Up to the step of the checkpoint."""
    training, _ = small
    path = tmp_path / "t.csv"
    path.write_text(f"{throughput.HEADER}\n3,1,1.0\n6,2,1.0\n")
    meter = ThroughputMeter(config=training.model.model_config, objective=training.objective)
    meter.read(tmp_path / "none.csv", step=9)
    assert meter.rows == []
    meter.read(path, step=5)
    assert meter.rows == ["3,1,1.0"]


def test_the_plan_follows_from_the_cells_and_the_model(small) -> None:
    """Parameters, work of a cell, memory of a micro-batch, time of an epoch."""
    training, config = small
    plan = plan_run(training, config, steps=12)
    sizes = training.model.model_config
    rows = training.batches.epochs[0].loader.spread_rows(64)
    assert len(set(rows.tolist())) == plan.sampled == 64
    (batch,) = training.batches.read([rows], 0)
    work = workload(batch, training.objective)
    assert plan.parameters == sum(each.numel() for each in training.model.parameters())
    assert plan.tokens_per_cell == work.lengths.mean()
    assert plan.flops_per_cell == training_flops(sizes, work) / 64
    kept = sizes.num_layers * kept_values(sizes) + 3 * sizes.hidden_size
    assert plan.memory.activations == 4 * kept * int(work.lengths.sum()) * 16 // 64
    assert plan.seconds_per_epoch == pytest.approx(
        plan.flops_per_cell * plan.cells_per_epoch / (EFFICIENCY * plan.measured_tflops * 1e12)
    )
    assert plan.peak_tflops == plan.measured_tflops
    assert replace(plan, datasheet=989.0).peak_tflops == 989
    text = str(replace(plan, parameters=110_000_000, datasheet=989.0))
    assert "110 M parameters" in text
    assert "12 steps" in text
    assert "989 in the data sheet" in text


def test_the_plan_of_shares_divides_what_is_shared(small) -> None:
    """Weights, gradients and moments, but not what cells leave behind."""
    training, config = small
    whole = plan_run(training, config, steps=12).memory
    config.trainer.devices, config.trainer.strategy = 4, "fsdp"
    shares = plan_run(training, config, steps=12).memory
    assert shares.weights == whole.weights // 4
    assert shares.moments == 2 * shares.gradients == whole.moments // 4
    assert (shares.activations, shares.outputs) == (whole.activations, whole.outputs)


def test_looking_ahead_changes_nothing(small) -> None:
    """The same random numbers and batches follow."""
    training, config = small
    torch.manual_seed(3)
    wanted = torch.rand(1), next(iter(training.batches)).batches[0].tokens.fields["expression"]
    training.batches.set_epoch(0)
    torch.manual_seed(3)
    plan_run(training, config, steps=1)
    found = torch.rand(1), next(iter(training.batches)).batches[0].tokens.fields["expression"]
    assert wanted[0] == found[0]
    assert (wanted[1] == found[1]).all()


def test_a_run_folder_tells_how_fast_it_was(pretrained: Path) -> None:
    """An epoch a row, and the curves."""
    rows = list(csv.DictReader((pretrained / "throughput.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        rate = float(row["cells"]) / float(row["seconds"])
        assert float(row["cells_per_second"]) == pytest.approx(rate, rel=0.02)
        assert float(row["fill"]) == 1
        assert 0 < float(row["mfu"]) < 1.5
    drawn = (pretrained / "curves.svg").read_text()
    assert drawn.startswith("<svg")
    assert "validation" in drawn


def test_a_run_says_its_plan_first(
    atlas: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the history."""
    settings = [*atlas.cells, *SMALL, f"working_dir={tmp_path}/r", "trainer.max_steps=1"]
    train(compose("pretrain", settings), tmp_path / "r")
    said = capsys.readouterr().out
    assert re.search(r"Plan: \S+ k parameters.*\n.*memory.*\n  1 steps; an epoch of", said)
    assert said.index("Plan:") < said.index("train:")


def test_curves_say_what_they_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is drawn of nothing, and nothing fails without matplotlib."""
    write_curves(tmp_path, History())
    assert capsys.readouterr().out == ""
    history = History()
    history.add(1, 1, "train", {"loss": 0.5})
    monkeypatch.setattr(training_curves, "find_spec", lambda _name: None)
    write_curves(tmp_path, history)
    assert "pip install 'omics-eval[plots]'" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
