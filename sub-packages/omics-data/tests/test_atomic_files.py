"""Atomic files: whole or not at all, durable, and one writer at a time."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from omics.data.atomic_files import (
    fsync_folder,
    new_folder,
    remove_path,
    replace_file,
    write_bytes,
    writer_lock,
)
from omics.data.errors import ExistingPathError, StoreLockedError


def test_write_bytes_replaces_and_leaves_nothing_beside(tmp_path):
    target = tmp_path / "a.txt"
    write_bytes(target, b"one")
    write_bytes(str(target), b"two")
    assert target.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [target]


def test_new_file_respects_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_failed_replacement_keeps_the_old_content(tmp_path):
    target = tmp_path / "a.h5ad"
    target.write_bytes(b"old")

    def write_half():
        with replace_file(target) as temporary:
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".h5ad"
            temporary.write_bytes(b"half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_half()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_replacement_that_writes_nothing_fails(tmp_path):
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_content_is_durable_before_its_name_and_the_name_before_return(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def logged_fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append(f"fsync {kind}")
        fsync(descriptor)

    def logged_replace(self, target):
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "replace", logged_replace)
    write_bytes(tmp_path / "a", b"x")
    assert events == ["fsync file", "rename", "fsync folder"]


def test_new_folder_appears_whole(tmp_path):
    target = tmp_path / "bundle"
    with new_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"1")
        assert not target.exists()
    assert (target / "sub" / "a").read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == [target]


def test_failed_folder_is_removed(tmp_path):
    def stop_half_way():
        with new_folder(tmp_path / "bundle") as folder:
            (folder / "a").write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_refused_unless_overwritten(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"1")
    refused = pytest.raises(ExistingPathError, match=r"bundle exists already.*allow overwriting")
    with refused, new_folder(target):
        pytest.fail("the block must not run")
    with new_folder(target, overwrite=True) as folder:
        (folder / "new").write_bytes(b"2")
    assert [each.name for each in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_folder_made_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "bundle"

    def be_overtaken():
        with new_folder(target) as folder:
            (folder / "a").write_bytes(b"1")
            target.mkdir()
            (target / "other").write_bytes(b"2")

    with pytest.raises(ExistingPathError):
        be_overtaken()
    assert (target / "other").exists()
    assert list(tmp_path.iterdir()) == [target]


def test_overwriting_puts_the_old_folder_back_when_the_rename_fails(tmp_path, monkeypatch):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").write_bytes(b"1")
    rename = Path.rename

    def failing(self, other):
        if other == target and self.name.endswith(".tmp"):
            raise OSError("no")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"), new_folder(target, overwrite=True):
        pass
    assert (target / "old").read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == [target]


def test_remove_path_removes_links_but_not_what_they_point_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove_path(tmp_path / "link")
    assert (tmp_path / "folder" / "a").exists()
    remove_path(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_fsync_folder_refuses_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        fsync_folder(tmp_path / "a")


def test_second_writer_is_told_who_holds_the_lock(tmp_path):
    refused = pytest.raises(StoreLockedError)
    with writer_lock(tmp_path), refused as caught, writer_lock(tmp_path):
        pytest.fail("the block must not run")
    assert f"process {os.getpid()} on host {socket.gethostname()}" in str(caught.value)
    assert caught.value.exit_code == 5
    with writer_lock(tmp_path):
        pass


def test_lock_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time\n"
        "from omics.data.atomic_files import writer_lock\n"
        "with writer_lock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLockedError, match=f"process {holder.pid}"), writer_lock(tmp_path):
            pytest.fail("the block must not run")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with writer_lock(tmp_path):
        pass
