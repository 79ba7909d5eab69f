"""The files of a zarr store that a stranger may have written: a folder, or a zip archive of one.

- The listing is made once, before anything is read. Symbolic links, pipes and devices are refused,
  so nothing outside the folder is ever read; an archive is read member by member, never extracted.
- Only the parts that hold matrices and tables are listed: embeddings, graphs and unstructured
  data are neither looked at nor part of the fingerprint.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from typing import TYPE_CHECKING

import xxhash

from omics.data.errors import InputDataError, MissingPathError
from omics.data.sources.hdf5_safety import MAX_CHUNK_BYTES, MAX_DEPTH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

METADATA_NAMES = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
ROOT_NAMES = ("zarr.json", ".zgroup")
PARTS = frozenset({"X", "layers", "raw", "raw.X", "raw.var", "obs", "var"})
MAX_FILES = 1_000_000

_READ_BYTES = 8 * 2**20


class ZarrFiles:
    """The listed files of a store.

    Attributes:
        path: the folder or archive.
        sizes: bytes of each file, by its name inside the store, in sorted order.
    """

    path: Path
    sizes: dict[str, int]

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file, or some of them.

        Args:
            name: one of `sizes`.
            start: the first byte.
            length: how many; all the rest by default.

        Raises:
            InputDataError: it cannot be read, or is not as long as it was listed.
        """
        length = self.sizes[name] - start if length is None else length
        if length > MAX_CHUNK_BYTES:
            raise InputDataError(
                f"{self.path}: {name} has {length:,} bytes; files above {MAX_CHUNK_BYTES:,} bytes "
                f"are not read at once. Write the store again with smaller chunks."
            )
        try:
            data = self._read(name, start, length)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise InputDataError(
                f"{self.path}: {name} cannot be read ({error}). Copy or download it again."
            ) from error
        if len(data) != length:
            raise InputDataError(
                f"{self.path}: {name} ended after {start + len(data):,} of {start + length:,} "
                f"bytes. It was changed or cut while being read; copy or download it again."
            )
        return data

    def _read(self, name: str, start: int, length: int) -> bytes:
        raise AssertionError(name, start, length)

    def digest(self) -> tuple[int, str]:
        """Return the bytes of all files and the XXH3 (128 bit) of their names and contents."""
        found = xxhash.xxh3_128()
        total = 0
        for name, size in self.sizes.items():
            found.update(f"{name}\0{size}\0".encode())
            for start in range(0, size, _READ_BYTES):
                found.update(self.read(name, start, min(_READ_BYTES, size - start)))
            total += size
        return total, found.hexdigest()

    def stamp(self) -> str:
        """Return something cheap that differs once a file has been changed, added or removed."""
        raise AssertionError(self.path)


