"""The map of checked chunks is shared by processes, and begins anew when none has it open."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from omics.data.errors import CorruptStoreError
from omics.data.storage import seen_chunks
from omics.data.storage.store import open_store

CHILD = """
import sys
import numpy as np
from omics.data.storage.store import open_store
store = open_store(sys.argv[1])
print(int(store._seen.sum()), flush=True)
store.take(np.arange(len(store)))
print(int(store._seen.sum()), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(seen_chunks, "SHARED_MEMORY", tmp_path)
    return tmp_path


def _seen(store):
    return int(store._seen.sum())


def test_what_one_process_checked_another_need_not(tmp_path, write_store):
    write_store(tmp_path / "s", np.eye(9))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "s")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert int(child.stdout.readline()) == 0
    checked = int(child.stdout.readline())
    assert checked > 0
    assert _seen(open_store(tmp_path / "s")) == checked
    child.communicate("")
    assert (
        _seen(open_store(tmp_path / "s")) == 0
    )  # Nobody has it open: everything is checked again.


def test_stores_opened_twice_in_a_process_share_too(shared_memory, tmp_path, write_store):
    first = write_store(tmp_path / "s", np.eye(9))
    second = open_store(tmp_path / "s")
    first.take([0])
    assert _seen(second) == _seen(first) > 0


def test_a_file_that_was_written_to_since_is_checked_again(shared_memory, tmp_path, write_store):
    first = write_store(tmp_path / "s", np.eye(9))
    first.take(range(9))
    with (tmp_path / "s" / "gen-1" / "counts.bin").open("r+b") as file:
        file.write(b"\x07")
    second = open_store(tmp_path / "s")
    assert _seen(second) == 0
    with pytest.raises(CorruptStoreError, match=r"counts\.bin"):
        second.take([0])


@pytest.mark.parametrize("verify", ["off", "always"])
def test_other_modes_keep_to_themselves(verify, shared_memory, tmp_path, write_store):
    first = write_store(tmp_path / "s", np.eye(9))
    open_store(tmp_path / "s", verify=verify).take(range(9))
    assert _seen(first) == 0


def test_maps_that_nobody_has_open_are_removed(shared_memory, tmp_path, write_store):
    store = write_store(tmp_path / "a", np.eye(2))
    folder = shared_memory / f"omics-{os.getuid()}"
    assert len(list(folder.iterdir())) == 1
    del store
    other = write_store(tmp_path / "b", np.eye(3))
    assert len(list(folder.iterdir())) == 1
    assert len(other) == 3
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_to_is_not_used(shared_memory, tmp_path, write_store):
    folder = shared_memory / f"omics-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    store = write_store(tmp_path / "s", np.eye(9))
    store.take([0])
    assert _seen(store) > 0
    assert list(folder.iterdir()) == []


def test_without_shared_memory_a_process_has_its_own_map(monkeypatch, tmp_path, write_store):
    monkeypatch.setattr(seen_chunks, "SHARED_MEMORY", tmp_path / "none")
    store = write_store(tmp_path / "s", np.eye(9))
    store.take([0])
    assert _seen(store) > 0
    assert _seen(open_store(tmp_path / "s")) == 0
