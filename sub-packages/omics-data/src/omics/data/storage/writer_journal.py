"""The journal of a writer: how far it was, so that the next one can go on after a crash.

- One file beside the data, replaced as a whole after the data it speaks of is on the disk. A
  journal that does not read well counts as none: the writer then starts anew.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from omics.data.atomic_files import write_bytes
from omics.data.storage.store_format import canonical_json

if TYPE_CHECKING:
    from pathlib import Path

    Array = np.ndarray[Any, np.dtype[Any]]

JOURNAL_NAME = "JOURNAL"


def save_journal(folder: Path, record: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write the journal.

    Args:
        folder: of the unfinished generation.
        record: plain JSON.
        arrays: numbers, by name.

    Raises:
        TypeError: the record is not plain JSON.
    """
    described = [[name, values.dtype.str, list(values.shape)] for name, values in arrays.items()]
    body = canonical_json({"record": record, "arrays": described})
    body += b"".join(np.ascontiguousarray(values).tobytes() for values in arrays.values())
    head = f"{xxhash.xxh3_128_hexdigest(body)}\n".encode("ascii")
    write_bytes(folder / JOURNAL_NAME, head + body)


def load_journal(folder: Path) -> tuple[dict[str, Any], dict[str, Array]] | None:
    """Return the record and the arrays of a journal; None if there is none that is whole.

    Args:
        folder: of the unfinished generation.
    """
    try:
        data = (folder / JOURNAL_NAME).read_bytes()
    except OSError:
        return None
    head, _, body = data.partition(b"\n")
    if head != xxhash.xxh3_128_hexdigest(body).encode("ascii"):
        return None
    text, _, rest = body.partition(b"\n")
    content = json.loads(text)
    arrays = {}
    begin = 0
    for name, dtype, shape in content["arrays"]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(rest[begin : begin + size], dtype).reshape(shape).copy()
        begin += size
    return content["record"], arrays
