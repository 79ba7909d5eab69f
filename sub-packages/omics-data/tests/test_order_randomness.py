"""Entropy within minibatches tells orders apart."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import ConfigError, UnknownNameError
from omics.data.loading.group_orders import ClassBalanced
from omics.data.loading.order_randomness import order_randomness
from omics.data.loading.row_order import BlockShuffled, Sequential, Shuffled

LABELS = {"batch": np.repeat(np.arange(32), 500), "type": np.arange(16_000) % 4}


def _measured(order, **options):
    return order_randomness(order, LABELS, batch_size=64, num_batches=200, **options)


def test_orders_are_told_apart():
    stored = _measured(Sequential())
    blocks = _measured(BlockShuffled(50, 400))
    random = _measured(Shuffled(), seed=3)
    assert stored.share("batch") < 0.1
    assert 0.4 < blocks.share("batch") < 0.7
    assert abs(random.share("batch") - 1) < 0.01
    # 64 cells from 4 types one after the other: exactly 2 bits, a little more than by chance.
    assert stored.entropy["type"] == pytest.approx(2)
    assert 1.9 < stored.random["type"] < 2


def test_entropy_of_true_random_is_that_of_chance():
    found = _measured(Shuffled())
    draws = np.random.default_rng(1).multinomial(64, np.full(32, 1 / 32), 4000) / 64
    expected = -np.sum(draws * np.log2(np.where(draws > 0, draws, 1)), axis=1).mean()
    assert found.random["batch"] == pytest.approx(expected, abs=0.02)
    assert found.entropy["batch"] == pytest.approx(expected, abs=0.02)


def test_balanced_classes_have_more_entropy_than_chance():
    labels = {"type": np.repeat([0, 1], [9900, 100])}
    found = order_randomness(ClassBalanced("type"), labels, batch_size=50)
    assert found.entropy["type"] > 0.95
    assert found.random["type"] < 0.2
    assert found.share("type") > 5


def test_fewer_batches_are_taken_where_there_are_fewer():
    found = order_randomness(Sequential(), {"x": np.zeros(130, int)}, batch_size=64)
    assert found.num_batches == 2
    assert found.entropy == found.random == {"x": 0}
    assert found.share("x") == 1


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match="An epoch of 3 cells has no minibatch of 64"):
        order_randomness(Sequential(), {"x": np.zeros(3, int)})
    for labels in ({}, {"x": np.zeros(3), "y": np.zeros(4)}):
        with pytest.raises(ConfigError, match="Labels must be of equal length"):
            order_randomness(Sequential(), labels)
    with pytest.raises(UnknownNameError, match=r"no labels 'batc'\. Did you mean 'batch'"):
        order_randomness(ClassBalanced("batc"), LABELS)
