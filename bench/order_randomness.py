"""How random each order is, at the size of an experiment and of an atlas: entropy per minibatch.

- Labels are made as atlases have them: cells stored batch by batch, within a batch type by type,
  with types of very different frequency. No counts are needed, so 100 million cells fit.
- Run by hand: `python bench/order_randomness.py` (about a minute and 3 GB for 100 million cells);
  the table it prints is kept in docs/guides/loading.md.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from omics.data.loading.order_randomness import order_randomness
from omics.data.loading.row_order import BlockShuffled, RowOrder, Sequential, Shuffled

ORDERS: dict[str, RowOrder] = {
    "sequential": Sequential(),
    "block (64, 8192)": BlockShuffled(64, 8192),
    "block (1024, 65536)": BlockShuffled(1024, 65536),
    "random": Shuffled(),
}


def atlas_labels(
    num_cells: int, num_batches: int, num_types: int, seed: int
) -> dict[str, np.ndarray]:
    """Make cell types and batches in runs, as an atlas is stored.

    Args:
        num_cells: in all.
        num_batches: experiments of very different size, one after the other.
        num_types: cell types; a batch holds some of them, sorted.
        seed: of everything random.

    Returns:
        int16 [num_cells] codes by name: `cell type` and `batch`.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.multinomial(num_cells, rng.dirichlet(np.full(num_batches, 2.0)))
    common = rng.dirichlet(np.full(num_types, 0.3))
    shares = rng.dirichlet(common * 30 + 1e-3, num_batches)
    counts = np.stack(
        [rng.multinomial(size, share) for size, share in zip(sizes, shares, strict=True)]
    )
    types = np.tile(np.arange(num_types, dtype=np.int16), num_batches)
    return {
        "cell type": np.repeat(types, counts.ravel()),
        "batch": np.repeat(np.arange(num_batches, dtype=np.int16), sizes),
    }


def main() -> None:
    """Measure every order at both sizes and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64, help="cells of a minibatch")
    parser.add_argument("--sample", type=int, default=2000, help="minibatches to look at")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        f"Minibatches of {options.batch_size}, at most {options.sample} of them, seed {options.seed}.\n"
    )
    print("| cells | order | batch, bits (of random) | cell type, bits (of random) | s to draw |")
    print("|---|---|---|---|---|")
    for num_cells, num_batches, num_types in ((50_000, 12, 40), (100_000_000, 1_400, 400)):
        labels = atlas_labels(num_cells, num_batches, num_types, options.seed)
        for name, order in ORDERS.items():
            begin = time.perf_counter()
            found = order_randomness(
                order,
                labels,
                batch_size=options.batch_size,
                seed=options.seed,
                num_batches=options.sample,
            )
            seconds = time.perf_counter() - begin
            cells = " | ".join(
                f"{found.entropy[label]:.2f} ({found.share(label):.0%})"
                for label in ("batch", "cell type")
            )
            print(f"| {num_cells:,} | {name} | {cells} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
