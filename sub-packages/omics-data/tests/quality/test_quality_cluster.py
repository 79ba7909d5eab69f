"""Quality control on a real two-worker dask cluster on loopback: equal results, clear failures."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time

import distributed
import numpy as np
import pytest

from omics.data.errors import MissingExtraError, MissingPathError, ResourceError, UsageError
from omics.data.quality import Thresholds, assess_quality, block_runner
from omics.data.quality.block_runner import find_store, open_runner
from omics.data.storage.store import open_store


class Cluster:
    """A scheduler in this process and two workers in processes of their own."""

    def __init__(self, scheduler):
        self.address = scheduler.scheduler_address
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address]
        options = ["--no-nanny", "--no-dashboard", "--nthreads", "1", "--host", "127.0.0.1"]
        self.workers = [
            subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL) for _ in range(2)
        ]

    def kill_one(self):
        worker = self.workers.pop()
        worker.kill()
        worker.wait()


@pytest.fixture(scope="module")
def cluster():
    """A real cluster on free ports of this machine only."""
    for name in ("distributed.scheduler", "distributed.core", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with distributed.LocalCluster(
        n_workers=0, host="127.0.0.1", dashboard_address=None
    ) as scheduler:
        started = Cluster(scheduler)
        try:
            with distributed.Client(scheduler, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=60)
            yield started
        finally:
            while started.workers:
                started.kill_one()


def process_of(_store, _block):
    """Say which process a task runs in; long enough for every worker to get some."""
    time.sleep(0.05)
    return os.getpid()


def same(table, other):
    for mine, its in ((table.cells, other.cells), (table.genes, other.genes)):
        assert list(mine) == list(its)
        for name in mine:
            np.testing.assert_array_equal(mine[name], its[name], err_msg=name)
    assert table.summary == other.summary


def test_the_cluster_gives_what_threads_give(faulty_store, cluster, in_small_blocks):
    asked = {
        "thresholds": Thresholds(mads=5, min_genes=30),
        "batch": "batch",
        "doublets": True,
        "hvg": 50,
    }
    with open_runner(faulty_store, cluster.address) as runner:
        assert (runner.num_processes, runner.num_threads) == (2, 2)
        pids = set(runner.map(process_of, range(8)))
    assert pids == {worker.pid for worker in cluster.workers}
    here = assess_quality(faulty_store, **asked)
    there = assess_quality(faulty_store, scheduler=cluster.address, **asked)
    same(here, there)
    assert here.summary["cells_removed"] > 20


def test_a_killed_worker_costs_nothing_but_time(faulty_store, cluster, in_small_blocks):
    killed = []

    def kill_one(_cells):
        if not killed:
            killed.append(cluster.kill_one())

    table = assess_quality(faulty_store, scheduler=cluster.address, on_progress=kill_one)
    assert killed
    assert len(cluster.workers) == 1
    same(table, assess_quality(faulty_store))


def test_workers_that_do_not_see_the_store_are_an_error(tmp_path, write_store, cluster):
    store = write_store(tmp_path / "here", [[1, 2], [0, 3]])
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    with (
        pytest.raises(MissingPathError, match=r"worker tcp://.* does not see the store .*here"),
        open_runner(store, cluster.address),
    ):
        pass


def test_a_worker_that_cannot_run_our_code_is_an_error(faulty_store, cluster, monkeypatch):
    def unknown(*_arguments):
        raise ModuleNotFoundError("No module named 'omics'")

    monkeypatch.setattr(block_runner, "find_store", unknown)
    with (
        pytest.raises(ResourceError, match=r"cannot run omics.data \(ModuleNotFoundError.*Install"),
        open_runner(faulty_store, cluster.address),
    ):
        pass


def test_a_cluster_without_workers_and_one_that_loses_them(
    faulty_store, cluster, in_small_blocks, monkeypatch
):
    """The last test of this cluster: its last worker is killed."""
    monkeypatch.setattr(block_runner, "NO_WORKER_S", 1.0)
    monkeypatch.setattr(block_runner, "CONNECT_S", 1.0)
    address = cluster.address

    def kill_last(_cells):
        while cluster.workers:
            cluster.kill_one()

    with pytest.raises(ResourceError, match="was lost: it has had no workers for 1 seconds"):
        assess_quality(faulty_store, scheduler=address, on_progress=kill_last)
    with pytest.raises(ResourceError, match=r"has no workers\. Start some: dask worker tcp://"):
        assess_quality(faulty_store, scheduler=address)


@pytest.mark.parametrize("address", ["nowhere", "http://127.0.0.1:1", "tcp://127.0.0.1", "tcp://"])
def test_what_is_no_address(faulty_store, address):
    with pytest.raises(UsageError, match=r"is not an address such as tcp://127\.0\.0\.1:8786"):
        assess_quality(faulty_store, scheduler=address)


def test_nobody_at_the_address_is_said_within_seconds(faulty_store, monkeypatch):
    monkeypatch.setattr(block_runner, "CONNECT_S", 0.5)
    begun = time.monotonic()
    with pytest.raises(ResourceError, match=r"No dask scheduler answers at tcp://127\.0\.0\.1:1 "):
        assess_quality(faulty_store, scheduler="tcp://127.0.0.1:1")
    assert time.monotonic() - begun < 5


def test_a_cluster_needs_its_extra(faulty_store, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match="needs distributed"):
        assess_quality(faulty_store, scheduler="tcp://127.0.0.1:1")


def test_a_worker_says_what_it_does_not_find(tmp_path, write_store):
    path = str(write_store(tmp_path / "s", [[1]]).path)
    assert find_store(path, 1) == ""
    assert find_store(path, 2) == "the store there has no generation 2"
    assert find_store(str(tmp_path / "no"), 1) == "there is nothing at this path"
    assert len(open_store(path)) == 1
