"""Threads read ahead in order, end when they should, and never write into a batch in use."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from omics.data.errors import ConfigError, CorruptStoreError
from omics.data.loading.loader import Loader
from omics.data.storage.batch_buffers import BatchBuffers

NUM_CELLS = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_store, random_counts):
    path = tmp_path_factory.mktemp("threads") / "s"
    return write_store(path, random_counts(NUM_CELLS, 20), block=NUM_CELLS)


class _Reader:
    """A store that tells `on_take` of every read before it is done."""

    def __init__(self, store, on_take):
        self.store = store
        self.on_take = on_take

    def __len__(self):
        return len(self.store)

    def __getattr__(self, name):
        return getattr(self.store, name)

    def take(self, rows, *, obs=(), buffers=None):
        self.on_take(rows, buffers)
        return self.store.take(rows, obs=obs, buffers=buffers)


def _threads():
    return [each for each in threading.enumerate() if each.name.startswith("omics-loader")]


def _wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def _contents(batch):
    return batch.rows.tolist(), batch.to_csr().toarray().tolist()


@pytest.mark.parametrize(("num_threads", "prefetch"), [(1, 0), (1, 4), (3, 3), (4, 9), (2, None)])
@pytest.mark.parametrize("reuse_buffers", [False, True])
def test_batches_are_the_same_whatever_reads_them(num_threads, prefetch, reuse_buffers, store):
    random = np.random.default_rng(0)
    slow = _Reader(store, lambda rows, buffers: time.sleep(random.random() * 0.004))
    loader = Loader(
        slow,
        batch_size=4,
        order="random",
        num_threads=num_threads,
        prefetch=prefetch,
        reuse_buffers=reuse_buffers,
    )
    expected = Loader(store, batch_size=4, order="random", prefetch=0)
    assert [_contents(batch) for batch in loader] == [_contents(batch) for batch in expected]
    assert _wait_until(lambda: not _threads())


@pytest.mark.parametrize(("num_threads", "prefetch"), [(1, 0), (1, 1), (3, 5)])
def test_a_batch_is_not_overwritten_before_the_next_is_asked_for(num_threads, prefetch, store):
    used = []
    reader = _Reader(store, lambda rows, buffers: used.append(id(buffers)))
    loader = Loader(
        reader, batch_size=3, num_threads=num_threads, prefetch=prefetch, reuse_buffers=True
    )
    used.clear()  # The loader has looked for its obs columns.
    for index, batch in enumerate(loader):
        before = _contents(batch)
        _wait_until(lambda at=index: len(used) >= min(at + 1 + prefetch, len(loader)))
        time.sleep(0.005)
        assert _contents(batch) == before
        assert before[0] == list(range(index * 3, index * 3 + 3))
    assert len(used) == len(loader) == 20
    assert len(set(used)) == prefetch + 1
    # The last one stays, and another iteration has memory of its own.
    next(iter(loader))
    assert _contents(batch) == before


def test_reused_memory_is_the_same_memory(store):
    loader = Loader(store, batch_size=10, prefetch=0, reuse_buffers=True)
    places = {batch.genes.__array_interface__["data"][0] for batch in loader}
    assert len(places) < len(loader)
    kept = [batch.genes for batch in Loader(store, batch_size=10, prefetch=0)]
    assert len({each.__array_interface__["data"][0] for each in kept}) == len(loader)


def test_several_threads_read_at_the_same_time(store):
    together = threading.Barrier(3, timeout=5)
    first_three = _Reader(store, lambda rows, _: together.wait() if len(rows) else None)
    loader = Loader(first_three, batch_size=20, num_threads=3)
    assert [batch.rows[0] for batch in loader] == [0, 20, 40]


def test_threads_end_when_iteration_is_abandoned(store):
    loader = Loader(store, batch_size=1, num_threads=2)
    iterator = iter(loader)
    next(iterator)
    assert len(_threads()) == 2
    del iterator
    assert _wait_until(lambda: not _threads())
    for batch in loader:
        if batch.rows[0] == 3:
            break
    assert _wait_until(lambda: not _threads())


def test_threads_read_at_most_prefetch_batches_ahead(store):
    read = []
    reader = _Reader(store, lambda rows, _: read.append(1) if len(rows) else None)
    loader = Loader(reader, batch_size=1, prefetch=3, num_threads=2)
    iterator = iter(loader)
    for handed_out in range(1, 6):
        next(iterator)
        _wait_until(lambda done=handed_out: len(read) >= done + 3)
        time.sleep(0.02)
        assert len(read) == handed_out + 3
    iterator.close()
    assert loader.state_dict()["position"] == 5


@pytest.mark.parametrize("options", [{"prefetch": 0}, {}, {"num_threads": 3}])
def test_error_while_reading_reaches_the_consumer_in_its_place(options, store):
    def fail(rows, _):
        if 25 in np.asarray(rows):
            raise CorruptStoreError("chunk 12 is damaged")

    loader = Loader(_Reader(store, fail), batch_size=4, **options)
    seen = []
    with pytest.raises(CorruptStoreError, match="chunk 12 is damaged"):
        seen.extend(batch.rows[0] for batch in loader)
    assert seen == [0, 4, 8, 12, 16, 20]
    assert loader.state_dict()["position"] == 24
    assert _wait_until(lambda: not _threads())


def test_pinned_memory_without_cuda_is_refused(store, monkeypatch):
    import sys

    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"torch finds no CUDA device\. Leave pin_memory off"):
        Loader(store, reuse_buffers=True, pin_memory=True)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="torch is not installed"):
        Loader(store, reuse_buffers=True, pin_memory=True)


def test_pinned_buffers_are_written_only_when_the_device_is_done(store, monkeypatch):
    import torch

    log = []

    class Event:
        def record(self):
            self.recorded_in = threading.current_thread()
            log.append(("record", id(self)))

        def synchronize(self):
            assert self.recorded_in is threading.main_thread()
            assert threading.current_thread() is not threading.main_thread()
            log.append(("wait", id(self)))

    kept = []  # So that no two events have the same id.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", lambda: kept.append(Event()) or kept[-1])
    monkeypatch.setattr("omics.data.loading.batch_ring.pinned", np.empty)
    used = []
    reader = _Reader(store, lambda rows, buffers: used.append(buffers))
    loader = Loader(reader, batch_size=4, prefetch=2, reuse_buffers=True, pin_memory=True)
    used.clear()
    expected = [_contents(batch) for batch in Loader(store, batch_size=4)]
    assert [_contents(batch) for batch in loader] == expected
    assert len({id(each) for each in used}) == 4  # The consumer's, two ahead, one in transfer.
    waits = [name for what, name in log if what == "wait"]
    assert waits == [id(event) for event in kept[: len(waits)]]
    assert len(waits) == len(loader) - 4
    for name in waits:
        assert log.index(("record", name)) < log.index(("wait", name))


@pytest.mark.gpu
def test_copies_from_pinned_buffers_hold_the_right_cells(store):
    import torch

    loader = Loader(store, batch_size=4, num_threads=2, reuse_buffers=True, pin_memory=True)
    copies = []
    for batch in loader:
        host = torch.from_numpy(batch.counts.view(np.int32))
        assert host.is_pinned()
        copies.append(host.to("cuda", non_blocking=True))
    expected = [batch.counts.tolist() for batch in Loader(store, batch_size=4)]
    assert [copy.cpu().tolist() for copy in copies] == expected


def test_a_reader_only_has_to_fit_the_protocol():
    from omics.data.cell_batch import CellBatch

    def take(rows, *, obs=(), buffers=None):
        memory = buffers or BatchBuffers()
        genes = memory.array("genes", len(rows), np.uint16)
        genes[:] = rows
        indptr = np.arange(len(rows) + 1)
        return CellBatch(indptr, genes, np.ones(len(rows), np.uint8), np.asarray(rows), 100)

    class Made(SimpleNamespace):
        def __len__(self):
            return 100

    reader = Made(digest="d", num_bytes=1, obs={}, lengths=np.ones(100, np.int64), take=take)
    loader = Loader(reader, batch_tokens=7, order="auto", reuse_buffers=True)
    assert sorted(gene for batch in loader for gene in batch.genes.tolist()) == list(range(100))
    assert len(loader) == 15
