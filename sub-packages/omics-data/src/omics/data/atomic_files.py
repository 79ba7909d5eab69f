"""Files and folders that appear whole or not at all, and one writer at a time.

- Everything is written under a temporary name beside its target, fsynced, then renamed: a crash
  leaves the old content or the new, and at worst a `.*.tmp` leftover.
- The folder is fsynced after the rename; without that a power cut could undo it.
- The lock is `flock` on a file that stays: the kernel frees it when its holder dies, so there is
  no stale lock to judge. The record in it (pid and host) only serves the error message.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from omics.data.errors import ExistingPathError, MissingPathError, StoreLockedError

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_NAME = ".lock"


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a small file atomically and durably.

    Args:
        path: the file; replaced if it exists.
        data: its whole content.

    Raises:
        OSError: the file system refused; the old content is untouched.
    """
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def fsync_folder(path: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable (creations, renames and removals).

    Args:
        path: the folder.
    """
    _fsync(Path(path), os.O_RDONLY | os.O_DIRECTORY)


def fsync_tree(path: str | os.PathLike[str]) -> None:
    """Make every file and folder below a folder durable, and the folder itself.

    Args:
        path: the folder.
    """
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            file = Path(folder, name)
            if not file.is_symlink():
                _fsync(file, os.O_RDONLY)
        fsync_folder(folder)


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Let a caller write a file under a temporary name, then put it in place.

    Args:
        path: the file to create or replace; its folder must exist.

    Yields:
        A path in the same folder, with the same suffix, that does not exist yet. The caller
        must create it; if the block raises, it is removed and `path` keeps its content.
    """
    target = Path(path)
    temporary = _temporary_name(target)
    try:
        yield temporary
        _fsync(temporary, os.O_RDONLY)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(target.parent)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Let a caller fill a folder under a temporary name, then put it in place.

    Replacing an existing folder takes two renames; a crash just between them leaves the old
    folder under a name ending in `.old` beside `path`. Readers that must never miss the path
    need generations, as the store has.

    Args:
        path: the folder to create; its parent must exist.
        overwrite: replace what is at `path`.

    Yields:
        An empty folder beside `path`. If the block raises, it is removed.

    Raises:
        ExistingPathError: `path` exists and `overwrite` is False.
    """
    target = Path(path)
    if not overwrite and os.path.lexists(target):
        raise _exists(target)
    temporary = _temporary_name(target)
    temporary.mkdir()
    try:
        yield temporary
        fsync_tree(temporary)
        put_folder(temporary, target, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def put_folder(temporary: Path, target: Path, *, overwrite: bool) -> None:
    """Rename a finished, durable folder onto its target, moving an old one out of the way.

    Args:
        temporary: the folder, beside its target.
        target: its name from now on.
        overwrite: replace what is at `target`.

    Raises:
        ExistingPathError: `target` exists and `overwrite` is False.
    """
    old = None
    if os.path.lexists(target):
        if not overwrite:
            raise _exists(target)
        old = temporary.with_suffix(".old")
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    fsync_folder(target.parent)
    if old is not None:
        remove_path(old)


def remove_path(path: str | os.PathLike[str]) -> None:
    """Remove a file, a link or a folder with all it holds.

    Args:
        path: what to remove; must exist.
    """
    victim = Path(path)
    if victim.is_dir() and not victim.is_symlink():
        shutil.rmtree(victim)
    else:
        victim.unlink()


@contextlib.contextmanager
def writer_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the right to write in a folder; readers are not held up.

    On NFS the lock needs a server with lock support, as every Linux server has by default.

    Args:
        folder: must exist; a file `.lock` is left in it.

    Raises:
        StoreLockedError: another process or thread holds it; the message names it.
    """
    descriptor = _locked_descriptor(Path(folder))
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _locked_descriptor(folder: Path) -> int:
    """Return an open descriptor of the folder's lock file that holds the lock."""
    import fcntl

    path = folder / LOCK_NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been removed with its folder between the open and the lock.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").split()
            os.close(descriptor)
            pid, host = holder if len(holder) == 2 else ("?", "?")
            raise StoreLockedError(
                f"{folder} is being written by process {pid} on host {host}. "
                "Wait until it has finished, or stop it, and try again."
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _exists(path: Path) -> ExistingPathError:
    return ExistingPathError(f"{path} exists already. Choose another path or allow overwriting.")


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.stem}.{secrets.token_hex(6)}.tmp{target.suffix}")


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_free(path: str | Path, *, overwrite: bool) -> Path:
    """Return an output path, or refuse it before any work is done for it.

    Args:
        path: of a file to create.
        overwrite: whether a file that is there may be replaced.

    Raises:
        ExistingPathError: `path` is a folder, or exists and may not be replaced.
        MissingPathError: its folder does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise ExistingPathError(f"{path} is a folder; give the path of a file to write.")
    if path.exists() and not overwrite:
        raise ExistingPathError(f"{path} exists; choose another path or add --overwrite.")
    if not path.absolute().parent.is_dir():
        raise MissingPathError(f"There is no folder {path.absolute().parent} to write to.")
    return path
