"""Random batches of cells: a store beside AnnData on disk and scipy in memory, same cells, same rows.

- Each reader gives the same thing for a batch: its counts as CSR, columns ascending. Before
  anything is timed the answers are compared.
- Rounds are interleaved (every reader in turn, again and again) and the median is reported, so a
  noisy neighbour slows all of them. Files are in the page cache: this times work, not disks.
- A batch of backed AnnData is read with its rows sorted and put back into order afterwards, which
  is how one would read it; scipy in memory is the floor that a reader on disk can hope for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from scipy.sparse import csr_matrix

    Reader = Callable[[np.ndarray], csr_matrix]


def readers(cells: AnnData, folder: Path) -> dict[str, Reader]:
    """Write the cells to disk and return one function per way of reading them.

    Args:
        cells: with counts as CSR in X.
        folder: for the files.

    Returns:
        By name, rows to the counts of these cells.
    """
    import anndata

    from omics.data import convert, open_store

    source = folder / "cells.h5ad"
    cells.write_h5ad(source)
    convert(source, folder / "cells.store")
    backed = anndata.read_h5ad(source, backed="r")
    in_memory = cells.X

    def backed_rows(rows: np.ndarray) -> csr_matrix:
        order = np.argsort(rows, kind="stable")
        return backed.X[rows[order]][np.argsort(order, kind="stable")]

    def taken_from(verify: str) -> Reader:
        store = open_store(folder / "cells.store", verify=verify)
        return lambda rows: store.take(rows).to_csr()

    return {
        "store": taken_from("first"),
        "store, verify=off": taken_from("off"),
        "AnnData backed": backed_rows,
        "scipy CSR in memory": lambda rows: in_memory[rows],
    }


def compare(found: dict[str, Reader], rows: np.ndarray) -> None:
    """Stop unless every reader gives the same cells."""
    wanted = found["scipy CSR in memory"](rows)
    for name, read in found.items():
        given = read(rows)
        if given.shape != wanted.shape or abs(given.astype(np.float64) - wanted).sum() != 0:
            sys.exit(f"error: {name} gives other counts than scipy; nothing was timed.")


def measure(
    found: dict[str, Reader], plan: list[np.ndarray], rounds: int
) -> dict[str, list[float]]:
    """Return, by reader, the seconds that each round over the plan took.

    Args:
        found: the readers.
        plan: batches of rows, the same for all.
        rounds: how often; one more comes first and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, read in found.items():
            started = time.perf_counter()
            for rows in plan:
                read(rows)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Make cells, time the readers, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=50, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()

    from omics.data import synthesize

    cells = synthesize(options.cells, options.genes, seed=options.seed)
    rng = np.random.default_rng(options.seed)
    plan = [rng.integers(0, options.cells, options.batch_size) for _ in range(options.batches)]
    with tempfile.TemporaryDirectory(prefix="omics-bench-") as folder:
        found = readers(cells, Path(folder))
        compare(found, plan[0])
        seconds = measure(found, plan, options.rounds)

    visited = options.batch_size * options.batches
    per_second = {name: visited / statistics.median(times) for name, times in seconds.items()}
    backed = per_second["AnnData backed"]
    print(
        f"{options.cells:,} cells x {options.genes:,} genes, {cells.X.nnz:,} entries; "
        f"{options.batches} random batches of {options.batch_size}, {options.rounds} rounds"
    )
    print(f"{'reader':<22}{'cells/s':>12}{'to backed':>12}")
    for name, speed in per_second.items():
        print(f"{name:<22}{speed:>12,.0f}{speed / backed:>11.1f}x")
    result = {
        "cells": options.cells,
        "genes": options.genes,
        "entries": int(cells.X.nnz),
        "batch_size": options.batch_size,
        "batches": options.batches,
        "seed": options.seed,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "median_cells_per_second": {name: round(speed, 1) for name, speed in per_second.items()},
        "seconds": seconds,
    }
    text = json.dumps(result)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
