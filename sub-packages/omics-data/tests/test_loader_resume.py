"""A stopped run goes on anywhere, on any number of ranks, and every row comes exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.errors import ConfigError
from omics.data.loading.loader import Loader
from omics.data.loading.row_order import BlockShuffled, Shuffled

NUM_CELLS = 97


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_store, random_counts):
    obs = pd.DataFrame({"kind": [f"k{row % 7}" for row in range(NUM_CELLS)]})
    obs.index = [f"c{row}" for row in range(NUM_CELLS)]
    path = tmp_path_factory.mktemp("resume") / "s"
    return write_store(path, random_counts(NUM_CELLS, 20), obs=obs, block=NUM_CELLS)


def _rows(loader):
    return [batch.rows.tolist() for batch in loader]


def _run(store, state, *, stop, world_size, **options):
    """Run all ranks from a state for `stop` global batches; return the rows and the new state."""
    seen, states = [], []
    for rank in range(world_size):
        loader = Loader(store, rank=rank, world_size=world_size, **options)
        if state is not None:
            loader.load_state_dict(json.loads(json.dumps(state)))
        iterator = iter(loader)
        batches = [batch.rows.tolist() for _, batch in zip(range(stop), iterator, strict=False)]
        iterator.close()
        seen.append(batches)
        states.append(loader.state_dict())
    assert all(each == states[0] for each in states)
    assert len({len(batches) for batches in seen}) == 1
    joined = [row for shares in zip(*seen, strict=True) for share in shares for row in share]
    return joined, states[0]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("limit", [{"batch_size": 8}, {"batch_tokens": 50}])
def test_resuming_at_every_batch_gives_exactly_the_rest(prefetch, limit, store):
    def make():
        return Loader(store, order="random", seed=5, prefetch=prefetch, **limit)

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
        assert state["position"] == sum(map(len, seen))
        second = make()
        second.load_state_dict(state)
        second.set_epoch(3)
        assert second.batches_left == len(batches) - stop
        assert seen + _rows(second) == batches
        assert second.state_dict()["position"] == NUM_CELLS
        second.set_epoch(4)
        assert len(_rows(second)) == len(second)


LIMITS = st.one_of(
    st.fixed_dictionaries({"batch_size": st.integers(1, 9)}),
    st.fixed_dictionaries(
        {"batch_tokens": st.integers(5, 90), "max_cell_tokens": st.integers(3, 30)}
    ),
)


@settings(max_examples=40)
@given(
    order=st.sampled_from(["sequential", "random", "block", "mixed", "class_balanced:kind"]),
    limits=st.lists(LIMITS, min_size=4, max_size=4),
    stops=st.lists(st.integers(0, 6), min_size=3, max_size=3),
    threads=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_every_row_comes_exactly_once_when_ranks_and_batches_change(
    store, *, order, limits, stops, threads, seed
):
    state, seen = None, []
    worlds = zip((1, 2, 3, 1), [*stops, 10**6], limits, threads, strict=True)
    for world_size, stop, limit, num_threads in worlds:
        rows, state = _run(
            store,
            state,
            stop=stop,
            world_size=world_size,
            order=order,
            seed=seed,
            num_threads=num_threads,
            prefetch=num_threads if num_threads > 1 else 0,
            **limit,
        )
        seen += rows
        assert state["position"] == len(seen)
    whole = Loader(store, order=order, seed=seed, batch_size=NUM_CELLS, prefetch=0)
    assert [seen] == _rows(whole)


def test_two_processes_go_on_where_one_stopped(store):
    script = (
        "import json, sys\n"
        "from omics.data import Loader, open_store\n"
        "path, rank, world_size, stop, state = json.loads(sys.argv[1])\n"
        "loader = Loader(open_store(path), order='random', seed=3, batch_tokens=60,\n"
        "                rank=rank, world_size=world_size)\n"
        "if state: loader.load_state_dict(state)\n"
        "rows = []\n"
        "for batch in loader:\n"
        "    rows += batch.rows.tolist()\n"
        "    if loader.batches_left <= stop: break\n"
        "print(json.dumps([rows, loader.state_dict()]))\n"
    )

    def start(*arguments):
        command = [sys.executable, "-c", script, json.dumps([str(store.path), *arguments])]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))

    def results(processes):
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert all(process.returncode == 0 for process in processes)
        return [json.loads(output) for output in outputs]

    [(seen, state)] = results([start(0, 1, 10, None)])
    assert 0 < len(seen) < NUM_CELLS
    first, second = results([start(rank, 2, 0, state) for rank in range(2)])
    assert first[1] == second[1]
    assert first[1]["position"] == NUM_CELLS
    assert sorted(seen + first[0] + second[0]) == list(range(NUM_CELLS))


def test_state_of_a_finished_epoch_leaves_nothing_of_it(store):
    loader = Loader(store, batch_size=8)
    list(loader)
    again = Loader(store, batch_size=8)
    again.load_state_dict(loader.state_dict())
    assert _rows(again) == []
    assert len(_rows(again)) == len(again)


def test_dropped_rows_do_not_come_back_on_fewer_ranks(store):
    loader = Loader(store, batch_size=10, world_size=4, drop_last=True)
    list(loader)
    again = Loader(store, batch_size=1, drop_last=True)
    again.load_state_dict(loader.state_dict())
    assert _rows(again) == []


def test_auto_takes_the_order_of_the_state(store, monkeypatch):
    begun = Loader(store, order="auto", batch_size=8)
    assert begun.state_dict()["order"] == Shuffled().to_dict()
    monkeypatch.setattr("omics.data.loading.named_orders._SHARE_OF_MEMORY", 0)
    elsewhere = Loader(store, order="auto", batch_size=8)
    assert elsewhere.order == BlockShuffled()
    elsewhere.load_state_dict(begun.state_dict())
    assert elsewhere.order == Shuffled()
    assert _rows(elsewhere) == _rows(begun)
    with pytest.raises(ConfigError, match=r"with the order {'name': 'random'}, this one has"):
        Loader(store, order="block").load_state_dict(begun.state_dict())


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"seed": 2}, "seed 1, this one has 2"),
        ({"order": "sequential"}, "the order {'name': 'random'}, this one has"),
        ({"rows": np.arange(10)}, "the rows all, this one has 10:"),
    ],
)
def test_state_of_another_loader_is_refused(changes, found, store):
    options = {"seed": 1, "order": "random"}
    state = Loader(store, **options).state_dict()
    with pytest.raises(ConfigError, match=f"{found}.*Continue with the settings"):
        Loader(store, **{**options, **changes}).load_state_dict(state)


def test_state_of_another_store_is_refused(store, tmp_path, write_store):
    other = write_store(tmp_path / "other", np.ones((NUM_CELLS, 20), int))
    state = Loader(other).state_dict()
    with pytest.raises(ConfigError, match=f"digest {other.digest}, this one reads {store.digest}"):
        Loader(store).load_state_dict(state)


def test_all_rows_in_order_are_no_selection(store):
    state = Loader(store).state_dict()
    Loader(store, rows=np.arange(NUM_CELLS)).load_state_dict(state)
    with pytest.raises(ConfigError, match="the rows all"):
        Loader(store, rows=np.arange(NUM_CELLS)[::-1]).load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"position": 99}, "position is 99; an epoch has 97 rows"),
        ({"position": -1}, "position is -1"),
        ({"position": 1.0}, "is not a count"),
        ({"position": True}, "is not a count"),
        ({"epoch": -1}, "is not a count"),
        ({"epoch": None}, "is not a count"),
        ({"epoc": 1}, r"unknown key 'epoc'\. Did you mean 'epoch'"),
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
