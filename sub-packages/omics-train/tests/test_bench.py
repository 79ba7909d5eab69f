"""The verb `bench` on sizes so small that only its sums are looked at, not its seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from omics.data.errors import OmicsError
from omics.train.benchmarking import compared_steps
from omics.train.benchmarking.bench_run import BenchOptions
from omics.train.benchmarking.compared_models import (
    MASKED_SHARE,
    SameCells,
    Sizes,
    cell_lengths,
    our_loss,
    our_model,
    stock_loss,
    stock_model,
)
from omics.train.benchmarking.compared_steps import (
    BenchError,
    BenchPlan,
    compare_embeddings,
    compare_steps,
)
from omics.train.benchmarking.cost_growth import Growth, measure_growth
from omics.train.benchmarking.interleaved_rounds import interleaved, medians
from omics.train.benchmarking.machine_ceilings import copy_gigabytes, product_tflops
from omics.train.cli import app
from omics.train.flops import Workload, forward_flops, training_flops

if TYPE_CHECKING:
    from pathlib import Path

    from omics.train.benchmarking.compared_models import Pooling

SIZES = Sizes(layers=1, hidden=16, heads=2, genes=60)
PLAN = BenchPlan(sizes=SIZES, tokens=150, rounds=2, device="cpu", peaks={torch.float32: 0.5})


def test_lengths_are_those_of_cells_and_fill_the_batch() -> None:
    """Median and spread of the distribution, before the cap."""
    lengths = cell_lengths(2_000_000, 100_000)
    assert np.median(lengths) == pytest.approx(949, rel=0.03)
    assert np.quantile(lengths, [0.025, 0.975]) == pytest.approx([300, 3000], rel=0.1)
    capped = cell_lengths(6144, 1024)
    assert capped.max() == 1024
    assert capped.sum() == pytest.approx(6144, rel=0.1)
    # Filled to the caps as many cells would be.
    for cap, fill in [(1024, 0.81), (2048, 0.52), (4096, 0.27)]:
        assert cell_lengths(20_000, cap).mean() / cap == pytest.approx(fill, abs=0.015)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_models_have_the_same_loss_and_gradients(attention: str) -> None:
    """To float32, for each padding."""
    cells = SameCells(SIZES, np.array([9, 30, 17]), 40, "cpu")
    assert len(cells.asked) == int(MASKED_SHARE * 56)
    ours = our_model(SIZES, 40, "cpu")
    our_loss(ours, cells).backward()  # type: ignore[no-untyped-call]
    table = ours.embedding.fields["genes"].weight
    assert table.grad is not None
    for padding in ("cap", "longest"):
        stock = stock_model(ours, SIZES, 40, attention=attention)
        loss = stock_loss(stock, cells, padding)  # type: ignore[arg-type]
        assert torch.allclose(loss, our_loss(ours, cells), atol=1e-5)
        loss.backward()  # type: ignore[no-untyped-call]
        theirs = stock.bert.embeddings.word_embeddings.weight.grad
        assert torch.allclose(theirs[1:], table.grad[1:], atol=1e-5)


def test_steps_are_compared_in_useful_work() -> None:
    """Rates follow from the median and from real tokens; the first way is the measure."""
    found = compare_steps(PLAN, 40)
    cells = PLAN.cells(40)
    config = SIZES.config(40)
    assert (found.cells, found.tokens) == (len(cells.lengths), cells.lengths.sum())
    assert found.flops == training_flops(config, cells.work)
    rows = found.rows()
    assert [row["name"] for row in rows] == [
        "stock BERT, padded to the cap",
        "stock BERT, padded to the longest",
        "eager attention, padded to the cap",
        "omics, flat, masked head",
    ]
    for row in rows:
        assert len(row["seconds"]) == PLAN.rounds
        seconds = float(np.median(row["seconds"]))
        assert row["tokens_per_second"] == pytest.approx(found.tokens / seconds)
        assert row["mfu_measured"] == pytest.approx(found.flops / seconds / 0.5e12)
        assert row["times"] == pytest.approx(float(np.median(rows[0]["seconds"])) / seconds)


@pytest.mark.parametrize("pooling", ["mean", "first_token"])
def test_embeddings_are_compared_in_each_fast_type(pooling: Pooling) -> None:
    """A forward pass, without heads; both models are checked to give the same rows."""
    found = compare_embeddings(PLAN, 40, pooling)
    work = Workload(lengths=PLAN.cells(40).lengths)
    if pooling == "first_token":
        work = replace(work, final=np.ones(found.cells, np.int64))
    assert found.flops == forward_flops(SIZES.config(40), work)
    assert pooling.replace("_", " ") in found.title
    assert [name for name in found.seconds if "omics" in name] == ["omics, flat, float32"]


def test_models_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A faster model that computes something else is no faster model."""
    right = compared_steps.our_loss
    monkeypatch.setattr(compared_steps, "our_loss", lambda model, cells: right(model, cells) + 1)
    with pytest.raises(
        BenchError, match=r"'omics, flat, masked head' differs from 'stock BERT.* by 1"
    ):
        compare_steps(PLAN, 40)


