"""`damaged_copies`: copies of a store with one thing wrong in each, for trying what a reader does.

- Every file of the store is damaged in every way that applies to it. The same seed makes the same
  damage.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, kw_only=True)
class DamagedCopy:
    """A damaged copy of a store.

    Attributes:
        path: the store folder; it is there until the next copy is asked for.
        kind: `flip`, `truncate`, `append`, `zero`, `missing` or `swap`.
        file: which file was changed, below the store folder.
        detail: what was done, half a sentence.
    """

    path: Path
    kind: str
    file: str
    detail: str


def damaged_copies(path: str | Path, seed: int = 0) -> Iterator[DamagedCopy]:
    """Make damaged copies of a store, one after the other.

    Args:
        path: a sound store.
        seed: of the places that are damaged.

    Yields:
        For each file: one bit turned, the end cut off, bytes added, a run of bytes set to zero, and
        the file missing; and two files of one size in each other's place. Damage that would change
        nothing is left out.
    """
    source = Path(path)
    random = np.random.default_rng(seed)
    names = sorted(
        str(each.relative_to(source))
        for each in source.rglob("*")
        if each.is_file() and each.name != ".lock"
    )
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "store"
        shutil.copytree(source, copy)
        for name in names:
            file = copy / name
            kept = file.read_bytes()
            for kind, damage in _WAYS.items():
                data = bytearray(kept)
                detail = damage(data, random)
                if bytes(data) == kept:
                    continue
                file.write_bytes(data)
                yield DamagedCopy(path=copy, kind=kind, file=name, detail=detail)
            file.unlink()
            yield DamagedCopy(path=copy, kind="missing", file=name, detail="it is not there")
            file.write_bytes(kept)
        yield from _swapped(copy, names)


def _swapped(copy: Path, names: list[str]) -> Iterator[DamagedCopy]:
    contents = {name: (copy / name).read_bytes() for name in names}
    by_size: dict[int, str] = {}
    for name, data in contents.items():
        other = by_size.setdefault(len(data), name)
        if other == name or contents[other] == data:
            continue
        (copy / name).write_bytes(contents[other])
        (copy / other).write_bytes(data)
        yield DamagedCopy(path=copy, kind="swap", file=name, detail=f"exchanged with {other}")
        (copy / name).write_bytes(data)
        (copy / other).write_bytes(contents[other])


def _flip(data: bytearray, random: np.random.Generator) -> str:
    if not data:
        return ""
    place, bit = int(random.integers(len(data))), int(random.integers(8))
    data[place] ^= 1 << bit
    return f"bit {bit} of byte {place} turned"


def _truncate(data: bytearray, random: np.random.Generator) -> str:
    length = int(random.integers(len(data))) if data else 0
    del data[length:]
    return f"cut to {length} bytes"


def _append(data: bytearray, random: np.random.Generator) -> str:
    added = int(random.integers(1, 100))
    data += random.bytes(added)
    return f"{added} bytes added"


def _zero(data: bytearray, random: np.random.Generator) -> str:
    begin = int(random.integers(max(len(data), 1)))
    end = min(begin + 4096, len(data))
    data[begin:end] = bytes(end - begin)
    return f"bytes {begin} to {end} set to zero"


_WAYS: dict[str, Callable[[bytearray, np.random.Generator], str]] = {
    "flip": _flip,
    "truncate": _truncate,
    "append": _append,
    "zero": _zero,
}
