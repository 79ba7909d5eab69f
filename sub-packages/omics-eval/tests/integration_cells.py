"""Cells with planted labels and batches, and the numbers of other tools on them.

`golden_integration.json` was made by scib-metrics 0.5.10 (jax 0.10.2, igraph 1.0.0) from
`planted_groups`: neighbours are those of scikit-learn 1.9.1 (`algorithm="brute"`, float64), the cell
itself first; 90 for LISI, 50 for kBET, 15 for Leiden and connectivity. `graph_connectivity` there
reads neighbours one way only; it was given the lists of the symmetric graph, filled up with the cell
itself. `pcr` is `principal_component_regression(categorical=True)`. The corrected p-values are those
of statsmodels 0.15.0, `multipletests(method="holm")`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

Array = np.ndarray[Any, np.dtype[Any]]


def planted_groups() -> tuple[Array, Array, Array, Array]:
    """Points [400, 8] with a strong and a weak batch effect, labels (one of a single cell), batches."""
    generator = np.random.default_rng(7)
    labels = generator.choice(4, 400, p=[0.4, 0.3, 0.2, 0.1])
    batches = generator.choice(3, 400, p=[0.5, 0.3, 0.2])
    batches[labels == 3] = 0
    noise = generator.normal(size=(400, 8))
    noise[(labels == 2) & (np.arange(400) % 2 == 0), 7] += 7  # two islands of one label
    before = 3 * np.eye(4, 8)[labels] + 1.5 * np.eye(3, 8, k=4)[batches] + noise
    after = 3 * np.eye(4, 8)[labels] + 0.4 * np.eye(3, 8, k=4)[batches] + noise
    labels[0] = 4
    return before.astype(np.float32), after.astype(np.float32), labels, batches


def golden() -> Any:
    """Return the numbers of the other tools."""
    return json.loads(Path(__file__).with_name("golden_integration.json").read_text())


def counted_cells(num_cells: int = 240, *, seed: int = 0) -> ad.AnnData:
    """Cells of three types in two batches with counts, a good embedding and a random one."""
    generator = np.random.default_rng(seed)
    types = np.arange(num_cells) % 3
    batches = generator.integers(0, 2, num_cells)
    rates = np.full((num_cells, 60), 1.0)
    for group in range(3):
        rates[types == group, 8 * group : 8 * group + 8] = 2.0
    rates[batches == 1, 40:60] *= 2.5
    cells = ad.AnnData(
        sparse.csr_matrix(generator.poisson(rates).astype(np.float32)),
        obs=pd.DataFrame(
            {"kind": [f"type {t}" for t in types], "donor": [f"donor {b}" for b in batches]},
            index=[f"c{i}" for i in range(num_cells)],
        ),
    )
    cells.obsm["X_good"] = (3 * np.eye(3, 6)[types] + generator.normal(size=(num_cells, 6))).astype(
        np.float32
    )
    cells.obsm["X_random"] = generator.normal(size=(num_cells, 6)).astype(np.float32)
    return cells
