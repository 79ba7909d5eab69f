"""Write the 700 real PBMCs that scanpy ships as an `.h5ad` of raw counts; nothing is downloaded.

The bundled file holds log1p of counts scaled to 10,000 per cell in `.raw`; with the cells' totals
in `obs["n_counts"]` the integers come back exactly, and the script checks that they do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

TARGET_SUM = 10_000


def pbmc_counts():
    """Return an AnnData of 700 cells x 765 genes with integer counts in X."""
    import anndata
    import pandas as pd
    import scanpy as sc
    from scipy.sparse import csr_matrix

    source = sc.datasets.pbmc68k_reduced()
    logged = csr_matrix(source.raw.X)
    counts = logged.astype(np.float64)
    totals = source.obs["n_counts"].to_numpy(np.float64)
    counts.data = np.expm1(counts.data) * np.repeat(totals, np.diff(counts.indptr)) / TARGET_SUM
    rounded = np.rint(counts.data)
    if np.abs(counts.data - rounded).max() > 0.1:
        sys.exit("error: the values of this scanpy version do not come from integer counts.")
    counts.data = rounded.astype(np.float32)
    obs = source.obs[["bulk_labels", "louvain", "phase"]].copy()
    genes = pd.DataFrame(index=source.raw.var_names.astype(str))
    return anndata.AnnData(counts.astype(np.float32), obs=obs, var=genes)


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="the .h5ad to write")
    path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = pbmc_counts()
    cells.write_h5ad(path)
    print(f"Wrote {path}: {cells.n_obs} cells x {cells.n_vars} genes, raw counts")


if __name__ == "__main__":
    main()