def test_rounds_are_interleaved_and_the_first_is_thrown_away() -> None:
    """One call of each a round."""
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = interleaved(runs, rounds=2, device="cpu")
    assert calls == ["a", "b"] * 3
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}
    assert medians({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}


def test_ceilings_are_rates() -> None:
    """Above zero, and below what no machine does."""
    assert 1e-6 < product_tflops(torch.float32, device="cpu", size=64) < 100
    assert 1e-3 < copy_gigabytes(device="cpu", size=1 << 16) < 1e4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cdua"}, "--device is 'cdua'. Did you mean 'cuda'?"),
        ({"hidden": 20, "heads": 3}, "--hidden 20 is not a multiple of --heads 3"),
        ({"growth": True, "caps": [64, 128]}, "--growth takes one --cap"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    """Before anything is timed."""
    with pytest.raises(OmicsError, match=message.replace("?", r"\?")):
        BenchOptions.of(**options)  # type: ignore[arg-type]


def test_the_command_tells_and_keeps_all_sections(tmp_path: Path) -> None:
    """Ceilings, steps, embeddings, the store and Lightning."""
    out = tmp_path / "bench.json"
    small = ["--quick", "--device", "cpu", "--layers", "1", "--hidden", "16", "--tokens", "64"]
    result = CliRunner().invoke(app, ["bench", *small, "--cap", "32", "--out", str(out)])
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    titles = [section["title"] for section in record["sections"]]
    assert titles == [
        "Training step, cap 32",
        "Embedding by the mean, cap 32",
        "Embedding by the first token, cap 32",
        "Training on a store",
    ]
    for title in titles:
        assert title in result.stdout
    assert record["ceilings"]["product_tflops"]["float32"] > 0
    lightning = record["lightning"]
    assert lightning["plain_ms"] > 0
    assert lightning["low_ms"] <= lightning["overhead_ms"] <= lightning["high_ms"]
    assert "Lightning adds" in result.stdout
    assert record["sizes"] == {"layers": 1, "hidden": 16, "heads": 1, "genes": 20_000}


def test_cost_is_measured_along_every_axis() -> None:
    """Of each point the work of the formula; the middle of all axes is the same step."""
    sizes = Sizes(layers=2, hidden=16, heads=2, genes=60)
    plan = BenchPlan(sizes=sizes, tokens=160, rounds=1, device="cpu", peaks={torch.float32: 0.5})
    lengths, batches, blocks, widths = measure_growth(plan, 40)
    assert [each.axis for each in (lengths, batches, blocks, widths)] == [
        "tokens of a cell",
        "cells of a batch",
        "blocks",
        "width",
    ]
    assert lengths.values == (5, 10, 20, 40, 80)
    assert batches.values == (1, 2, 4, 8)
    assert blocks.values == (1, 2, 4)
    assert widths.values == (8, 16, 32)
    middle = training_flops(sizes.config(40), plan.cells(40).work)
    assert batches.work[2] == blocks.work[1] == widths.work[1] == middle
    # As many tokens in cells that are twice as long: only attention doubles.
    steps = np.diff(lengths.work)
    assert steps[1:] == pytest.approx(2 * steps[:-1], rel=0.1)


def test_growth_is_fitted_as_a_power() -> None:
    """By least squares in logarithms."""
    work = (10, 20, 80)
    exact = Growth(
        axis="x",
        values=(1, 2, 8),
        work=work,
        seconds=tuple(1e-13 * each**1.5 for each in work),
        peak=2.0,
    )
    assert exact.power == pytest.approx(1.5)
    assert exact.deviation == pytest.approx(0, abs=1e-9)
    rows = exact.rows()
    assert [row["times_work"] for row in rows] == [1, 2, 8]
    assert [row["times_time"] for row in rows] == pytest.approx([1, 2**1.5, 8**1.5])
    assert rows[0]["mfu_measured"] == pytest.approx(10 / exact.seconds[0] / 2e12)
    # Logarithms 0, 1, 0 over -1, 0, 1 are a flat line at 1/3; the middle is 2/3 above it.
    bent = Growth(axis="x", values=(1, 2, 4), work=(1, 2, 4), seconds=(1, np.e, 1), peak=1.0)
    assert bent.power == pytest.approx(0, abs=1e-12)
    assert bent.deviation == pytest.approx(np.exp(2 / 3) - 1)


def test_the_command_tells_growth_in_place_of_comparisons() -> None:
    """As one JSON object on request."""
    small = ["--quick", "--device", "cpu", "--layers", "1", "--hidden", "16", "--tokens", "64"]
    result = CliRunner().invoke(app, ["bench", "--growth", *small, "--cap", "32", "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert "sections" not in record
    assert record["growth"][0]["axis"] == "tokens of a cell"
    assert [row["value"] for row in record["growth"][0]["rows"]] == [4, 8, 16, 32, 64]
