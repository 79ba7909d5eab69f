"""Groups and arrays of a zarr store, with as much of the interface of h5py as readers need.

- Arrays are decoded chunk by chunk in this process, without the zarr library: every size is known
  before it is allocated, and a damaged chunk is an error that names its file.
- A chunk that no file holds stands for the fill value in zarr, and writers do leave out chunks of
  zeros. `absent_files` tells which are not there; what that means is for the caller to say.
- Memory: the selection, the chunk being decoded, and up to `CACHE_BYTES` of recent chunks.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError
from omics.data.sources.hdf5_safety import HARMLESS_BYTES, MAX_EXPANSION
from omics.data.sources.zarr_codecs import ChunkCoding, ChunkError, decode_chunk, input_error
from omics.data.sources.zarr_files import MAX_FILES, METADATA_NAMES, ROOT_NAMES
from omics.data.sources.zarr_metadata import (
    MAX_METADATA_BYTES,
    MetadataError,
    parse_json,
    parse_v2,
    parse_v3,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omics.data.sources.zarr_files import ZarrFiles
    from omics.data.sources.zarr_metadata import ArrayLayout

Array = np.ndarray[Any, np.dtype[Any]]

CACHE_BYTES = 64 * 2**20

_NOT_STORED = 2**64 - 1
_INDEX_ENTRY = 16
_INDEX_CODING = ChunkCoding(np.dtype("<u8"), (("crc32c", 0),))


class ZarrTree:
    """All nodes of a store, found in the listing of its files.

    Args:
        files: of the store.

    Raises:
        InputDataError: a file belongs to no array, or a node to no group: metadata are missing.
    """

    def __init__(self, files: ZarrFiles) -> None:
        self.files = files
        self.names = list(files.sizes)
        self._children: dict[str, list[str]] = {}
        self._arrays: dict[str, str] = {}
        self._groups: dict[str, str] = {}
        for name in self.names:
            folder, _, file = name.rpartition("/")
            if file == "zarr.json":
                is_array = self.metadata(name).get("node_type") == "array"
                (self._arrays if is_array else self._groups)[folder] = name
            elif file == ".zarray":
                self._arrays[folder] = name
            elif file == ".zgroup":
                self._groups[folder] = name
        for node in sorted([*self._arrays, *self._groups]):
            if node:
                parent, _, own = node.rpartition("/")
                self._children.setdefault(parent, []).append(own)
                if parent not in self._groups:
                    raise input_error(files.path, parent or "/", "the metadata of it are missing")
        self._check_files()

    def _check_files(self) -> None:
        for name in self.names:
            folder, _, file = name.rpartition("/")
            if file in METADATA_NAMES or file.startswith("."):
                continue
            while folder and folder not in self._arrays:
                folder = folder.rpartition("/")[0]
            if folder not in self._arrays:
                raise input_error(
                    self.files.path, name, "it belongs to no array, so metadata are missing"
                )

    def metadata(self, name: str) -> dict[str, Any]:
        """Return a metadata file as parsed.

        Args:
            name: of the file.

        Raises:
            InputDataError: it is too large or not JSON.
        """
        size = self.files.sizes[name]
        if size > MAX_METADATA_BYTES:
            raise input_error(self.files.path, name, f"it has {size:,} bytes")
        try:
            return parse_json(self.files.read(name))
        except MetadataError as error:
            raise input_error(self.files.path, name, str(error)) from error

    def node(self, path: str) -> ZarrGroup | ZarrArray | None:
        """Return a group or an array, None where there is neither.

        Args:
            path: inside the store, without a slash at either end.
        """
        if path in self._arrays:
            return ZarrArray(self, path, self._arrays[path])
        if path in self._groups:
            return ZarrGroup(self, path, self._groups[path])
        return None

    def group_metadata(self, path: str) -> str | None:
        """Return the metadata file of a group, None where there is no group.

        Args:
            path: inside the store.
        """
        return self._groups.get(path)

    def children(self, path: str) -> list[str]:
        """Return the names of the nodes in a group.

        Args:
            path: of the group.
        """
        return self._children.get(path, [])

    def attributes(self, metadata: str) -> dict[str, Any]:
        """Return the attributes of a node.

        Args:
            metadata: its metadata file.
        """
        folder, _, file = metadata.rpartition("/")
        if file == "zarr.json":
            found = self.metadata(metadata).get("attributes") or {}
        else:
            name = f"{folder}/.zattrs".lstrip("/")
            found = self.metadata(name) if name in self.files.sizes else {}
        if not isinstance(found, dict):
            raise input_error(self.files.path, metadata, "its attributes are not a JSON object")
        return found

    def below(self, path: str) -> Iterator[str]:
        """Return the names of all files below a node.

        Args:
            path: of the node.
        """
        start = bisect_left(self.names, f"{path}/")
        for name in itertools.islice(self.names, start, None):
            if not name.startswith(f"{path}/"):
                return
            yield name


class ZarrGroup:
    """A group.

    Attributes:
        name: its path, from `/`.
        attrs: its attributes.
    """

    def __init__(self, tree: ZarrTree, path: str, metadata: str) -> None:
        self._tree = tree
        self._path = path
        self.name = f"/{path}"
        self.attrs = tree.attributes(metadata)

    def __iter__(self) -> Iterator[str]:
        """Go through the names of its nodes."""
        return iter(self._tree.children(self._path))

    def __contains__(self, name: str) -> bool:
        """Say whether there is a node of this name, or path."""
        return self.get(name) is not None

    def __getitem__(self, name: str) -> Any:
        """Return a node by its name, or path."""
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def get(self, name: str, default: Any = None) -> Any:
        """Return a node by its name, or path.

        Args:
            name: from this group.
            default: returned where there is none.
        """
        found = self._tree.node(f"{self._path}/{name}".strip("/"))
        return default if found is None else found


class ZarrArray:
    """An array; a selection of it decodes the chunks it touches.

    Attributes:
        name: its path, from `/`.
        attrs: its attributes.
        shape: of the array.
        dtype: of its values in native byte order; `object` for text.
        chunks: shape of a chunk.
        ndim: number of dimensions.
        size: number of values.
        nbytes: bytes of all values.

    Raises:
        InputDataError: its metadata are wrong, or something in them is refused.
    """

    def __init__(self, tree: ZarrTree, path: str, metadata: str) -> None:
        self._tree = tree
        self._path = path
        self.name = f"/{path}"
        self.attrs = tree.attributes(metadata)
        found = tree.metadata(metadata)
        try:
            parse = parse_v3 if metadata.endswith("zarr.json") else parse_v2
            self._layout: ArrayLayout = parse(found)
        except MetadataError as error:
            raise input_error(tree.files.path, metadata, str(error)) from error
        layout = self._layout
        self.shape, self.chunks, self.ndim = layout.shape, layout.chunks, len(layout.shape)
        self.dtype = layout.coding.dtype.newbyteorder("=")
        self.size = 1
        for length in self.shape:
            self.size *= length
        self.nbytes = self.size * self.dtype.itemsize
        self._cache: OrderedDict[tuple[int, ...], Array] = OrderedDict()
        self._index: tuple[tuple[int, ...], Array | None] | None = None
        self._check_size()

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return self.shape[0]

    def __getitem__(self, where: Any) -> Array:
        """Return a selection by slices without steps."""
        spans = self._spans(where)
        layout = self._layout
        out = np.empty([stop - start for start, stop in spans], self.dtype)
        grid = [
            range(start // chunk, -(-stop // chunk) if stop > start else start // chunk)
            for (start, stop), chunk in zip(spans, layout.chunks, strict=True)
        ]
        for at in itertools.product(*grid):
            chunk = self._chunk(at)
            into, of = [], []
            for position, length, (start, stop) in zip(at, layout.chunks, spans, strict=True):
                first = position * length
                low, high = max(start, first), min(stop, first + length)
                into.append(slice(low - start, high - start))
                of.append(slice(low - first, high - first))
            out[tuple(into)] = layout.fill if chunk is None else chunk[tuple(of)]
        return out

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape of what one file holds: a chunk, or a shard."""
        return self._layout.files

    def absent_files(self) -> list[tuple[int, ...]]:
        """Return the grid positions of the files that are not there, in order.

        Raises:
            InputDataError: there are far too many.
        """
        counts = [-(-a // b) for a, b in zip(self.shape, self._layout.files, strict=True)]
        present = {name for name in self._tree.below(self._path) if self._is_chunk(name)}
        total = 1
        for count in counts:
            total *= count
        if total == len(present):
            return []
        if total - len(present) > MAX_FILES:
            raise input_error(
                self._tree.files.path, self._path, f"{total - len(present):,} chunks are not there"
            )
        grid = itertools.product(*(range(count) for count in counts))
        return [at for at in grid if self._file_name(at) not in present]

    def _is_chunk(self, name: str) -> bool:
        own = name[len(self._path) + 1 :].removeprefix(self._layout.prefix)
        numbers = own.split(self._layout.separator)
        if self.ndim == 0:
            return own in {"0", "c"}
        if len(numbers) != self.ndim or not all(n.isascii() and n.isdigit() for n in numbers):
            return False
        at = tuple(int(number) for number in numbers)
        inside = all(i * f < s for i, f, s in zip(at, self._layout.files, self.shape, strict=True))
        return inside and self._file_name(at) == name

    def _file_name(self, at: tuple[int, ...]) -> str:
        layout = self._layout
        if not at:
            return f"{self._path}/{layout.prefix.rstrip(layout.separator) or '0'}"
        return f"{self._path}/{layout.prefix}{layout.separator.join(map(str, at))}"

    def _check_size(self) -> None:
        names = self._tree.below(self._path)
        stored = sum(self._tree.files.sizes[name] for name in names)
        if self.nbytes > max(HARMLESS_BYTES, MAX_EXPANSION * stored):
            raise input_error(
                self._tree.files.path,
                self._path,
                f"{self.nbytes:,} bytes are declared where {stored:,} are stored",
            )

    def _spans(self, where: Any) -> list[tuple[int, int]]:
        given = where if isinstance(where, tuple) else (where,)
        given = (*(each for each in given if each is not Ellipsis),)
        given = (*given, *[slice(None)] * (self.ndim - len(given)))
        spans = []
        for each, length in zip(given, self.shape, strict=True):
            start, stop, step = each.indices(length)
            if step != 1:
                raise ValueError("a zarr array is read by slices without steps")
            spans.append((start, max(start, stop)))
        return spans

    def _chunk(self, at: tuple[int, ...]) -> Array | None:
        if at in self._cache:
            self._cache.move_to_end(at)
            return self._cache[at]
        file = tuple(
            i * c // f for i, c, f in zip(at, self._layout.chunks, self._layout.files, strict=True)
        )
        name = self._file_name(file)
        if name not in self._tree.files.sizes:
            return None
        try:
            data = self._chunk_bytes(name, file, at)
            if data is None:
                return None
            chunk = decode_chunk(data, self._layout.chunks, self._layout.coding)
        except ChunkError as error:
            raise input_error(self._tree.files.path, name, str(error)) from error
        self._keep(at, chunk)
        return chunk

    def _keep(self, at: tuple[int, ...], chunk: Array) -> None:
        self._cache[at] = chunk
        while len(self._cache) > 1 and len(self._cache) * chunk.nbytes > CACHE_BYTES:
            self._cache.popitem(last=False)

    def _chunk_bytes(self, name: str, file: tuple[int, ...], at: tuple[int, ...]) -> bytes | None:
        if self._layout.sharding is None:
            return self._tree.files.read(name)
        index = self._shard_index(name, file)
        per_shard = [f // c for f, c in zip(self._layout.files, self._layout.chunks, strict=True)]
        inside = tuple(i % count for i, count in zip(at, per_shard, strict=True))
        start, length = (int(each) for each in index[inside])
        if start == length == _NOT_STORED:
            return None
        if start + length > self._tree.files.sizes[name]:
            raise ChunkError("its index points behind its end")
        return self._tree.files.read(name, start, length)

    def _shard_index(self, name: str, file: tuple[int, ...]) -> Array:
        if self._index is not None and self._index[0] == file and self._index[1] is not None:
            return self._index[1]
        sharding, layout = self._layout.sharding, self._layout
        per_shard = [f // c for f, c in zip(layout.files, layout.chunks, strict=True)]
        length = _INDEX_ENTRY * int(np.prod(per_shard, dtype=np.int64)) + 4
        size = self._tree.files.sizes[name]
        if size < length or sharding is None:
            raise ChunkError("it is cut short")
        data = self._tree.files.read(name, size - length if sharding.at_end else 0, length)
        index = decode_chunk(data, (*per_shard, 2), _INDEX_CODING)
        self._index = (file, index)
        return index


def open_tree(files: ZarrFiles) -> ZarrGroup:
    """Return the root group of a store.

    Args:
        files: of the store.

    Raises:
        InputDataError: the root is no group, or metadata are missing.
    """
    tree = ZarrTree(files)
    metadata = tree.group_metadata("")
    if metadata is not None:
        return ZarrGroup(tree, "", metadata)
    raise InputDataError(
        f"{files.path} is no zarr group (it has none of {', '.join(ROOT_NAMES)} that says so), so it "
        f"is no AnnData store."
    )
