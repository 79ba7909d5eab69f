"""Metrics of integration beside scib-metrics: seconds, CPU seconds and memory, a process each.

- Both sides get the same cells, and from `neighbours` on the same neighbours, found by ours. The
  search itself is exact here and approximate there (pynndescent).
- scib-metrics brings jax: keep it in an environment of its own and name its Python with
  `--peer-python`. Without one our side is timed alone.
- Both sides run once on 400 cells before they are timed, and have compiled by then; jax compiles
  again for every number of cells, which is part of its time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_TYPES, NUM_BATCHES = 12, 8
STEPS = ("neighbours", "nmi_ari", "silhouettes", "lisi", "kbet", "connectivity", "pcr")


def made_cells(num_cells: int, components: int) -> dict[str, np.ndarray]:
    """Return overlapping types with shifted batches, as an embedding would have them.

    Args:
        num_cells: rows.
        components: columns.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_TYPES, num_cells)
    batches = rng.integers(0, NUM_BATCHES, num_cells)
    spread = np.linspace(2, 0.5, components)
    points = (
        rng.normal(size=(NUM_TYPES, components))[labels]
        + rng.normal(size=(num_cells, components)) * spread
    )
    points += 0.3 * rng.normal(size=(NUM_BATCHES, components))[batches]
    return {"points": points.astype(np.float32), "labels": labels, "batches": batches}


def first_cells(cells: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """Return the first cells with their neighbours among themselves.

    Args:
        cells: all of them.
        number: how many.
    """
    few = {name: values[:number] for name, values in cells.items()}
    x = few["points"].astype(np.float64)
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1)[:, : cells["indices"].shape[1]]
    few["indices"] = order.astype(np.int32)
    few["distances"] = np.take_along_axis(distances, order, axis=1)
    return few


def ours(cells: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """Return our metrics by step."""
    from omics.eval.integration.cell_functionals import (
        ari_metric,
        explained_share_metric,
        nmi_metric,
    )
    from omics.eval.integration.leiden_clusters import leiden_clusters
    from omics.eval.integration.nearest_cells import NearestCells, fuzzy_graph, nearest_cells
    from omics.eval.integration.neighbour_metrics import (
        in_largest_component,
        local_groups,
        well_mixed,
    )
    from omics.eval.integration.silhouettes import silhouettes

    x, labels, batches = cells["points"], cells["labels"], cells["batches"]
    near = NearestCells(cells["indices"], cells["distances"]) if "indices" in cells else None

    def nmi_ari() -> list[float]:
        clusters = leiden_clusters(fuzzy_graph(near.first(14)))
        return [
            metric(labels, row).value for row in clusters for metric in (nmi_metric, ari_metric)
        ]

    return {
        "neighbours": lambda: nearest_cells(x, 89),
        "nmi_ari": nmi_ari,
        "silhouettes": lambda: silhouettes(x, labels, batches),
        "lisi": lambda: local_groups(near, (labels, batches)),
        "kbet": lambda: well_mixed(near.first(49), batches),
        "connectivity": lambda: in_largest_component(near.first(14), labels),
        "pcr": lambda: explained_share_metric(x, batches, name="pcr").value,
    }


def theirs(cells: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """Return the metrics of scib-metrics by step."""
    import scib_metrics as sm
    from scib_metrics.nearest_neighbors import NeighborsResults, pynndescent

    x, labels, batches = cells["points"], cells["labels"], cells["batches"]
    own = np.arange(len(x), dtype=np.int32)[:, None]
    near = NeighborsResults(
        indices=np.hstack([own, cells["indices"]]),
        distances=np.hstack([np.zeros((len(x), 1)), cells["distances"]]),
    )
    return {
        "neighbours": lambda: pynndescent(x, 90, n_jobs=-1),
        "nmi_ari": lambda: sm.nmi_ari_cluster_labels_leiden(near.subset_neighbors(15), labels),
        "silhouettes": lambda: (
            sm.silhouette_label(x, labels),
            sm.silhouette_batch(x, labels, batches),
        ),
        "lisi": lambda: (sm.clisi_knn(near, labels), sm.ilisi_knn(near, batches)),
        "kbet": lambda: sm.kbet(near.subset_neighbors(50), batches),
        "connectivity": lambda: sm.graph_connectivity(near.subset_neighbors(15), labels),
        "pcr": lambda: sm.utils.principal_component_regression(x, batches, categorical=True),
    }


def measure(side: str, step: str, file: Path) -> dict[str, float]:
    """Run one step in this process.

    Args:
        side: `ours` or `theirs`.
        step: of `STEPS`.
        file: with the cells.
    """
    with np.load(file) as stored:
        cells = {name: stored[name] for name in stored.files}
    make = ours if side == "ours" else theirs
    # Both sides compile first on few cells; jax compiles once more for the number of cells.
    make(first_cells(cells, 400))[step]()
    work = make(cells)[step]
    begun, used = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak}


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each step, and a line of JSON.

    Args:
        arguments: of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--components", type=int, default=50)
    parser.add_argument("--peer-python", help="a Python with scib-metrics")
    parser.add_argument(
        "--child", nargs=3, metavar=("SIDE", "STEP", "FILE"), help=argparse.SUPPRESS
    )
    given = parser.parse_args(arguments)
    if given.child:
        side, step, file = given.child
        print(json.dumps(measure(side, step, Path(file))))
        return 0
    pythons = {"ours": sys.executable}
    if given.peer_python:
        pythons["theirs"] = given.peer_python
    record: dict[str, Any] = {"cells": given.cells, "components": given.components}
    with tempfile.TemporaryDirectory(prefix="omics-bench-") as folder:
        file = Path(folder) / "cells.npz"
        cells = made_cells(given.cells, given.components)
        nearest = ours(cells)["neighbours"]()
        np.savez(file, **cells, indices=nearest.indices, distances=nearest.distances)
        for step in STEPS:
            for side, python in pythons.items():
                command = [python, "-W", "ignore", __file__, "--child", side, step, str(file)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                record[f"{side} {step}"] = found
                shown = ", ".join(f"{name} {value:,.1f}" for name, value in found.items())
                print(f"{step}, {side}: {shown}", flush=True)
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
