"""Orders have names; `auto` looks at the memory."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from omics.data.errors import UnknownNameError
from omics.data.loading.group_orders import ClassBalanced, Mixed
from omics.data.loading.named_orders import fits_in_memory, named_order, order_names
from omics.data.loading.row_order import BlockShuffled, Sequential, Shuffled
from omics.data.loading.weighted_order import Weighted

SMALL = SimpleNamespace(num_bytes=10_000)
HUGE = SimpleNamespace(num_bytes=10**18)


def test_every_name_is_an_order():
    assert order_names() == (
        "auto",
        "sequential",
        "random",
        "block",
        "mixed",
        "weighted:COLUMN",
        "class_balanced:COLUMN",
    )
    found = [named_order(name.replace("COLUMN", "a:b"), SMALL) for name in order_names()]
    kinds = [Shuffled, Sequential, Shuffled, BlockShuffled, Mixed, Weighted, ClassBalanced]
    assert [type(order) for order in found] == kinds
    assert found[5].weights == found[6].column == "a:b"


def test_auto_is_random_in_memory_and_blocks_beyond():
    assert named_order("auto", SMALL) == Shuffled()
    assert named_order("auto", HUGE) == BlockShuffled()


def test_a_container_has_less_memory_than_its_machine(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("omics.data.loading.named_orders._MEMORY_LIMIT", limit)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for text in (None, "max\n", f"{whole * 2}\n"):
        if text is not None:
            limit.write_text(text)
        assert fits_in_memory(whole // 2)
        assert not fits_in_memory(whole // 2 + 1)
    limit.write_text("1000\n")
    assert fits_in_memory(500)
    assert not fits_in_memory(501)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("randm", "no order 'randm'. Did you mean 'random'"),
        ("class_balance:x", "Did you mean 'class_balanced:COLUMN'"),
        ("weighted", "Did you mean 'weighted:COLUMN'"),
        ("weighted:", "Did you mean 'weighted:COLUMN'"),
        ("block:64", "Did you mean 'block'"),
        ("", "Known: 'auto', 'sequential'"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(name, found):
    with pytest.raises(UnknownNameError, match=found):
        named_order(name, SMALL)
