"""Which chunks of a store are known to be good, shared by the processes that have it open.

- The map is a file of one byte per chunk in the machine's shared memory, in a folder of the user's
  own; its name is the digest of the manifest and of every file's identity, size and time of
  change, so a file that was written to since has another map.
- It lives as long as a process has it open (a shared lock): the first one begins with an empty map,
  so every new run checks what it reads, and what two ranks of one run read is checked once.
- Where that is not possible (no such folder, no locks), a process keeps a map of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

Array = np.ndarray[Any, np.dtype[Any]]

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (made private below)


def private_map(num_chunks: int) -> Array:
    """Return an empty map of this process alone: uint8 [num_chunks], 0 for a chunk not seen."""
    return np.zeros(num_chunks, np.uint8)


def shared_map(digest: str, files: Iterable[Path], num_chunks: int) -> Array:
    """Return the map of the processes that have these files open.

    Args:
        digest: of the store's manifest.
        files: of the store, all of which exist.
        num_chunks: of all of them.

    Returns:
        uint8 [num_chunks], 0 for a chunk not seen; writing to it tells the other processes.
    """
    identity = hashlib.sha256(digest.encode())
    for path in files:
        found = path.stat()
        parts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        identity.update(repr(parts).encode())
    try:
        return _open(f"{identity.hexdigest()[:40]}.seen", num_chunks)
    except OSError:
        return private_map(num_chunks)


def _open(name: str, num_chunks: int) -> Array:
    import fcntl

    if num_chunks == 0:
        return private_map(0)
    folder = _private_folder()
    _remove_unused(folder, keep=name)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / name, flags, 0o600)
    try:
        alone = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone = False
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if alone and os.fstat(descriptor).st_size != num_chunks:
            os.ftruncate(descriptor, num_chunks)
        if os.fstat(descriptor).st_size != num_chunks:
            raise OSError("the map is of another size")
        memory = mmap.mmap(descriptor, num_chunks)
        seen = np.frombuffer(memory, np.uint8)
        if alone:
            seen[:] = 0
            fcntl.flock(descriptor, fcntl.LOCK_SH)
    except BaseException:
        os.close(descriptor)
        raise
    weakref.finalize(seen, os.close, descriptor)  # Ends the lock with the array.
    return seen


def _private_folder() -> Path:
    folder = SHARED_MEMORY / f"omics-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OSError(f"{folder} is not a private folder")
    return folder


def _remove_unused(folder: Path, keep: str) -> None:
    """Remove the maps that no process has open."""
    import fcntl

    for path in folder.glob("*.seen"):
        if path.name == keep:
            continue
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)
