"""Figures of one reader that need a process of its own: private memory, and reading a cold file.

- `python bench/loader_alone.py READER PATH memory` loads random minibatches for two seconds and
  prints the memory that is this process's own (RssAnon): mapped files do not count, as the system
  takes their pages back whenever it needs them.
- `python bench/loader_alone.py READER PATH cold` drops the files from the page cache, then reads
  `COLD_CELLS` random cells once, under the clock.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import loader_readers
from loader_conversions import flush

if TYPE_CHECKING:
    from loader_readers import Reader

BATCH_SIZE = 128
COLD_CELLS = 8192
MEMORY_SECONDS = 2.0


def open_reader(name: str, path: Path) -> Reader:
    """Return a reader by its name."""
    if name.startswith("omics"):
        return loader_readers.ours(path, BATCH_SIZE, name=name, reuse_buffers=True, prefetch=0)
    return {"bionemo-scdl": loader_readers.scdl, "litdata": loader_readers.litdata_chunks}[name](
        path, BATCH_SIZE
    )


def private_bytes() -> int:
    """Return the anonymous resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell RssAnon")


def drop_from_cache(path: Path) -> None:
    """Take every file of a folder out of the page cache."""
    flush(path)
    for each in path.rglob("*"):
        if each.is_file():
            descriptor = os.open(each, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def main() -> None:
    """Measure one figure."""
    name, path, figure = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if figure == "cold":
        next(open_reader(name, path.with_name("tiny " + path.name)).batches())
        drop_from_cache(path)
    reader = open_reader(name, path)
    batches = reader.batches()
    cells = 0
    begin = time.perf_counter()
    if figure == "memory":
        while time.perf_counter() - begin < MEMORY_SECONDS:
            cells += len(reader.arrays(next(batches))[0]) - 1
        print(json.dumps({"private_bytes": private_bytes()}))
        return
    while cells < COLD_CELLS:
        cells += len(reader.arrays(next(batches))[0]) - 1
    print(json.dumps({"cells_per_second": cells / (time.perf_counter() - begin)}))


if __name__ == "__main__":
    main()
