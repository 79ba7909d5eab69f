"""Opens an HDF5 file that a stranger may have written, and refuses what could harm the reader.

- Nothing outside the file is ever read: external storage, external links and virtual datasets
  are refused before any value is touched (AnnData follows them and returns the bytes of any file).
- Every object is looked at once, by address, so cycles of hard links end; nesting, the number of
  objects, attribute sizes, chunk sizes and declared-to-stored ratios are bounded (bombs).
- Only filters that come with h5py are accepted: others would load a plug-in from the disk.
- A file that is not HDF5 is described by what it looks like: most are broken downloads.
- libhdf5 crashes or loops for ever on some damaged files. So a child process (`guarded_reading`)
  first reads all that such damage sits in: every object, attribute, chunk index and text, and one
  value of every list of numbers. What then is left to us are values, which it reads safely.
"""

from __future__ import annotations

import contextlib
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError, MissingPathError, OmicsError, UsageError
from omics.data.sources.guarded_reading import guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py

MAX_DEPTH = 64
MAX_OBJECTS = 1_000_000
MAX_ATTRIBUTE_BYTES = 16 * 2**20
MAX_CHUNK_BYTES = 2**30
MAX_EXPANSION = 1000
HARMLESS_BYTES = 256 * 2**20
CHUNK_CACHE_BYTES = 16 * 2**20
# deflate, shuffle, fletcher32, szip, nbit, scale-offset (HDF5 itself) and lzf (h5py).
KNOWN_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})

