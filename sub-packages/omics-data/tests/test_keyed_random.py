from __future__ import annotations

import numpy as np

from omics.data.keyed_random import keyed_uniform

KEYS = {"seed": 1, "epoch": 2, "stream": "s"}


def test_a_draw_depends_on_its_keys_alone():
    cells = np.array([3, 900, 3, 2**40])
    entries = np.array([0, 5, 0, 7])
    together = keyed_uniform(cells, entries, **KEYS)
    alone = [keyed_uniform(cells[i : i + 1], entries[i : i + 1], **KEYS)[0] for i in range(4)]
    assert together.tolist() == alone
    assert together[0] == together[2]


def test_every_key_changes_the_draws():
    cells = np.arange(100)
    base = keyed_uniform(cells, cells, **KEYS)
    for change in ({"seed": 2}, {"seed": -1}, {"epoch": 3}, {"stream": "t"}):
        assert not np.isin(keyed_uniform(cells, cells, **{**KEYS, **change}), base).any()
    assert not np.isin(keyed_uniform(cells, **KEYS), base).any()


def test_draws_are_uniform_and_uncorrelated_along_cells_and_entries():
    cells, entries = np.meshgrid(np.arange(400), np.arange(400), indexing="ij")
    draws = keyed_uniform(cells.ravel(), entries.ravel(), **KEYS)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=100, range=(0, 1))
    expected = draws.size / 100
    # Chi-square with 99 degrees of freedom: the bounds are far outside its 99.99 % range.
    assert 45 < ((counts - expected) ** 2 / expected).sum() < 170
    table = draws.reshape(400, 400) - 0.5
    for first, second in [(table[1:], table[:-1]), (table[:, 1:], table[:, :-1])]:
        assert abs((first * second).mean() * 12) < 0.02


def test_golden_values_keep_old_runs_reproducible():
    draws = keyed_uniform(np.array([0, 1]), np.array([0, 1]), seed=0, epoch=0, stream="sample")
    assert draws.tolist() == [0.6274475092862919, 0.04088636103246501]
