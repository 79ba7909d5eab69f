"""The page on scaling says what its formulas give, and they are the ones that it names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

CI = Path(__file__).parent
spec = importlib.util.spec_from_file_location("check_scaling_page", CI / "check_scaling_page.py")
assert spec is not None
assert spec.loader is not None
page = importlib.util.module_from_spec(spec)
sys.modules["check_scaling_page"] = page
spec.loader.exec_module(page)


def test_the_page_is_worked_out_anew(capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main([]) == 0
    assert "5 tables, 0 problems" in capsys.readouterr().out


def test_a_figure_that_was_changed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", tmp_path / "scaling.md")
    page.PAGE.write_text(text.replace("| 175 GB |", "| 170 GB |"), encoding="utf-8")
    assert page.main([]) == 1
    assert "run with --write" in capsys.readouterr().out
    assert page.main(["--write"]) == 0
    assert page.PAGE.read_text(encoding="utf-8") == text
    with pytest.raises(SystemExit, match="no place for the table 'engines'"):
        page.written(text.replace("<!-- engines begin -->", ""))


def test_figures_come_from_the_benchmarks() -> None:
    assert page.measured("Conversion", "omics packed", "bytes per non-zero") == 1.56
    assert page.measured("Cold files", "omics packed", "cells a second") == 25_610
    with pytest.raises(SystemExit, match="no 'seconds' of 'nobody' under 'Conversion'"):
        page.measured("Conversion", "nobody", "seconds")


def test_the_figures_in_the_text_are_those_of_the_tables() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert f"| {page.genes_of_a_cell():,.0f} |" in text
    assert f"| {page.lengths().mean():.0f} |" in text
    assert f"{round(page.HOURS_BETWEEN_FAILURES_OF_A_GPU, -2):,.0f} hours a GPU" in text
    cells = 512 * page.STEP_TOKENS / float(page.lengths().mean())
    assert f"{round(cells, -2):,.0f} cells" in text
    assert f"{512 * page.STEP_TOKENS / 1e6:.0f} million tokens" in text


@pytest.mark.parametrize("preset", ["bert_10m", "bert_110m"])
def test_work_is_the_formula_of_the_page(preset: str) -> None:
    """But for what enters: the network of the values."""
    sizes, n = page.model(preset), page.lengths().astype(float)
    d, blocks, hidden = sizes.hidden_size, sizes.num_layers, page.HIDDEN_SHARE * n.mean()
    formula = (24 * blocks - 17) * d**2 * n.mean() + 4 * (blocks - 0.85) * d * np.square(n).mean()
    formula += 2 * hidden * d * (d + page.GENES)
    entering = 2 * n.mean() * (d + d * d)
    assert page.cell_flops(preset) == pytest.approx(3 * (formula + entering), rel=1e-3)


def test_the_interval_is_where_least_is_lost() -> None:
    cost = page.saving_seconds("bert_110m")
    intervals = np.geomspace(1, 1e6, 20_001)
    losses = [page.lost(cost, interval, 64) for interval in intervals]
    best = intervals[int(np.argmin(losses))]
    assert page.best_interval(cost, 64) == pytest.approx(best, rel=1e-3)
    for rung in (each for each in page.LADDER if each.name.endswith("H200")):
        assert (
            page.lost(page.saving_seconds(rung.preset), page.epoch_seconds(rung), rung.gpus) < 0.01
        )


def test_gradients_are_waited_for_where_a_step_is_too_short() -> None:
    """At the tokens of the last table the exchange is just hidden."""
    tflops = page.device_tflops("512 H200")
    assert page.efficiency_of_many("bert_110m", 512, tflops) == 1.0
    step, exchange = page.step_seconds("bert_110m", tflops), page.exchange_seconds("bert_110m", 512)
    shortest = step * page.exchange_limit() / page.STEP_TOKENS
    assert 2 / 3 * shortest == pytest.approx(exchange, rel=0.01)
    assert page.efficiency_of_many("bert_110m", 512, 10 * tflops) < 0.9