_FIRST_BYTES = (
    (b"\x1f\x8b", "a gzip file; unpack it first (gunzip)"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ", "an xz file; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first"),
    (b"%PDF", "a PDF document"),
    (b"PAR1", "a Parquet file"),
    (b"%%MatrixMarket", "a Matrix Market (.mtx) text file"),
    (b"RDX", "an R data file"),
    (b"\x93NUMPY", "a numpy array file"),
)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_WEB_PAGE = (b"<!doctype html", b"<html", b"<?xml", b"<head")
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TextRead:
    """How much text of a file the guarding child has read.

    Attributes:
        num_bytes: of text of variable length.
        unread: datasets of text that were not read, or not to their end, because of the limit of
            `limited_text`.
    """

    num_bytes: int
    unread: tuple[str, ...] = ()


_TEXT_LIMIT: ContextVar[int | None] = ContextVar("text_limit", default=None)


@contextlib.contextmanager
def limited_text(num_bytes: int) -> Iterator[None]:
    """Within the block, let the guarding child read no more text of a file than this.

    Text beyond it must then not be read by anyone: ask `text_read` what was not seen.

    Args:
        num_bytes: of text of variable length and of the references to it. Tables of genes come
            first, then those of cells, then the rest.
    """
    token = _TEXT_LIMIT.set(num_bytes)
    try:
        yield
    finally:
        _TEXT_LIMIT.reset(token)


def text_read(path: str | Path) -> TextRead:
    """Let the guarding child read a file, unless it has done so, and say how much text it met.

    Args:
        path: an HDF5 file.

    Raises:
        InputDataError: the file is refused or damaged.
    """
    import_module("h5py")  # Once here, so that no forked child has to.
    options = {"text_bytes": _TEXT_LIMIT.get()}
    found = guarded(f"{__name__}:touch_file", path, library="the HDF5 library", options=options)
    return TextRead(found["text_bytes"], tuple(found["unread"]))


@contextlib.contextmanager
def open_safely(path: str | Path, *, guard: bool = True) -> Iterator[h5py.File]:
    """Open an HDF5 file read-only after checking every object in it.

    Args:
        path: the file.
        guard: let a child process read it first, so that a crash or a hang of the HDF5 library is
            an error; to be switched off only by what runs in such a child, or tests of inner parts.

    Yields:
        The open file, closed on exit.

    Raises:
        MissingPathError: there is no such path.
        UsageError: the path is a folder or not a regular file.
        InputDataError: the file is not HDF5, is damaged, or holds something refused.
        ResourceError: no child process can be started.
    """
    path = Path(path)
    _require_hdf5(path)
    if guard:
        text_read(path)
    with _checked(path) as (handle, _):
        yield handle


@contextlib.contextmanager
def _checked(path: Path) -> Iterator[tuple[h5py.File, list[str]]]:
    """Open a file; yield it and the names of its objects once every one has been checked."""
    import h5py

    try:
        handle = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES, rdcc_nslots=10007)
    except OSError as error:
        raise InputDataError(
            f"{path} begins like an HDF5 file but cannot be opened ({_first_line(error)}). It may "
            f"be cut short by an interrupted download or still be open for writing; fetch it again."
        ) from error
    with handle:
        walk = _Walk(path, handle)
        with readable(f"{path}"):
            walk.check()
        yield handle, walk.names


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn whatever h5py and AnnData raise for a damaged file into one error of ours.

    Args:
        what: is being read, for the message.

    Raises:
        InputDataError: it cannot be read.
    """
    try:
        yield
    except OmicsError:
        raise
    except _reader_errors() as error:
        raise InputDataError(
            f"{what} cannot be read ({type(error).__name__}: {_first_line(error)}). The file is "
            f"damaged or of an unknown layout; fetch it again, or open it with anndata and write "
            f"it again."
        ) from error


def _reader_errors() -> tuple[type[Exception], ...]:
    """Return what h5py and AnnData raise, the error for unknown elements included."""
    # That class is a plain Exception and not among the public names of AnnData.
    registry = sys.modules.get("anndata._io.specs.registry")
    unknown: type[Exception] = getattr(registry, "IORegistryError", AttributeError)
    return (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, unknown)


def is_hdf5(path: str | Path) -> bool:
    """Say whether a path is a regular file with the signature of HDF5.

    Args:
        path: of anything, or nothing.
    """
    return Path(path).is_file() and _head_unless_hdf5(Path(path)) is None


def _require_hdf5(path: Path) -> None:
    if not path.exists():
        raise MissingPathError(f"There is no file {path}.")
    if path.is_dir():
        kind = "a store" if (path / "CURRENT").exists() else "a folder"
        raise UsageError(f"{path} is {kind}, not an .h5ad file; give the path of the file.")
    if not path.is_file():
        raise UsageError(f"{path} is a pipe or a device, not a file; copy it to a file first.")
    head = _head_unless_hdf5(path)
    if head is not None:
        raise InputDataError(
            f"{path} ({path.stat().st_size:,} bytes) is not an HDF5 file, so it is not an .h5ad "
            f"file: it looks like {describe_bytes(head)}."
        )


def _head_unless_hdf5(path: Path) -> bytes | None:
    """Return the first bytes of a file without an HDF5 signature; None if it has one."""
    # Where the format puts it: at 0, or after a user block of 512, 1024, 2048, ... bytes.
    size, offset = path.stat().st_size, 0
    with path.open("rb") as stream:
        head = stream.read(512)
        while offset + len(_SIGNATURE) <= size:
            stream.seek(offset)
            if stream.read(len(_SIGNATURE)) == _SIGNATURE:
                return None
            offset = max(512, 2 * offset)
    return head


def describe_bytes(head: bytes) -> str:
    """Say what a file looks like from its first bytes.

    Args:
        head: the first bytes (512 are enough).

    Returns:
        A phrase such as `a gzip file; unpack it first (gunzip)`.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    findings = (
        (not head, "an empty file; the download or copy did not finish"),
        (not head.strip(b"\0"), "a run of zero bytes; the download or copy did not finish"),
        *((head.startswith(magic), description) for magic, description in _FIRST_BYTES),
        (head[257:262] == b"ustar", "a tar archive; unpack it first"),
        (text.startswith(_WEB_PAGE), "a web page (HTML); the link led to a page, not to the file"),
        (text.startswith(_LFS), "a git-lfs pointer; fetch the file itself (git lfs pull)"),
        (b"\0" not in head and _is_text(head), f"a text file that begins {_shown(head)}"),
    )
    unknown = "binary data of an unknown kind"
    return next((description for is_it, description in findings if is_it), unknown)


def _is_text(head: bytes) -> bool:
    # A multi-byte character may be cut at the end of the sample.
    for cut in range(4):
        with contextlib.suppress(UnicodeDecodeError):
            head[: len(head) - cut].decode()
            return True
    return False


def _shown(head: bytes) -> str:
    text = head.decode(errors="replace")
    return repr(" ".join("".join(c if c.isprintable() else " " for c in text).split())[:40])


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]


