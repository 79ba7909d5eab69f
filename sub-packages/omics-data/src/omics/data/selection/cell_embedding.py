"""Coordinates of cells: principal components computed out of core, or read from a file.

- Counts are log-normalised (ln(1 + 10^4 x / total)) block by block; the covariance of the chosen
  genes is added up from the entries alone (no dense block), and its eigenvectors are the exact
  components: nothing is sampled.
- Without a choice of genes those with the largest variance of log-normalised counts are taken, in a
  first pass. A list from `omics-data qc --hvg` may be given instead.
- Signs are fixed (the largest loading of a component is positive): same store, same coordinates.
- Memory: the covariance (8 bytes x genes squared: 32 MB for 2,000), one block of cells, and the
  result, 4 bytes x cells x components.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.compiled import compiled
from omics.data.errors import InputDataError, MissingPathError, UsageError
from omics.data.selection.geometric_sketch import check_coordinates
from omics.data.sources.matrix_blocks import row_ends

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

TARGET_SUM = 1e4
MAX_GENES = 5000
NUM_GENES = 2000
NUM_COMPONENTS = 50
_BLOCK_ENTRIES = 2_000_000
_NOT_COORDINATES = ("row", "cell")


def principal_components(
    store: CellStore,
    num_components: int = NUM_COMPONENTS,
    *,
    genes: Array | None = None,
    num_genes: int = NUM_GENES,
    on_progress: Callable[[int], None] | None = None,
) -> Array:
    """Return the principal components of log-normalised counts.

    Args:
        store: of counts.
        num_components: how many, fewer where cells or genes are fewer.
        genes: int64 [g] positions of the genes to use; None takes those that vary most.
        num_genes: how many that are, at most 5,000.
        on_progress: called with the number of cells just passed (once per pass).

    Returns:
        float32 [n, d], centred, in the order of the store.

    Raises:
        UsageError: a number out of range, or a gene that is not in the store.
        InputDataError: the store holds no counts, or fewer than two cells.
    """
    if store.value_kind != "counts":
        raise InputDataError(f"{store.path} holds no raw counts; give an embedding file instead.")
    if num_components < 1 or not 1 <= num_genes <= MAX_GENES:
        raise UsageError(
            f"{num_components} components of {num_genes} genes are wanted; it must be at least 1 "
            f"component, and 1 to {MAX_GENES} genes."
        )
    if len(store) < 2:
        raise InputDataError(f"{store.path} has {len(store)} cells; components need at least 2.")
    say = on_progress or (lambda _count: None)
    chosen = _varying_genes(store, num_genes, say) if genes is None else _checked(store, genes)
    place = np.full(store.shape[1], -1, np.int64)
    place[chosen] = np.arange(len(chosen))
    products = np.zeros((len(chosen), len(chosen)))
    sums = np.zeros(len(chosen))
    for block in _normalised(store, place, say):
        sums += np.bincount(block.columns, weights=block.values, minlength=len(chosen))
        compiled(_add_products)(block.indptr, block.columns, block.values, products)
    mean = sums / len(store)
    upper = np.triu(products, 1)
    products += upper.T
    covariance = (products - len(store) * np.outer(mean, mean)) / (len(store) - 1)
    axes = _leading_axes(covariance, min(num_components, len(store) - 1, len(chosen)))
    result = np.empty((len(store), axes.shape[1]), np.float32)
    shift = mean @ axes
    begin = 0
    for block in _normalised(store, place, say):
        result[begin : begin + len(block)] = block.matrix(len(chosen)) @ axes - shift
        begin += len(block)
    return result


class _Block:
    """The log-normalised values of the chosen genes in some cells, as CSR."""

    def __init__(self, indptr: Array, columns: Array, values: Array) -> None:
        self.indptr = indptr
        self.columns = columns
        self.values = values

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def matrix(self, num_genes: int) -> Any:
        from scipy.sparse import csr_matrix

        return csr_matrix((self.values, self.columns, self.indptr), shape=(len(self), num_genes))


def _normalised(store: CellStore, place: Array, say: Callable[[int], None]) -> Iterator[_Block]:
    totals = store.row_sums()
    begin = 0
    for end in row_ends(store.lengths, _BLOCK_ENTRIES).tolist():
        batch = store.take(np.arange(begin, end))
        columns = place[batch.genes]
        wanted = np.flatnonzero(columns >= 0)
        of_entry = np.repeat(totals[begin:end], batch.lengths)[wanted]
        values = np.log1p(batch.counts[wanted] * (TARGET_SUM / of_entry))
        yield _Block(np.searchsorted(wanted, batch.indptr), columns[wanted], values)
        say(end - begin)
        begin = end


def _varying_genes(store: CellStore, number: int, say: Callable[[int], None]) -> Array:
    """Return the ascending positions of the genes with the largest variance."""
    num_genes = store.shape[1]
    sums = np.zeros((2, num_genes))
    for block in _normalised(store, np.arange(num_genes), say):
        for power in (1, 2):
            weights = block.values**power
            sums[power - 1] += np.bincount(block.columns, weights=weights, minlength=num_genes)
    mean = sums[0] / len(store)
    variance = sums[1] / len(store) - mean**2
    order = np.argsort(-variance, kind="stable")[: min(number, num_genes)]
    return np.sort(order)


def _checked(store: CellStore, genes: Array) -> Array:
    positions = np.unique(np.asarray(genes, np.int64))
    if not 1 <= len(positions) <= MAX_GENES:
        raise UsageError(
            f"{len(positions):,} genes were given for the components; 1 to {MAX_GENES:,} can be."
        )
    if positions[0] < 0 or positions[-1] >= store.shape[1]:
        raise UsageError(f"A gene position is outside the {store.shape[1]:,} genes of the store.")
    return positions


def _leading_axes(covariance: Array, number: int) -> Array:
    """Return float64 [g, d], the eigenvectors of the largest eigenvalues, largest first."""
    from scipy.linalg import eigh

    size = len(covariance)
    _, vectors = eigh(covariance, subset_by_index=(size - number, size - 1))
    axes = vectors[:, ::-1]
    largest = np.argmax(np.abs(axes), axis=0)
    return np.asarray(axes * np.sign(axes[largest, np.arange(number)]))


def _add_products(indptr: Array, columns: Array, values: Array, products: Array) -> None:
    """Add each cell's outer product to the upper triangle; columns ascend within a cell."""
    for row in range(indptr.size - 1):
        begin = indptr[row]
        end = indptr[row + 1]
        for one in range(begin, end):
            value = values[one]
            line = products[columns[one]]
            for other in range(one, end):
                line[columns[other]] += value * values[other]


