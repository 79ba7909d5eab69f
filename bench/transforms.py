"""Transforms of cells beside plain numpy, cell by cell, in one process: how many times faster.

- What is timed is what a loader does to a batch: quantile bins of a random share of the genes, and
  log-normalisation followed by such a share. The numpy side does the same steps a cell at a time,
  as one would write them down, with numpy's own generator.
- Rounds are interleaved and the median is reported, so a noisy neighbour slows both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from omics.data.cell_batch import CellBatch
from omics.data.keyed_random import keyed_uniform
from omics.data.transforms import LogNormalize, QuantileBins, SampleGenes, apply_transforms

if TYPE_CHECKING:
    from collections.abc import Callable

SHARE = 0.7


def make_batch(num_cells: int, num_genes: int, expressed: int, seed: int) -> CellBatch:
    """Return random cells with about `expressed` genes each, most counts small.

    Args:
        num_cells: cells.
        num_genes: of the gene table.
        expressed: genes per cell on average.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.normal(expressed, expressed / 5, num_cells), 50, num_genes / 2)
    lengths = lengths.astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    genes = [np.sort(rng.choice(num_genes, length, replace=False)) for length in lengths]
    counts = np.floor(rng.lognormal(0.3, 0.9, indptr[-1])) + 1
    return CellBatch(
        indptr=indptr,
        genes=np.concatenate(genes).astype(np.uint16),
        counts=counts.astype(np.uint32),
        rows=rng.permutation(num_cells).astype(np.int64),
        num_genes=num_genes,
    )


def bins_by_numpy(batch: CellBatch, num_bins: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Sample genes and bin their counts, one cell after the other.

    Args:
        batch: cells.
        num_bins: bins, that of zeros included.
        rng: of the draws.
    """
    done = []
    for begin, end in zip(batch.indptr[:-1], batch.indptr[1:], strict=True):
        keep = rng.random(end - begin) < SHARE
        values = batch.counts[begin:end][keep]
        edges = np.quantile(values, np.linspace(0, 1, num_bins - 1))
        above, below = np.digitize(values, edges), np.digitize(values, edges, right=True)
        bins = np.ceil(rng.random(len(values)) * (below - above) + above)
        done += [batch.genes[begin:end][keep], values, bins.astype(np.int64)]
    return done


def logs_by_numpy(batch: CellBatch, rng: np.random.Generator) -> list[np.ndarray]:
    """Log-normalise counts and sample genes, one cell after the other.

    Args:
        batch: cells.
        rng: of the draws.
    """
    done = []
    for begin, end in zip(batch.indptr[:-1], batch.indptr[1:], strict=True):
        counts = batch.counts[begin:end]
        values = np.log1p(counts / counts.sum() * 1e4).astype(np.float32)
        keep = rng.random(end - begin) < SHARE
        done += [batch.genes[begin:end][keep], counts[keep], values[keep]]
    return done


def medians(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each step over interleaved rounds.

    Args:
        steps: what to time, by name.
        rounds: repetitions after one to warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> int:
    """Print microseconds a cell, ratios, and a line of JSON.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1024)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--expressed", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(arguments)
    batch = make_batch(given.cells, given.genes, given.expressed, seed=0)
    rng = np.random.default_rng(0)
    cell_of_entry = batch.rows[batch.cell_of_entry()]

    def run(*transforms: object) -> object:
        return apply_transforms(batch, transforms, seed=0, epoch=0, training=True)

    sample = SampleGenes(SHARE, SHARE)
    steps: dict[str, Callable[[], object]] = {
        "quantile bins + sampling, numpy": lambda: bins_by_numpy(batch, 51, rng),
        "quantile bins + sampling": lambda: run(sample, QuantileBins(num_bins=51)),
        "log + sampling, numpy": lambda: logs_by_numpy(batch, rng),
        "log + sampling": lambda: run(LogNormalize(), sample),
        "log": lambda: run(LogNormalize()),
        "sampling": lambda: run(sample),
        "quantile bins": lambda: run(QuantileBins(num_bins=51)),
        "keyed_uniform": lambda: keyed_uniform(
            cell_of_entry, batch.genes, seed=0, epoch=0, stream="bench"
        ),
    }
    seconds = medians(steps, given.rounds)
    microseconds = {name: 1e6 * each / given.cells for name, each in seconds.items()}
    ratios = {
        name: microseconds[f"{name}, numpy"] / microseconds[name]
        for name in ("quantile bins + sampling", "log + sampling")
    }
    for name, value in microseconds.items():
        ratio = f"   {ratios[name]:.1f} x numpy" if name in ratios else ""
        print(f"{name:<34}{value:>8.2f} us/cell{ratio}")
    record = {
        "cells": given.cells,
        "entries_per_cell": len(batch.genes) / len(batch),
        "microseconds_per_cell": {name: round(value, 2) for name, value in microseconds.items()},
        "times_numpy": {name: round(value, 2) for name, value in ratios.items()},
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "numpy": np.__version__,
    }
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