class _Walk:
    """One pass over all objects of a file; refuses the first harmful one."""

    def __init__(self, path: Path, handle: h5py.File) -> None:
        self.path = path
        self.handle = handle
        self.file_bytes = path.stat().st_size
        self.seen: set[int] = set()
        self.names: list[str] = []

    def check(self) -> None:
        stack: list[tuple[Any, int]] = [(self.handle["/"], 0)]
        while stack:
            node, depth = stack.pop()
            if self._is_new(node):
                self.names.append(node.name)
                self._check_attributes(node)
                stack.extend((child, depth + 1) for child in self._children(node, depth))

    def _is_new(self, node: Any) -> bool:
        import h5py

        address = int(h5py.h5o.get_info(node.id).addr)
        if address in self.seen:
            return False
        self.seen.add(address)
        if len(self.seen) > MAX_OBJECTS:
            raise self._refusal("/", f"more than {MAX_OBJECTS:,} objects")
        return True

    def _children(self, node: Any, depth: int) -> Iterator[Any]:
        import h5py

        if isinstance(node, h5py.Dataset):
            self._check_dataset(node)
            return
        if not isinstance(node, h5py.Group):
            return
        if depth >= MAX_DEPTH:
            raise self._refusal(node.name, f"groups nested deeper than {MAX_DEPTH}")
        for name in node:
            inner = f"{(node.name or '').rstrip('/')}/{name}"
            link = node.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise self._refusal(inner, "a link to another file")
            if isinstance(link, h5py.SoftLink):
                raise self._refusal(inner, f"a soft link (to {link.path!r})")
            yield node[name]

    def _check_attributes(self, node: Any) -> None:
        import h5py

        for index in range(h5py.h5a.get_num_attrs(node.id)):
            attribute = h5py.h5a.open(node.id, index=index)
            points = int(attribute.get_space().get_simple_extent_npoints())
            size = points * int(attribute.get_type().get_size())
            if size > MAX_ATTRIBUTE_BYTES:
                raise self._refusal(node.name, f"an attribute of {size:,} bytes")

    def _check_dataset(self, dataset: Any) -> None:
        import h5py

        name = dataset.name
        if dataset.external:
            raise self._refusal(name, f"values stored in another file ({dataset.external[0][0]!r})")
        if dataset.is_virtual:
            raise self._refusal(name, "a virtual dataset (values taken from other files)")
        creation = dataset.id.get_create_plist()
        for index in range(creation.get_nfilters()):
            code = int(creation.get_filter(index)[0])
            if code not in KNOWN_FILTERS or not h5py.h5z.filter_avail(code):
                raise InputDataError(
                    f"{self.path}: {name} is compressed with HDF5 filter {code}, which needs a "
                    f"plug-in. Write the file again with gzip: "
                    f'adata.write_h5ad(path, compression="gzip").'
                )
        self._check_sizes(dataset)

    def _check_sizes(self, dataset: Any) -> None:
        item = max(int(dataset.id.get_type().get_size()), 1)
        declared = item
        for length in dataset.shape or ():
            declared *= int(length)
        chunk = item
        for length in dataset.chunks or ():
            chunk *= int(length)
        if chunk > MAX_CHUNK_BYTES and declared > MAX_CHUNK_BYTES:
            raise self._refusal(dataset.name, f"chunks of {chunk:,} bytes")
        # Chunks are allocated as they are written, so what is stored bounds what was written.
        stored = min(int(dataset.id.get_storage_size()), self.file_bytes)
        if declared > max(HARMLESS_BYTES, MAX_EXPANSION * stored):
            raise self._refusal(
                dataset.name, f"{declared:,} bytes declared where {stored:,} are stored"
            )

    def _refusal(self, name: str | None, found: str) -> InputDataError:
        return InputDataError(
            f"{self.path}: {name} holds {found}, which AnnData never writes and which is not "
            f"followed for safety. If you trust the file, load it with anndata and write a plain "
            f"copy: anndata.read_h5ad(path).write_h5ad(new_path)."
        )


# --- in the guarding child -----------------------------------------------------------------------


def touch_file(path: str, *, text_bytes: int | None = None) -> dict[str, Any]:
    """Read whatever damage may make libhdf5 crash or loop; run in a child by `text_read`.

    Args:
        path: an HDF5 file.
        text_bytes: stop reading text after so many bytes; None reads all.

    Returns:
        `text_bytes` read, and the datasets of text left `unread`.

    Raises:
        InputDataError: an object is refused; what merely cannot be read is left to the reader.
        MemoryError: a text needs more than this process may use.
    """
    with _checked(Path(path)) as (handle, names):
        touch = _Touch(Path(path), handle, text_bytes)
        for name in sorted(names, key=_urgency):
            touch.object(name)
        return {"text_bytes": touch.text_bytes, "unread": touch.unread}


