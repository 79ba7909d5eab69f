"""The loader: every cell once, on any number of ranks, in any order, by cells or by a budget."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.errors import ConfigError, UnknownNameError, UsageError
from omics.data.loading.group_orders import Mixed
from omics.data.loading.loader import Loader
from omics.data.loading.row_order import BlockShuffled, Shuffled
from omics.data.loading.weighted_order import Weighted
from omics.data.storage.store import RowError
from omics.data.storage.store_collection import StoreCollection
from omics.data.transforms import LogNormalize, SampleGenes, TopGenes

NUM_CELLS = 53


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_store, random_counts):
    obs = pd.DataFrame(
        {
            "label": [f"l{row}" for row in range(NUM_CELLS)],
            "kind": [None if row % 5 == 0 else f"k{row % 3}" for row in range(NUM_CELLS)],
            "size": np.arange(NUM_CELLS) / 7,
        },
        index=[f"c{row}" for row in range(NUM_CELLS)],
    )
    path = tmp_path_factory.mktemp("loader") / "s"
    return write_store(path, random_counts(NUM_CELLS, 20), obs=obs, block=NUM_CELLS)


def _rows(loader):
    return [batch.rows.tolist() for batch in loader]


@pytest.mark.parametrize("order", ["sequential", "random", BlockShuffled(4, 16)])
@settings(max_examples=30)
@given(
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    num_rows=st.integers(0, NUM_CELLS),
    epoch=st.integers(0, 2),
)
def test_ranks_together_see_every_row_once(
    store, *, order, world_size, batch_size, num_rows, epoch
):
    rows = np.random.default_rng(num_rows).permutation(NUM_CELLS)[:num_rows]
    seen = []
    for rank in range(world_size):
        loader = Loader(
            store,
            rows=rows,
            batch_size=batch_size,
            order=order,
            rank=rank,
            world_size=world_size,
            prefetch=0,
        )
        loader.set_epoch(epoch)
        seen.append(_rows(loader))
        assert len(seen[-1]) == len(loader) == -(-num_rows // (batch_size * world_size))
        assert all(len(batch) == batch_size for batch in seen[-1][:-1])
    whole = Loader(store, rows=rows, batch_size=batch_size * world_size, order=order, prefetch=0)
    whole.set_epoch(epoch)
    for window, *shares in zip(_rows(whole), *seen, strict=True):
        assert window == [row for share in shares for row in share]
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
    assert sorted(row for batches in seen for batch in batches for row in batch) == sorted(rows)


def test_a_new_iteration_without_a_state_begins_again(store):
    loader = Loader(store, batch_size=8)
    for _ in loader:
        break
    assert loader.state_dict()["position"] == 8
    assert len(_rows(loader)) == len(loader)


def test_epochs_differ_and_repeat(store):
    loader = Loader(store, batch_size=8, order="random", seed=1)
    first = _rows(loader)
    loader.set_epoch(1)
    assert loader.epoch == 1
    assert _rows(loader) != first
    loader.set_epoch(0)
    assert _rows(loader) == first


@pytest.mark.parametrize(
    ("options", "error", "found"),
    [
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"prefetch": -1}, ConfigError, "prefetch is -1"),
        ({"num_threads": 0}, ConfigError, "num_threads is 0"),
        ({"num_threads": 3, "prefetch": 2}, ConfigError, "prefetch is 2 with 3 threads"),
        ({"batch_tokens": 0}, ConfigError, "batch_tokens is 0"),
        ({"batch_tokens": 9, "max_cell_tokens": 0}, ConfigError, "max_cell_tokens is 0"),
        ({"batch_tokens": 9, "batch_size": 9}, ConfigError, "both given; a batch has one limit"),
        ({"max_cell_tokens": 9}, ConfigError, "has no effect without batch_tokens"),
        ({"order": "rando"}, UnknownNameError, "no order 'rando'. Did you mean 'random'"),
        ({"order": "class_balanced:lable"}, UnknownNameError, "Did you mean 'label'"),
        ({"order": "auto", "world_size": 2}, ConfigError, "ranks must agree. Name an order"),
        ({"pin_memory": True}, ConfigError, "pin_memory needs reuse_buffers"),
        ({"rank": 2, "world_size": 2}, ConfigError, "rank is 2 of 2"),
        ({"rank": -1}, ConfigError, "rank is -1"),
        ({"seed": -1}, ConfigError, "seed is -1"),
        ({"rows": [0, 53]}, RowError, "Row 53 is outside the store, which has 53 cells"),
        ({"rows": [-1]}, RowError, "Row -1"),
        ({"rows": [0.5]}, ConfigError, "integers, not float64"),
        ({"obs": ["lable"]}, UnknownNameError, "Did you mean 'label'"),
        ({"transforms": [TopGenes(3), LogNormalize()]}, ConfigError, "top_genes comes before"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(options, error, found, store):
    with pytest.raises(error, match=found):
        Loader(store, **options)


def test_batches_hold_counts_obs_and_transformed_fields(store):
    whole = store.to_anndata().X.toarray()
    loader = Loader(store, batch_size=8, obs=["label"], transforms=[LogNormalize()])
    for batch in loader:
        assert (batch.to_csr().toarray() == whole[batch.rows]).all()
        assert batch.obs["label"].tolist() == [f"l{row}" for row in batch.rows]
        assert len(batch.fields["expression"]) == len(batch.counts)


def test_training_transforms_need_training(store):
    transforms = [SampleGenes(0.5, 0.5)]
    plain = sum(len(batch.genes) for batch in Loader(store, transforms=transforms))
    sampled = sum(len(batch.genes) for batch in Loader(store, transforms=transforms, training=True))
    assert plain == store.num_entries
    assert sampled < 0.7 * plain


def test_a_cell_is_the_same_whatever_batch_rank_or_thread_reads_it(store):
    def collect(**options):
        cells = {}
        for rank in range(options.get("world_size", 1)):
            loader = Loader(
                store,
                order="random",
                seed=3,
                training=True,
                rank=rank,
                transforms=[LogNormalize(), SampleGenes(0.3, 0.9), TopGenes(5)],
                **options,
            )
            loader.set_epoch(2)
            for batch in loader:
                for i, row in enumerate(batch.rows.tolist()):
                    cell = batch[i : i + 1]
                    cells[row] = (cell.genes.tobytes(), cell.fields["expression"].tobytes())
        return cells

    expected = collect(batch_size=NUM_CELLS, prefetch=0)
    assert len(expected) == NUM_CELLS
    assert collect(batch_size=1, prefetch=2) == expected
    assert collect(batch_size=7, prefetch=1) == expected
    assert collect(batch_size=3, world_size=3) == expected


@settings(max_examples=30)
@given(
    world_size=st.integers(1, 4),
    batch_tokens=st.integers(1, 60),
    max_cell_tokens=st.one_of(st.none(), st.integers(1, 12)),
    epoch=st.integers(0, 2),
)
def test_budgets_give_every_row_once_and_every_rank_as_many_batches(
    store, *, world_size, batch_tokens, max_cell_tokens, epoch
):
    lengths = np.clip(store.lengths, 1, max_cell_tokens)
    seen = []
    for rank in range(world_size):
        loader = Loader(
            store,
            batch_tokens=batch_tokens,
            max_cell_tokens=max_cell_tokens,
            order="random",
            rank=rank,
            world_size=world_size,
            prefetch=0,
        )
        loader.set_epoch(epoch)
        seen.append(_rows(loader))
        assert len(seen[-1]) == len(loader)
        for rows in seen[-1]:
            assert lengths[rows].sum() <= batch_tokens or len(rows) == 1
    assert len({len(batches) for batches in seen}) == 1
    assert sorted(row for batches in seen for batch in batches for row in batch) == list(
        range(NUM_CELLS)
    )


@pytest.mark.parametrize("limit", [{"batch_size": 5}, {"batch_tokens": 45}])
def test_dropping_the_last_batch_leaves_only_full_ones(limit, store):
    kept = Loader(store, order="random", drop_last=True, world_size=2, **limit)
    every = Loader(store, order="random", world_size=2, **limit)
    assert _rows(kept) == _rows(every)[: len(kept)]
    assert len(kept) == len(every) - 1
    assert kept.state_dict()["position"] == NUM_CELLS
    assert kept.batches_left == 0


@pytest.mark.parametrize(
    "order",
    [
        "block",
        "mixed",
        "auto",
        "weighted:size",
        "class_balanced:kind",
        Weighted("size", num_cells=20, replacement=False),
        Mixed(num_cells=77),
    ],
)
def test_every_order_serves_a_selection_on_several_ranks(order, store):
    rows = np.arange(3, NUM_CELLS, 2)
    options = {"rows": rows, "order": order, "batch_size": 3, "seed": 2, "prefetch": 0}
    whole = [row for batch in _rows(Loader(store, **options)) for row in batch]
    assert set(whole) <= set(rows.tolist())
    if order == "auto":
        assert Loader(store, **options).order == Shuffled()
        options["order"] = "random"
    ranks = [_rows(Loader(store, rank=rank, world_size=3, **options)) for rank in range(3)]
    joined = [row for shares in zip(*ranks, strict=True) for share in shares for row in share]
    assert joined == whole
    labels = store.obs["kind"][whole]
    if "class_balanced" in str(order):
        assert None not in labels


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_collection_is_mixed_and_read_like_one_store(
    num_threads, tmp_path, write_store, random_counts
):
    parts = [
        write_store(tmp_path / str(size), random_counts(size, 20, seed=size)) for size in (60, 6)
    ]
    cells = StoreCollection(parts)
    options = {"order": Mixed((3, 1), num_cells=80), "batch_size": 8, "num_threads": num_threads}
    loader = Loader(cells, reuse_buffers=True, **options)
    whole = np.concatenate([part.to_anndata().X.toarray() for part in parts])
    for batch in loader:
        assert (batch.to_csr().toarray() == whole[batch.rows]).all()
        assert abs(int((batch.rows >= 60).sum()) - 2) <= 1
    visits = np.bincount(np.concatenate(_rows(loader)), minlength=66)
    assert set(visits[:60]) == {1}
    assert set(visits[60:]) <= {3, 4}
    state = loader.state_dict()
    with pytest.raises(ConfigError, match="the store with digest"):
        Loader(StoreCollection(parts[::-1]), **options).load_state_dict(state)


def test_a_batch_does_not_keep_the_order_alive(store):
    for batch in Loader(store, batch_size=8, order="random", prefetch=0):
        assert batch.rows.base is None or len(batch.rows.base) == 8 or len(batch) < 8


def test_loader_is_a_torch_dataset(store):
    from torch.utils.data import DataLoader

    loader = Loader(store, batch_size=8, order="random")
    data = DataLoader(loader.as_iterable_dataset(), batch_size=None)
    assert len(data) == len(loader)
    assert [batch.rows.tolist() for batch in data] == _rows(loader)


def test_worker_processes_are_refused(store):
    from torch.utils.data import DataLoader

    data = DataLoader(
        Loader(store, batch_size=8).as_iterable_dataset(), batch_size=None, num_workers=1
    )
    with pytest.raises(UsageError, match=r"cannot be split over worker processes.*num_workers=0"):
        next(iter(data))


def test_cells_are_read_again_as_their_epoch_gave_them(store):
    steps = [LogNormalize(target_sum=100), SampleGenes(keep_low=0.5, keep_high=0.5)]
    rows = np.arange(NUM_CELLS)[::-1][:20].copy()
    loader = Loader(
        store,
        rows=rows,
        batch_size=7,
        order="random",
        transforms=steps,
        obs=["label"],
        seed=3,
        training=True,
    )
    assert loader.first_row == NUM_CELLS - 1
    assert Loader(store).first_row == 0
    assert Loader(store).spread_rows(3).tolist() == [0, (NUM_CELLS - 1) // 2, NUM_CELLS - 1]
    assert loader.spread_rows(10**6).tolist() == rows.tolist()
    loader.set_epoch(2)
    for batch in loader:
        halves = [loader.read(part, epoch=2) for part in (batch.rows[:3], batch.rows[3:])]
        for name in ("genes", "counts", "rows"):
            parts = [getattr(half, name) for half in halves]
            assert np.array_equal(np.concatenate(parts), getattr(batch, name))
        assert halves[0].obs["label"].tolist() == batch.obs["label"][:3].tolist()
    other = loader.read(batch.rows, epoch=1)
    assert not np.array_equal(other.genes, batch.genes)
