"""The loader: every cell once, on any number of ranks, resumable at every batch."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.errors import ConfigError, CorruptStoreError, UnknownNameError, UsageError
from omics.data.loader import Loader
from omics.data.store import RowError, open_store
from omics.data.transforms import LogNormalize, SampleGenes, TopGenes

NUM_CELLS = 53


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_store, random_counts):
    obs = pd.DataFrame(
        {"label": [f"l{row}" for row in range(NUM_CELLS)]},
        index=[f"c{row}" for row in range(NUM_CELLS)],
    )
    path = tmp_path_factory.mktemp("loader") / "s"
    return write_store(path, random_counts(NUM_CELLS, 20), obs=obs, block=NUM_CELLS)


def _rows(loader):
    return [batch.rows.tolist() for batch in loader]


def _loader_threads():
    return [each for each in threading.enumerate() if each.name.startswith("omics-loader")]


def _wait_for_no_threads():
    deadline = time.monotonic() + 5
    while _loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    return _loader_threads() == []


@pytest.mark.parametrize("shuffle", [False, True])
@settings(max_examples=30)
@given(
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    num_rows=st.integers(0, NUM_CELLS),
    epoch=st.integers(0, 2),
)
def test_ranks_together_see_every_row_once(
    store, *, shuffle, world_size, batch_size, num_rows, epoch
):
    rows = np.random.default_rng(num_rows).permutation(NUM_CELLS)[:num_rows]
    seen = []
    for rank in range(world_size):
        loader = Loader(
            store,
            rows=rows,
            batch_size=batch_size,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            prefetch=0,
        )
        loader.set_epoch(epoch)
        seen.append(_rows(loader))
        assert len(seen[-1]) == len(loader) == -(-num_rows // (batch_size * world_size))
        assert all(len(batch) == batch_size for batch in seen[-1][:-1])
    whole = Loader(
        store, rows=rows, batch_size=batch_size * world_size, shuffle=shuffle, prefetch=0
    )
    whole.set_epoch(epoch)
    for window, *shares in zip(_rows(whole), *seen, strict=True):
        assert window == [row for share in shares for row in share]
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
    assert sorted(row for batches in seen for batch in batches for row in batch) == sorted(rows)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_resuming_at_every_batch_gives_exactly_the_rest(prefetch, store):
    def make():
        return Loader(store, batch_size=8, shuffle=True, seed=5, prefetch=prefetch)

    whole = make()
    whole.set_epoch(3)
    batches = _rows(whole)
    for stop in range(len(batches) + 1):
        first = make()
        first.set_epoch(3)
        seen = []
        if stop:
            for batch in first:
                seen.append(batch.rows.tolist())
                if len(seen) == stop:
                    break
        state = json.loads(json.dumps(first.state_dict()))
        assert state["batch"] == stop
        second = make()
        second.load_state_dict(state)
        second.set_epoch(3)
        assert seen + _rows(second) == batches
        assert second.state_dict()["batch"] == len(batches)
        second.set_epoch(4)
        assert len(_rows(second)) == len(batches)


def test_state_of_a_finished_epoch_leaves_nothing_of_it(store):
    loader = Loader(store, batch_size=8)
    list(loader)
    again = Loader(store, batch_size=8)
    again.load_state_dict(loader.state_dict())
    assert _rows(again) == []
    assert len(_rows(again)) == len(again)


def test_run_resumes_on_another_number_of_ranks(store):
    one = Loader(store, batch_size=12, shuffle=True)
    iterator = iter(one)
    begun = [next(iterator).rows.tolist() for _ in range(2)]
    iterator.close()
    rest = []
    for rank in range(3):
        loader = Loader(store, batch_size=4, shuffle=True, rank=rank, world_size=3)
        loader.load_state_dict(one.state_dict())
        rest.append(_rows(loader))
    joined = [[row for share in shares for row in share] for shares in zip(*rest, strict=True)]
    assert begun + joined == _rows(Loader(store, batch_size=12, shuffle=True))


def test_a_new_iteration_without_a_state_begins_again(store):
    loader = Loader(store, batch_size=8)
    for _ in loader:
        break
    assert loader.state_dict()["batch"] == 1
    assert len(_rows(loader)) == len(loader)


def test_epochs_differ_and_repeat(store):
    loader = Loader(store, batch_size=8, shuffle=True, seed=1)
    first = _rows(loader)
    loader.set_epoch(1)
    assert loader.epoch == 1
    assert _rows(loader) != first
    loader.set_epoch(0)
    assert _rows(loader) == first


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"seed": 2}, "seed 1, this one has 2"),
        ({"batch_size": 5}, "global_batch_size 4, this one has 5"),
        ({"shuffle": False}, "shuffle True"),
        ({"rows": np.arange(10)}, "rows"),
    ],
)
def test_state_of_another_loader_is_refused(changes, found, store):
    options = {"seed": 1, "batch_size": 4, "shuffle": True}
    state = Loader(store, **options).state_dict()
    with pytest.raises(ConfigError, match=found):
        Loader(store, **{**options, **changes}).load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"batch": 99}, "batch is 99; an epoch has 14 batches"),
        ({"batch": -1}, "batch is -1"),
        ({"batch": 1.0}, "is not a count"),
        ({"epoch": -1}, "is not a count"),
        ({"epoc": 1}, r"unknown key 'epoc'\. Did you mean 'epoch'"),
        ({"batch": None}, "is not a count"),
    ],
)
def test_bad_states_are_refused(changes, found, store):
    loader = Loader(store, batch_size=4)
    with pytest.raises(ConfigError, match=found):
        loader.load_state_dict({**loader.state_dict(), **changes})


def test_incomplete_state_is_refused(store):
    loader = Loader(store, batch_size=4)
    state = loader.state_dict()
    del state["seed"]
    with pytest.raises(ConfigError, match="has no 'seed'"):
        loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "error", "found"),
    [
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"prefetch": -1}, ConfigError, "prefetch -1"),
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
                shuffle=True,
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


def test_thread_ends_with_the_epoch(store):
    list(Loader(store, batch_size=4, prefetch=2))
    assert _wait_for_no_threads()


def test_thread_ends_when_iteration_is_abandoned(store):
    loader = Loader(store, batch_size=1, prefetch=2)
    iterator = iter(loader)
    next(iterator)
    assert len(_loader_threads()) == 1
    del iterator
    assert _wait_for_no_threads()


def test_thread_reads_at_most_prefetch_batches_ahead(store, monkeypatch):
    loader = Loader(store, batch_size=1, prefetch=3)
    read = []
    taken = type(store).take
    monkeypatch.setattr(
        type(store), "take", lambda self, rows, **o: read.append(1) or taken(self, rows, **o)
    )
    iterator = iter(loader)
    for handed_out in range(1, 6):
        next(iterator)
        deadline = time.monotonic() + 5
        while len(read) < handed_out + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)
        assert len(read) == handed_out + 3
    iterator.close()
    assert loader.state_dict()["batch"] == 5


@pytest.mark.parametrize("prefetch", [0, 2])
def test_error_while_reading_reaches_the_consumer(prefetch, tmp_path, write_store, monkeypatch):
    monkeypatch.setattr("omics.data.store_writer.CHUNK_BYTES", 8)
    write_store(tmp_path / "s", np.ones((40, 4), int))
    file = tmp_path / "s" / "gen-1" / "counts.bin"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    loader = Loader(open_store(tmp_path / "s"), batch_size=4, prefetch=prefetch)
    with pytest.raises(CorruptStoreError, match=r"counts\.bin fails its checksum in chunk 12"):
        list(loader)
    assert loader.state_dict()["batch"] == 6
    assert _wait_for_no_threads()


def test_loader_is_a_torch_dataset(store):
    from torch.utils.data import DataLoader

    loader = Loader(store, batch_size=8, shuffle=True)
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
