"""Rank-value encoding beside plain numpy, cell by cell, in one thread: how many times faster.

- The numpy side scales a cell, divides by medians and sorts, as the method is written down; with a
  stable sort and with numpy's faster one, which leaves ties open. Ours is checked against the same
  without the scaling, whose rounding tells apart what is equal (a token in some millions).
- Ours encodes batches of 128 cells: from counts in memory, as numpy does; from counts read from a
  store; and from the rank view of a store, reading included.
- Rounds are interleaved and the median is reported, so a noisy neighbour slows all sides.
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
from made_atlas import make_atlas

from omics.data import open_store
from omics.data.storage.batch_buffers import BatchBuffers
from omics.data.storage.store_writer import StoreWriter
from omics.tokenizers import RankValueTokenizer, bind_store
from omics.tokenizers.gene_token_file import vocabulary_by_names
from omics.tokenizers.rank_value_tokenizer import RankedCells

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.data import CellBatch, CellStore
    from omics.tokenizers import BoundTokenizer

CELLS_PER_BATCH = 128


def make_stores(
    folder: Path, num_cells: int, num_genes: int, expressed: int
) -> tuple[CellStore, CellStore, RankValueTokenizer]:
    """Return a made-up atlas as a store, the same with a rank view, and its tokenizer.

    Args:
        folder: for the stores.
        num_cells: cells.
        num_genes: genes.
        expressed: genes that a cell shows, about.
    """
    atlas = make_atlas(num_cells, num_genes=num_genes, genes_per_cell=expressed)
    matrix = atlas.X

    def write(name: str, medians: dict[str, float] | None) -> CellStore:
        with StoreWriter(folder / name, genes_frame=atlas.var, rank_medians=medians) as writer:
            writer.append(matrix.indptr, matrix.indices, matrix.data)
            writer.finish(atlas.obs)
        return open_store(folder / name)

    # Medians of a large corpus hardly ever tie; those of so few cells would.
    drawn = np.random.default_rng(0).lognormal(0.5, 0.6, num_genes).astype(np.float32)
    medians = dict(zip(atlas.var_names.tolist(), drawn.tolist(), strict=True))
    vocabulary = vocabulary_by_names(["<pad>", "<mask>", "<cls>", "<eos>", *medians])
    tokenizer = RankValueTokenizer(vocabulary, list(medians.values()))
    return write("plain.store", None), write("view.store", medians), tokenizer


def by_numpy(
    batch: CellBatch,
    medians: np.ndarray,
    token_of: np.ndarray,
    *,
    kind: str | None = "stable",
    scaled: bool = True,
) -> list[np.ndarray]:
    """Return the tokens of each cell, one after the other.

    Args:
        batch: cells.
        medians: [genes], 0 for unknown ones.
        token_of: [genes].
        kind: of numpy's sort.
        scaled: to 10,000 counts a cell.
    """
    done = []
    for begin, end in zip(batch.indptr[:-1], batch.indptr[1:], strict=True):
        genes, counts = batch.genes[begin:end], batch.counts[begin:end]
        values = counts / counts.sum() * 10_000 if scaled else counts
        divisors = medians[genes]
        known = divisors > 0
        order = np.argsort(-(values[known] / divisors[known]), kind=kind)[:4094]
        done.append(np.concatenate([[2], token_of[genes[known][order]], [3]]))
    return done


def main(arguments: list[str] | None = None) -> int:
    """Print microseconds a cell, ratios, and a line of JSON.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2048)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--expressed", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="omics-bench-") as folder:
        plain, view, tokenizer = make_stores(
            Path(folder), given.cells, given.genes, given.expressed
        )
        record = measure(plain, view, tokenizer, given.rounds)
    print(json.dumps(record))
    return 0


def measure(
    plain: CellStore, view: CellStore, tokenizer: RankValueTokenizer, rounds: int
) -> dict[str, object]:
    """Time every way, check that they agree, print a table.

    Args:
        plain: a store of counts.
        view: the same with a rank view.
        tokenizer: with the medians of the view.
        rounds: repetitions after one to warm up.
    """
    _, bound = bind_store(tokenizer, plain)
    ranked, by_view = bind_store(tokenizer, view)
    assert isinstance(ranked, RankedCells)
    num_cells = len(plain)
    batch = plain.take(np.random.default_rng(0).permutation(num_cells))
    starts = range(0, num_cells, CELLS_PER_BATCH)
    parts = [batch[begin : begin + CELLS_PER_BATCH] for begin in starts]
    buffers = BatchBuffers()

    def read(store: CellStore | RankedCells, encoder: BoundTokenizer) -> list[np.ndarray]:
        return [
            encoder.encode(store.take(part.rows, buffers=buffers)).fields["genes"] for part in parts
        ]

    steps: dict[str, Callable[[], list[np.ndarray]]] = {
        "numpy, stable sort": lambda: by_numpy(batch, bound.medians, bound.table),
        "numpy, default sort": lambda: by_numpy(batch, bound.medians, bound.table, kind=None),
        "from counts in memory": lambda: [bound.encode(part).fields["genes"] for part in parts],
        "from counts, read from a store": lambda: read(plain, bound),
        "from the rank view, read from a store": lambda: read(ranked, by_view),
    }
    expected = np.concatenate(by_numpy(batch, bound.medians, bound.table, scaled=False))
    for name in list(steps)[2:]:
        assert np.array_equal(np.concatenate(steps[name]()), expected), name
    agreement = {
        name: float((np.concatenate(steps[name]()) == expected).mean()) for name in list(steps)[:2]
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    micros = {n: 1e6 * statistics.median(each) / num_cells for n, each in seconds.items()}
    stable, default = micros["numpy, stable sort"], micros["numpy, default sort"]
    print(f"{'':<40}{'us/cell':>9}{'times stable':>14}{'times default':>15}")
    for name, value in micros.items():
        print(f"{name:<40}{value:>9.2f}{stable / value:>14.1f}{default / value:>15.1f}")
    return {
        "cells": num_cells,
        "entries_per_cell": len(batch.genes) / num_cells,
        "microseconds_per_cell": {name: round(value, 2) for name, value in micros.items()},
        "tokens_that_agree": agreement,
        "times_numpy_stable": {name: round(stable / value, 2) for name, value in micros.items()},
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "numpy": np.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