# Should there be more text than may be read: genes before cells, and notes last.
_GENES = ("/var", "/raw", "/row_attrs", "/matrix/features", "/matrix/genes")
_CELLS = ("/obs", "/col_attrs", "/matrix/barcodes")


def _urgency(name: str) -> int:
    if name.startswith(_GENES):
        return 0
    return 1 if name.startswith(_CELLS) else 2 + name.startswith("/uns")


class _Touch:
    """Reads attributes, chunk indices, text, and one value of each list of numbers."""

    def __init__(self, path: Path, handle: h5py.File, limit: int | None) -> None:
        self.path = path
        self.handle = handle
        self.limit = limit
        self.most = max(HARMLESS_BYTES, path.stat().st_size)
        self.text_bytes = 0
        self.text_cost = 0
        self.number_cost = 0
        self.unread: list[str] = []

    def object(self, name: str) -> None:
        import h5py

        with _left_to_the_reader():
            node = self.handle[name]
            for key in node.attrs:
                with _left_to_the_reader():
                    node.attrs[key]
            if isinstance(node, h5py.Dataset) and node.shape is not None and node.size:
                self._dataset(node)

    def _dataset(self, dataset: Any) -> None:
        if dataset.chunks is not None:
            dataset.id.get_num_chunks()
        if dataset.dtype.hasobject:
            self._text(dataset)
            return
        size = _chunk_bytes(dataset)
        if size <= _TOUCHED_CHUNK_BYTES and self.number_cost + size <= _TOUCHED_BYTES:
            self.number_cost += size
            dataset[(0,) * dataset.ndim]

    def _text(self, dataset: Any) -> None:
        if dataset.ndim == 0:
            self._count(_text_bytes(dataset[()]), dataset.name)
            return
        begin, step, length = 0, 1, len(dataset)
        # h5py tells the size in memory; on disk a reference takes 16 bytes.
        reference = max(16, int(dataset.dtype.itemsize)) * (int(dataset.size) // length)
        while begin < length:
            step = min(step, length - begin)
            if self.limit is not None and self.text_cost + step * reference > self.limit:
                self.unread.append(dataset.name)
                return
            size = _text_bytes(dataset[begin : begin + step])
            self._count(size, dataset.name)
            self.text_cost += size + step * reference
            begin += step
            # Short texts come in large slices, long ones in small ones.
            step = max(1, min(8 * step, _SLICE_BYTES * step // max(size, 1), _SLICE_TEXTS))

    def _count(self, size: int, name: str) -> None:
        self.text_bytes += size
        if self.text_bytes > self.most:
            raise InputDataError(
                f"{self.path}: up to {name} it holds {self.text_bytes:,} bytes of text, more than "
                f"fit into its {self.path.stat().st_size:,} bytes: texts are made of the same "
                f"bytes many times over, to fill the memory of whoever reads them."
            )


_SLICE_BYTES = 4 * 2**20
_SLICE_TEXTS = 8_192  # The same few pages hold the texts of all slices.
_TOUCHED_CHUNK_BYTES = 2**20
_TOUCHED_BYTES = 4 * 2**20


@contextlib.contextmanager
def _left_to_the_reader() -> Iterator[None]:
    """Pass over what h5py raises: who reads this part of the file meets it again, in a context."""
    try:
        yield
    except OmicsError:
        raise
    except _reader_errors() as error:
        if "alloc" in str(error).lower():
            raise MemoryError from error


def _chunk_bytes(dataset: Any) -> int:
    size = int(dataset.dtype.itemsize)
    for length in dataset.chunks or (1,):
        size *= int(length)
    return size


def _text_bytes(values: Any) -> int:
    """Return the bytes of values of variable length (of text, mostly)."""
    import numpy as np

    if isinstance(values, bytes | str):
        return len(values)
    if not isinstance(values, np.ndarray | np.void):
        return 8
    if values.dtype.names is not None:
        return sum(_text_bytes(values[name]) for name in values.dtype.names)
    if not values.dtype.hasobject:
        return int(values.nbytes)
    items = np.asarray(values).ravel().tolist()
    if set(map(type, items)) == {bytes}:
        return sum(map(len, items))
    return sum(_text_bytes(item) for item in items)
