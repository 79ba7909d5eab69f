from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from omics.eval.embedding_time import MAX_SAMPLE, Estimate, run_timed, spread_places


class Machine:
    """A model that takes so many seconds for each gene of a cell, by a clock of its own."""

    def __init__(self, lengths, per_gene, batch=4, start_up=50.0):
        self.lengths, self.per_gene, self.batch = lengths, per_gene, batch
        self.now, self.start_up, self.asked = 0.0, start_up, []

    def clock(self):
        return self.now

    def run(self, rows):
        self.asked.append(len(rows))
        self.now += self.start_up
        self.start_up = 0.0
        for begin in range(0, len(rows), self.batch):
            some = rows[begin : begin + self.batch]
            self.now += self.per_gene * float(self.lengths[some].sum())
            yield SimpleNamespace(rows=some)


def timed(machine, rows=None):
    told = []
    results = run_timed(
        machine.run,
        machine.lengths,
        device="cpu",
        on_estimate=lambda estimate: told.append((estimate, machine.now)),
        rows=rows,
        clock=machine.clock,
    )
    return np.concatenate([each.rows for each in results] or [np.zeros(0, int)]), told


@pytest.fixture
def lengths():
    return np.random.default_rng(0).lognormal(6, 1, 5000).astype(int)


@pytest.mark.parametrize("per_gene", [1e-3, 1e-5, 1e-7])
def test_a_sample_tells_what_all_cells_take(lengths, per_gene):
    machine = Machine(lengths, per_gene)
    rows, told = timed(machine)
    assert np.sort(rows).tolist() == list(range(5000))
    ((estimate, when),) = told
    work = per_gene * lengths.sum()
    # Few long cells decide: a sample of eight knows less than one of a thousand.
    assert estimate.seconds == pytest.approx(work, rel=0.05 if per_gene < 1e-4 else 0.6)
    assert (estimate.num_cells, estimate.device) == (5000, "cpu")
    # Told early, and what starting takes is not counted for each cell.
    assert when - 50 < 2 + 12 * per_gene * lengths.max()
    assert machine.asked[0] == 1


def test_only_the_cells_that_are_asked_for_are_run(lengths):
    chosen = np.arange(0, 5000, 7)
    rows, told = timed(Machine(lengths, 1e-6), chosen)
    assert np.sort(rows).tolist() == chosen.tolist()
    assert told[0][0].num_cells == len(chosen)


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_few_cells_are_all_in_the_sample(number):
    rows, told = timed(Machine(np.full(number, 10), 0.1))
    assert sorted(rows.tolist()) == list(range(number))
    assert len(told) == (number > 0)


def test_any_beginning_of_a_sample_has_all_lengths(lengths):
    places = spread_places(lengths)
    assert len(np.unique(places)) == len(places) == MAX_SAMPLE
    ranks = np.searchsorted(np.sort(lengths), lengths[places]) / len(lengths)
    assert ranks[0] == pytest.approx(0.5, abs=0.01)
    for number in (8, 32, 100):
        assert np.histogram(ranks[:number], bins=4, range=(0, 1))[0].min() >= number // 4 - 1
    assert sorted(spread_places(np.array([3, 1, 2])).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("number", "per_cell", "said", "fewer"),
    [
        (2700, 0.0001, "2,700 cells on cpu: about a second", None),
        (2700, 0.01, "2,700 cells on cpu: about 27 s", None),
        (60_000, 0.01, "60,000 cells on cpu: about 10 min", None),
        (1_000_000, 0.018, "1,000,000 cells on cpu: about 5.0 h. --max-cells 33000 would", 33_000),
        (20_000, 4.0, "about 22.2 h. --max-cells 1000 would take about 67 min: a sketch", 1000),
        (900, 4.0, "900 cells on cpu: about 60 min", None),
    ],
)
def test_what_takes_long_is_told_with_what_would_not(number, per_cell, said, fewer):
    estimate = Estimate(num_cells=number, device="cpu", seconds_per_cell=per_cell)
    assert said in str(estimate)
    assert estimate.fewer_cells == fewer
    assert ("--max-cells" in str(estimate)) == (fewer is not None)
