"""Writes the stores of this folder. Run it for a new version of the format only."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from omics.data.storage.store_writer import StoreWriter

COUNTS = np.zeros((6, 300), np.int64)
COUNTS[0, [0, 1, 299]] = [1, 254, 255]
COUNTS[1, 256:290] = 3
COUNTS[3, [5, 261]] = [65535, 2**32 - 1]
COUNTS[4, ::7] = 14
COUNTS[5, 1::9] = 15
FLOATS = np.where(COUNTS > 0, np.log1p(COUNTS), 0).astype(np.float32)
OBS = pd.DataFrame(
    {
        "cell_type": pd.Categorical(
            ["T cell", "B cell", None, "T cell", "NK", "B cell"],
            categories=["B cell", "unused", "T cell", "NK"],
            ordered=True,
        ),
        "n": np.arange(6, dtype=np.int32),
        "note": ["ä", "", None, "x", "y", "z"],
    },
    index=pd.Index([f"cell-{row}" for row in range(6)], name="barcode"),
)
VAR = pd.DataFrame(
    {"gene_symbol": [f"SYM{gene}" for gene in range(300)]},
    index=[f"ENSG{gene:011d}" for gene in range(300)],
)
MEDIANS = {f"ENSG{gene:011d}": 0.5 + gene % 5 for gene in range(0, 300, 2)}
CONTENT = {
    "v1-plain": (COUNTS, {}),
    "v1-packed-ranked": (COUNTS, {"layout": "packed", "rank_medians": MEDIANS}),
    "v1-wide": (COUNTS * 300 % 2**32, {}),
    "v1-float": (FLOATS, {"value_kind": "float"}),
}


def main() -> None:
    """Write every store into the folder given."""
    for name, (values, options) in CONTENT.items():
        matrix = csr_matrix(values)
        path = Path(sys.argv[1]) / name
        with StoreWriter(path, genes_frame=VAR, provenance={"golden": name}, **options) as writer:
            writer.append(matrix.indptr, matrix.indices, matrix.data)
            writer.finish(OBS)
        (path / ".lock").unlink()


if __name__ == "__main__":
    main()
