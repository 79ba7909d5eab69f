"""Files go to the disk while they are written, and a failure on the way is never forgotten."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pandas as pd
import pytest

from omics.data.storage import early_flushing
from omics.data.storage.checksummed_file import ChecksummedFile
from omics.data.storage.early_flushing import EarlyFlushing
from omics.data.storage.store import open_store
from omics.data.storage.store_writer import StoreWriter

VAR = pd.DataFrame(index=[f"g{n}" for n in range(50)])


def flushers():
    return [each for each in threading.enumerate() if each.name == "omics-flush"]


def broken(descriptor):
    raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def file(tmp_path):
    file = ChecksummedFile(tmp_path / "a.bin", "uint8", 0, 2**20)
    yield file
    file.close()


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(early_flushing, "FLUSHED_BYTES", 1000)


def append(writer, cells=20):
    genes = np.tile(np.arange(50), cells)
    writer.append(np.arange(0, 50 * cells + 1, 50), genes, np.ones(50 * cells, np.int64))


def test_what_has_grown_by_much_is_flushed(file, small_steps, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    flushing = EarlyFlushing()
    file.write(np.zeros(999, np.uint8))
    flushing.note([file])
    assert not flushers()
    file.write(np.zeros(1, np.uint8))
    flushing.note([file])
    flushing.settle()
    file.write(np.zeros(999, np.uint8))
    flushing.note([file])
    flushing.settle()
    assert flushed == [file.descriptor]
    file.write(np.zeros(1, np.uint8))
    flushing.note([file])
    flushing.settle()
    assert flushed == [file.descriptor] * 2
    flushing.stop()
    assert not flushers()


def test_the_writer_does_not_wait_for_the_disk(file, small_steps, monkeypatch):
    allowed, begun = threading.Event(), threading.Semaphore(0)

    def slow(descriptor):
        begun.release()
        assert allowed.wait(10)

    monkeypatch.setattr(os, "fdatasync", slow)
    flushing = EarlyFlushing()
    for _ in range(3):
        file.write(np.zeros(1000, np.uint8))
        flushing.note([file])
    assert begun.acquire(timeout=10)
    assert not begun.acquire(blocking=False)
    allowed.set()
    flushing.settle()
    file.write(np.zeros(1000, np.uint8))
    flushing.note([file])  # All that has come meanwhile goes in one flush.
    flushing.settle()
    assert begun.acquire(timeout=10)
    assert not begun.acquire(blocking=False)
    flushing.stop()


def test_an_error_is_told_each_time(file, small_steps, monkeypatch):
    monkeypatch.setattr(os, "fdatasync", broken)
    flushing = EarlyFlushing()
    file.write(np.zeros(1000, np.uint8))
    flushing.note([file])
    for call in (flushing.settle, flushing.settle, lambda: flushing.note([file])):
        with pytest.raises(OSError, match="Input/output error") as raised:
            call()
        assert raised.value.errno == errno.EIO
    flushing.stop()
    assert not flushers()


@pytest.mark.parametrize("step", ["append", "checkpoint", "finish"])
def test_a_store_whose_early_flush_failed_is_never_finished(
    step, tmp_path, small_steps, monkeypatch
):
    with StoreWriter(tmp_path / "s", genes_frame=VAR) as writer:
        append(writer)
        writer.finish(pd.DataFrame(index=[str(n) for n in range(20)]))
    before = open_store(tmp_path / "s").digest
    # The fsyncs that follow find nothing: the system has told of the failure already.
    monkeypatch.setattr(os, "fdatasync", broken)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def write_anew():
        with StoreWriter(tmp_path / "s", genes_frame=VAR, overwrite=True, resume_key="k") as writer:
            append(writer, cells=30)
            while step == "append":
                append(writer)
            if step == "checkpoint":
                writer.checkpoint({})
            writer.finish(pd.DataFrame(index=[str(n) for n in range(30)]))

    with pytest.raises(OSError, match="Input/output error"):
        write_anew()
    monkeypatch.undo()
    assert open_store(tmp_path / "s").digest == before
    assert [each for each in (tmp_path / "s").iterdir() if each.name.endswith(".tmp")] == []
    assert not flushers()


def test_an_interrupted_writer_leaves_no_thread(tmp_path, small_steps):
    def interrupted():
        with StoreWriter(tmp_path / "s", genes_frame=VAR) as writer:
            append(writer)
            assert flushers()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not flushers()
    assert not (tmp_path / "s").exists()


def test_a_thread_that_cannot_be_started_is_not_waited_for(file, small_steps, monkeypatch):
    def refused(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    flushing = EarlyFlushing()
    file.write(np.zeros(1000, np.uint8))
    with pytest.raises(RuntimeError, match="can't start new thread"):
        flushing.note([file])
    flushing.stop()