def read_embedding(path: str | Path, store: CellStore) -> Array:
    """Read coordinates of the cells of a store.

    Args:
        path: a `.npy` array [n, d], or a `.parquet` table of number columns, one row per cell in
            the order of the store; its columns `cell` and `row`, if present, must say so.
        store: the store.

    Returns:
        float [n, d].

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is another kind of file, or of other cells.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPathError(f"There is no embedding file {path}.")
    if path.suffix == ".npy":
        try:
            points = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputDataError(
                f"{path} cannot be read as a numpy array of numbers ({error})."
            ) from error
    elif path.suffix == ".parquet":
        points = _read_parquet(path, store)
    else:
        raise InputDataError(
            f"{path} is neither .npy nor .parquet; give coordinates as one of them."
        )
    points = check_coordinates(points)
    if len(points) != len(store):
        raise InputDataError(
            f"{path} has coordinates of {len(points):,} cells, {store.path} has {len(store):,}."
        )
    return points


def _read_parquet(path: Path, store: CellStore) -> Array:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise InputDataError(f"{path} cannot be read as Parquet ({error}).") from error
    if "cell" in table.column_names:
        names = table.column("cell").to_numpy(zero_copy_only=False)
        if len(names) != len(store) or (names != store.obs.names).any():
            raise InputDataError(
                f"The column cell of {path} does not name the cells of {store.path} in their order."
            )
    if "row" in table.column_names:
        rows = table.column("row").to_numpy()
        if not np.array_equal(rows, np.arange(len(rows))):
            raise InputDataError(f"The column row of {path} is not 0, 1, 2, ... in order.")
    columns = [
        table.column(field.name).to_numpy()
        for field in table.schema
        if field.name not in _NOT_COORDINATES
        and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))
    ]
    if not columns:
        raise InputDataError(f"{path} has no columns of numbers to take as coordinates.")
    return np.stack(columns, axis=1)
