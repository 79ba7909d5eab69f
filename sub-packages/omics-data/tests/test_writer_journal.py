"""A writer that was stopped goes on from its last checkpoint, and only then."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from omics.data.errors import InputDataError, UsageError
from omics.data.storage.store import open_store
from omics.data.storage.store_writer import StoreWriter
from omics.data.storage.writer_journal import JOURNAL_NAME, load_journal, save_journal

VAR = pd.DataFrame(index=[f"g{i}" for i in range(50)])
MEDIANS = {f"g{i}": 1.0 + i % 3 for i in range(40)}

STOPPED = """
import os, signal, sys
import numpy as np
from test_writer_journal import blocks, writer
with writer(sys.argv[1], **eval(sys.argv[3])) as unfinished:
    stop = int(sys.argv[2])
    for number, block in enumerate(blocks()):
        unfinished.append(*block)
        if number == stop + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if number <= stop:
            unfinished.checkpoint({"block": number + 1})
"""


def blocks():
    rng = np.random.default_rng(0)
    for _ in range(6):
        counts = rng.integers(1, 400, (7, 50)) * (rng.random((7, 50)) < 0.4)
        counts[0, 0] = 70_000
        cells, genes = np.nonzero(counts)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=7))])
        yield indptr, genes, counts[cells, genes]


def writer(path, **options):
    return StoreWriter(path, genes_frame=VAR, resume_key="k", overwrite=True, **options)


def finished(path, **options):
    with writer(path, **options) as unfinished:
        done = unfinished.progress["block"] if unfinished.progress else 0
        for block in list(blocks())[done:]:
            unfinished.append(*block)
        unfinished.finish(pd.DataFrame(index=[str(i) for i in range(42)]))
    return done, open_store(path)


def content(store):
    folder = store._folder
    names = sorted(each.name for each in folder.iterdir() if each.suffix == ".bin")
    names.remove("checksums.bin")  # Seeded by the store's own uuid.
    return {name: (folder / name).read_bytes() for name in names}


OPTIONS = [
    {},
    {"layout": "packed", "rank_medians": MEDIANS},
    {"value_kind": "float"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "packed", "float"])
@pytest.mark.parametrize("stop", [0, 3])
def test_a_killed_writer_is_continued_to_the_same_store(stop, options, tmp_path):
    _, expected = finished(tmp_path / "whole", **options)
    path = tmp_path / "s"
    with StoreWriter(path, genes_frame=VAR) as old:
        old.append([0, 1], [3], [5])
        old.finish(pd.DataFrame(index=["old"]))
    script = STOPPED.replace("eval(sys.argv[3])", repr(options))
    killed = subprocess.run(
        [sys.executable, "-c", script, str(path), str(stop)],
        check=False,
        cwd=__file__.rpartition("/")[0],
        timeout=120,
    )
    assert killed.returncode == -9
    assert len(open_store(path)) == 1  # The old store is there until the new one is.
    done, store = finished(path, **options)
    assert done == stop + 1
    assert content(store) == content(expected)
    store.verify()
    assert sorted(each.name for each in path.iterdir()) == [".lock", "CURRENT", "gen-2"]


def stop(path, error, key, checkpoint):
    with writer(path) as unfinished:
        unfinished._resume_key = key
        unfinished.append(*next(blocks()))
        if checkpoint:
            unfinished.checkpoint({"block": 1})
        raise error


def interrupted(path, error, key="k", checkpoint=True):
    with pytest.raises(type(error)):
        stop(path, error, key, checkpoint)


def test_an_interruption_keeps_the_checkpoint_and_an_error_does_not(tmp_path):
    interrupted(tmp_path / "s", KeyboardInterrupt())
    assert finished(tmp_path / "s")[0] == 1
    interrupted(tmp_path / "t", KeyboardInterrupt(), checkpoint=False)
    assert not (tmp_path / "t").exists()
    interrupted(tmp_path / "t", InputDataError("bad"))
    assert not (tmp_path / "t").exists()


def test_another_key_begins_anew(tmp_path):
    interrupted(tmp_path / "s", KeyboardInterrupt(), key="other")
    done, store = finished(tmp_path / "s")
    assert done == 0
    assert sorted(each.name for each in (tmp_path / "s").iterdir()) == [".lock", "CURRENT", "gen-1"]
    store.verify()


@pytest.mark.parametrize("damage", ["journal", "short file"])
def test_a_damaged_checkpoint_counts_as_none(damage, tmp_path):
    interrupted(tmp_path / "s", KeyboardInterrupt())
    folder = tmp_path / "s" / ".gen-1.tmp"
    if damage == "journal":
        data = (folder / JOURNAL_NAME).read_bytes()
        (folder / JOURNAL_NAME).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        (folder / "genes.bin").write_bytes(b"\0\0")
    done, store = finished(tmp_path / "s")
    assert done == 0
    store.verify()


def test_only_a_writer_with_a_key_has_checkpoints(tmp_path):
    with StoreWriter(tmp_path / "s", genes_frame=VAR) as unfinished:
        unfinished.append([0, 1], [0], [1])
        with pytest.raises(UsageError, match="Only a writer with a resume_key"):
            unfinished.checkpoint({})
        unfinished.finish(pd.DataFrame(index=["a"]))
        with pytest.raises(UsageError, match="closed"):
            unfinished.checkpoint({})


def test_a_journal_comes_back(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "empty": np.zeros(0, np.uint64)}
    save_journal(tmp_path, {"x": [1, "y"]}, arrays)
    record, found = load_journal(tmp_path)
    assert record == {"x": [1, "y"]}
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(found["empty"]) == 0
    assert load_journal(tmp_path / "none") is None
