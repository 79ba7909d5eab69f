from __future__ import annotations

import zlib

import numpy as np
import pytest

from omics.data.keyed_random import keyed_uniform, stream_key

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


def by_splitmix(cell, entry):
    """Return the draw in exact integers, for the keys of these tests."""
    mask = 2**64 - 1

    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    key = mix(mix(KEYS["seed"] ^ mix(KEYS["epoch"])) ^ zlib.crc32(KEYS["stream"].encode()))
    bits = mix(mix((cell & mask) ^ key) ^ mix(entry & mask))
    return (bits >> 11) / 2**53


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_compiled_draws_equal_exact_integer_arithmetic(dtype):
    cells = np.array([0, 1, 2**40, -5, 2**62])
    entries = np.array([0, 65535, 17, 300, 9]).astype(dtype)
    draws = keyed_uniform(cells, entries, **KEYS)
    expected = [by_splitmix(int(c), int(e)) for c, e in zip(cells, entries, strict=True)]
    assert draws.tolist() == expected


def test_loops_draw_the_same_numbers_inline():
    from omics.data.keyed_loops import cell_bits, entry_bits, to_unit

    key = stream_key(**KEYS)
    assert to_unit(entry_bits(cell_bits(key, 12), 7)) == by_splitmix(12, 7)
    assert to_unit(cell_bits(key, 12)) == keyed_uniform(np.array([12]), **KEYS)[0]


def test_cells_and_entries_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\) cells do not go with \(2,\) entries"):
        keyed_uniform(np.arange(3), np.arange(2), **KEYS)
    assert keyed_uniform(np.arange(0), np.arange(0), **KEYS).shape == (0,)