class FolderFiles(ZarrFiles):
    """The files of a folder.

    Args:
        path: the folder.

    Raises:
        InputDataError: it holds a symbolic link or a special file, or too many files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        found = dict(self._walk())
        self.sizes = {name: found[name][0] for name in sorted(found)}

    def _read(self, name: str, start: int, length: int) -> bytes:
        with (self.path / name).open("rb") as stream:
            stream.seek(start)
            return stream.read(length)

    def stamp(self) -> str:
        """Return a digest of names, sizes and times of change."""
        return xxhash.xxh3_128_hexdigest(repr(sorted(self._walk())).encode())

    def _walk(self) -> Iterator[tuple[str, tuple[int, int]]]:
        stack: list[tuple[str, int]] = [("", 0)]
        count = 0
        while stack:
            inside, depth = stack.pop()
            with os.scandir(self.path / inside) as entries:
                for entry in entries:
                    name = f"{inside}{entry.name}"
                    if not inside and not _is_part(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if depth >= MAX_DEPTH:
                            raise self._refusal(name, f"folders nested deeper than {MAX_DEPTH}")
                        stack.append((f"{name}/", depth + 1))
                        continue
                    if not entry.is_file(follow_symlinks=False):
                        kind = "a symbolic link" if entry.is_symlink() else "a pipe or a device"
                        raise self._refusal(name, kind)
                    count += 1
                    if count > MAX_FILES:
                        raise self._refusal(name, f"one of more than {MAX_FILES:,} files")
                    stat = entry.stat(follow_symlinks=False)
                    yield name, (stat.st_size, stat.st_mtime_ns)

    def _refusal(self, name: str, found: str) -> InputDataError:
        return InputDataError(
            f"{self.path}: {name} is {found}, which AnnData never writes and which is not followed "
            f"for safety. If you trust the folder, load it with anndata.io.read_zarr and write a "
            f"plain copy with .write_zarr."
        )


class ZipFiles(ZarrFiles):
    """The members of a zip archive.

    Args:
        path: the archive.
        archive: it, open for reading.

    Raises:
        InputDataError: it holds no zarr store, or a member that is refused.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        prefix = _archive_root(archive)
        if prefix is None:
            raise InputDataError(
                f"{path} is a zip archive without a zarr store at its root; unpack it and give what "
                f"is inside."
            )
        # Of members of one name the last one counts: zarr writes attributes anew at each change.
        self._members = {
            info.filename.removeprefix(prefix): info
            for info in archive.infolist()
            if info.filename.startswith(prefix) and not info.is_dir()
        }
        self._members = {
            name: info
            for name, info in sorted(self._members.items())
            if _is_part(name.partition("/")[0])
        }
        for name, info in self._members.items():
            stored = info.compress_type in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
            if not stored or info.flag_bits & 1 or ".." in name.split("/"):
                raise InputDataError(
                    f"{path}: the member {name!r} is encrypted, compressed in an unusual way or "
                    f"named unsafely. Unpack the archive with a tool you trust and give the folder."
                )
        if len(self._members) > MAX_FILES:
            raise InputDataError(f"{path} holds more than {MAX_FILES:,} files; unpack it.")
        self.sizes = {name: info.file_size for name, info in self._members.items()}

    def _read(self, name: str, start: int, length: int) -> bytes:
        # Reading a member to its end compares its checksum; a part of it cannot be compared.
        with self._archive.open(self._members[name]) as stream:
            if start:
                stream.seek(start)
            return stream.read(length)

    def stamp(self) -> str:
        """Return size and time of change of the archive."""
        found = self.path.stat()
        return f"{found.st_size} {found.st_mtime_ns}"


@contextlib.contextmanager
def open_files(path: Path) -> Iterator[ZarrFiles]:
    """List the files of a store.

    Args:
        path: a folder or a zip archive.

    Yields:
        The files, readable until the end of the block.

    Raises:
        MissingPathError: there is nothing at the path.
        InputDataError: the archive is damaged, or something in it is refused.
    """
    if path.is_dir():
        yield FolderFiles(path)
        return
    if not path.exists():
        raise MissingPathError(f"There is no folder {path}.")
    try:
        # Of a format or compression that it does not know, zipfile says that it is not implemented.
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputDataError(
            f"{path} is neither a folder nor a zip archive that can be read ({error}). Fetch it "
            f"again."
        ) from error
    with archive:
        yield ZipFiles(path, archive)


def is_zarr(path: Path) -> bool:
    """Say whether a folder, or a zip archive, has the metadata of zarr at its root.

    Args:
        path: any path.
    """
    if path.is_dir():
        return any((path / name).is_file() for name in ROOT_NAMES)
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            if stream.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as archive:
            return _archive_root(archive) is not None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _archive_root(archive: zipfile.ZipFile) -> str | None:
    """Return the folder inside an archive that is the store, `` for the archive itself."""
    names = set(archive.namelist())
    if names & set(ROOT_NAMES):
        return ""
    tops = {name.partition("/")[0] for name in names} - {"__MACOSX"}
    if len(tops) != 1:
        return None
    (top,) = tops
    return f"{top}/" if any(f"{top}/{name}" in names for name in ROOT_NAMES) else None


def _is_part(name: str) -> bool:
    return name in METADATA_NAMES or name in PARTS
