"""Reads the archives of `torch.save` (`.ckpt`, `.pt`, `.bin`) without torch's unpickler.

- The archive is an uncompressed zip: a pickle that names tensors, and one member per storage. All
  sizes are checked against the file before anything is allocated; tensors are read when asked for,
  so the states of an optimiser are never loaded.
- A damaged byte of a storage is found by the checksum of its member.
"""

from __future__ import annotations

import re
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from omics.models.published.pickle_values import (
    MAX_BYTES,
    Builder,
    DamagedCheckpointError,
    UnsafeCheckpointError,
    read_pickle,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_MEMBERS = 100_000
MAX_DIMENSIONS = 8
_MEMBER = re.compile(r"[^/\\\x00-\x1f]{1,200}(/[^/\\\x00-\x1f]{1,200}){1,3}")
_CHUNK_BYTES = 1 << 22

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")  # fmt: skip


@dataclass(frozen=True, slots=True)
class StorageKind:
    """The type of a storage, as the pickle names it."""

    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Storage:
    """A member of the archive with numbers of one type.

    Attributes:
        member: its name in the archive.
        dtype: of its numbers.
        length: how many there are.
    """

    member: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that has not been read yet; its bounds have been checked.

    Attributes:
        storage: where its numbers lie.
        offset: of the first number.
        shape: sizes.
        stride: numbers from one entry to the next, by dimension.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchArchive:
    """An open archive.

    Attributes:
        path: the file.
        value: what was saved, with `StoredTensor`s in the place of tensors.

    Args:
        path: the file.

    Raises:
        UnsafeCheckpointError: it names something that is not on the list, or its sizes cannot be.
        DamagedCheckpointError: it is cut off, damaged, or no archive of `torch.save`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = _checked_members(path)
        roots = [name for name in self._members if name.partition("/")[2] == "data.pkl"]
        if len(roots) != 1:
            raise DamagedCheckpointError(
                f"{path} is a zip file, but not one that torch.save writes: it has "
                f"{len(roots)} members named data.pkl. Give the file with the weights."
            )
        self._root = roots[0].removesuffix("data.pkl")
        self._check_kind()
        if self._members[roots[0]].file_size > MAX_BYTES:
            raise UnsafeCheckpointError(
                f"What {path} holds beside its weights is "
                f"{self._members[roots[0]].file_size:,} bytes; {MAX_BYTES:,} is the limit. Take the "
                "file from its source again."
            )
        builders = {
            **_TENSOR_NAMES,
            **{f"torch.{name}": StorageKind(dtype) for name, dtype in _STORAGES.items()},
        }
        self.value = read_pickle(
            self._read(roots[0]).tobytes(), str(path), builders=builders, persistent=self._storage
        )

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Return a tensor, contiguous, with memory of its own.

        Args:
            stored: of `value`.

        Raises:
            DamagedCheckpointError: its bytes are not those that were written.
        """
        raw = torch.from_numpy(self._read(stored.storage.member)).view(stored.storage.dtype)
        view = raw.as_strided(stored.shape, stored.stride, stored.offset)
        return view.contiguous() if view.numel() == raw.numel() else view.clone().contiguous()

    def _check_kind(self) -> None:
        if f"{self._root}constants.pkl" in self._members:
            raise UnsafeCheckpointError(
                f"{self.path} is a TorchScript archive: a program, not weights. Have the weights "
                "saved as safetensors by somebody you trust."
            )
        name = f"{self._root}byteorder"
        order = self._members.get(name)
        if order is not None and (
            order.file_size > 16 or self._read(name).tobytes().strip() != b"little"
        ):
            raise DamagedCheckpointError(
                f"{self.path} was written on a machine with another byte order. Save it again as "
                "safetensors there."
            )

    def _read(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the bytes of a member; zipfile compares their checksum at the end."""
        info = self._members[name]
        raw = np.empty(info.file_size, np.uint8)
        done = 0
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(info) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    raw[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
                    done += len(chunk)
        except _ZIP_ERRORS as error:
            raise _damaged(self.path, f"the member {name}: {error}") from error
        if done != info.file_size:
            raise _damaged(self.path, f"the member {name} is too short")
        return raw

    def _storage(self, identifier: Any) -> Storage:
        """Return the storage of a persistent id: ('storage', type, key, device, length)."""
        if not (isinstance(identifier, tuple) and len(identifier) == 5):
            raise TypeError("a storage that is not described as torch does")
        tag, kind, key, _device, length = identifier
        if tag != "storage" or not isinstance(kind, StorageKind) or not isinstance(key, str):
            raise TypeError("a storage of a type that torch does not have")
        member = f"{self._root}data/{key}"
        if member not in self._members:
            raise ValueError(f"the storage {key[:40]!r} is missing")
        held = self._members[member].file_size
        if not _is_count(length) or length * kind.dtype.itemsize != held:
            raise UnsafeCheckpointError(
                f"{self.path} says that its storage {key[:40]!r} has {length} numbers of "
                f"{kind.dtype}; it has {held:,} bytes. Take the file from its source again."
            )
        return Storage(member, kind.dtype, length)


def _checked_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the members of the zip file, none of which can be more than the file itself."""
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        raise DamagedCheckpointError(_what_it_is_instead(path))
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except _ZIP_ERRORS as error:
        raise _damaged(path, str(error)) from error
    if len(infos) > MAX_MEMBERS or sum(info.file_size for info in infos) > size:
        raise UnsafeCheckpointError(
            f"{path} says that its {len(infos):,} members hold "
            f"{sum(info.file_size for info in infos):,} bytes; the file has {size:,}. Weights are "
            "never compressed: do not use this file."
        )
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        if not _MEMBER.fullmatch(name) or ".." in name.split("/") or name in members:
            raise UnsafeCheckpointError(
                f"{path} has a member named {name[:80]!r}, which torch.save does not write. Do not "
                "use this file."
            )
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise UnsafeCheckpointError(
                f"The member {name!r} of {path} is compressed or encrypted; torch.save does neither. "
                "Take the file from its source again."
            )
        if info.file_size != info.compress_size:
            raise _damaged(path, f"the member {name} has two sizes")
        members[name] = info
    return members


def _what_it_is_instead(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(512)
    if head[:1] == b"\x80" or head[257:262] == b"ustar":
        return (
            f"{path} is in the format of torch before 1.6, a bare pickle, which is not read. On a "
            "machine where you trust the file, save it again with a newer torch: "
            "torch.save(torch.load(old, weights_only=True), new)."
        )
    return (
        f"{path} is no zip file, as torch.save writes it: it is cut off, damaged or of another "
        "kind. Take it from its source again."
    )


def _damaged(path: Path, why: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{path} is damaged ({why}). Take the file from its source again."
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _rebuild(arguments: tuple[Any, ...]) -> StoredTensor:
    """Return the tensor of `(storage, offset, shape, stride, ...)`, if it fits its storage."""
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    sizes = [offset, *shape, *stride]
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS or not all(map(_is_count, sizes)):
        raise ValueError("a tensor of a shape that torch does not have")
    count = 1
    for each in shape:
        count *= each
    last = offset + sum((each - 1) * step for each, step in zip(shape, stride, strict=True))
    # A stride of 0 repeats a number: a few bytes could ask for any amount of memory.
    if count and (last >= storage.length or count > storage.length):
        raise UnsafeCheckpointError(
            f"A tensor of shape {tuple(shape)} with strides {tuple(stride)} from number {offset} on "
            f"does not lie in its storage of {storage.length} numbers. Do not use this file."
        )
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    if not isinstance(arguments[0], StoredTensor):
        raise TypeError("a parameter that is no tensor")
    return arguments[0]


def _sizes(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(arguments[0])


def _device(arguments: tuple[Any, ...]) -> str:
    return ":".join(str(part) for part in arguments[:2])


# The third is what zipfile raises for a compression that it does not know.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, ValueError,
    EOFError, struct.error,
)  # fmt: skip
_TENSOR_NAMES: Mapping[str, Any] = {
    **{
        name: Builder(name, build)
        for name, build in (
            ("torch._utils._rebuild_tensor", _rebuild),
            ("torch._utils._rebuild_tensor_v2", _rebuild),
            ("torch._utils._rebuild_parameter", _parameter),
            ("torch.Size", _sizes),
            ("torch.device", _device),
        )
    },
    **{f"torch.{name}": f"torch.{name}" for name in _DTYPES},
}
