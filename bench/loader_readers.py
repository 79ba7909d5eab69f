"""Ways to read random minibatches of the same cells, one function per project.

- Each reader is opened on what its project made of the file, and yields minibatches without end:
  `sparse` ones in the form its users get (indices, values, offsets), and the arrays of such a
  batch for padding, which is then done for all of them by the same compiled loop.
- Every reader must give the counts that are in the file: `check_reader` compares a batch first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Array = np.ndarray[Any, np.dtype[Any]]
    Batch = tuple[Array, Array, Array]

PADDED_LENGTH = 2048


@dataclass(frozen=True)
class Reader:
    """A way to read.

    Attributes:
        name: in the table.
        batches: yields minibatches in the form of its project, without end.
        arrays: takes one of them to (indptr, indices, values).
    """

    name: str
    batches: Callable[[], Iterator[Any]]
    arrays: Callable[[Any], Batch]


def _forever(epoch: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    number = 0
    while True:
        yield from epoch(number)
        number += 1


def ours(
    path: Path, batch_size: int, *, name: str, order: str = "random", **options: Any
) -> Reader:
    """The Loader of omics-data in one thread, unless told otherwise."""
    from omics.data import Loader, open_store

    verify = options.pop("verify", "first")
    loader = Loader(open_store(path, verify=verify), batch_size=batch_size, order=order, **options)

    def epoch(number: int) -> Iterator[Any]:
        loader.set_epoch(number)
        return iter(loader)

    return Reader(
        name, lambda: _forever(epoch), lambda cells: (cells.indptr, cells.genes, cells.counts)
    )


def _from_torch(batch: Any) -> Batch:
    return (
        batch.crow_indices().numpy(),
        batch.col_indices().numpy(),
        batch.values().numpy(),
    )


def scdl(path: Path, batch_size: int) -> Reader:
    """bionemo-scdl with a DataLoader and its own collate function."""
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset
    from bionemo.scdl.util.torch_dataloader_utils import collate_sparse_matrix_batch
    from torch.utils.data import DataLoader

    cells = SingleCellMemMapDataset(str(path))
    loader = DataLoader(
        cells, batch_size=batch_size, shuffle=True, collate_fn=collate_sparse_matrix_batch
    )
    return Reader("bionemo-scdl", lambda: _forever(lambda _: iter(loader)), _from_torch)


def scdataset_over_scdl(path: Path, batch_size: int) -> Reader:
    """ScDataset over bionemo-scdl, fetching 64 batches of random cells at a time."""
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset
    from bionemo.scdl.util.torch_dataloader_utils import collate_sparse_matrix_batch
    from scdataset import BlockShuffling, scDataset

    cells = SingleCellMemMapDataset(str(path))
    loader = scDataset(
        cells,
        BlockShuffling(block_size=1),
        batch_size=batch_size,
        fetch_factor=64,
        fetch_callback=lambda data, rows: [data[int(row)] for row in rows],
        batch_callback=lambda fetched, rows: [fetched[int(row)] for row in rows],
        batch_transform=collate_sparse_matrix_batch,
    )
    return Reader("scDataset over scdl", lambda: _forever(lambda _: iter(loader)), _from_torch)


def _of_csr(matrix: Any) -> Batch:
    return matrix.indptr, matrix.indices, matrix.data


def scdataset_over_h5ad(path: Path, batch_size: int) -> Reader:
    """ScDataset over a backed AnnData matrix, fetching 64 batches of random cells at a time."""
    import anndata
    from scdataset import BlockShuffling, scDataset

    backed = anndata.read_h5ad(path, backed="r")
    loader = scDataset(
        backed,
        BlockShuffling(block_size=1),
        batch_size=batch_size,
        fetch_factor=64,
        fetch_callback=lambda data, rows: data.X[np.asarray(rows)],
    )
    return Reader("scDataset over h5ad", lambda: _forever(lambda _: iter(loader)), _of_csr)


def anndata_backed(path: Path, batch_size: int) -> Reader:
    """Sorted random rows of a backed AnnData matrix."""
    import anndata

    backed = anndata.read_h5ad(path, backed="r").X
    rng = np.random.default_rng(0)

    def epoch(_: int) -> Iterator[Any]:
        rows = rng.permutation(backed.shape[0])
        for begin in range(0, len(rows), batch_size):
            yield backed[np.sort(rows[begin : begin + batch_size])]

    return Reader("AnnData backed", lambda: _forever(epoch), _of_csr)


def ann_loader(path: Path, batch_size: int) -> Reader:
    """AnnLoader over a backed AnnCollection, as anndata's documentation shows it."""
    import anndata
    from anndata.experimental import AnnCollection, AnnLoader

    backed = anndata.read_h5ad(path, backed="r")
    cells = AnnCollection([backed], join_vars="inner", indices_strict=False)
    loader = AnnLoader(cells, batch_size=batch_size, shuffle=True)

    def arrays(batch: Any) -> Batch:
        dense = batch.X.coalesce() if batch.X.is_sparse else batch.X.to_sparse()
        rows, columns = dense.indices().numpy()
        return np.searchsorted(rows, np.arange(dense.shape[0] + 1)), columns, dense.values().numpy()

    return Reader("AnnLoader", lambda: _forever(lambda _: iter(loader)), arrays)


def litdata_chunks(path: Path, batch_size: int) -> Reader:
    """Litdata's StreamingDataset (it shuffles chunks, and cells within a chunk)."""
    import litdata as ld

    cells = ld.StreamingDataset(str(path), shuffle=True)

    def joined(items: list[dict]) -> Batch:
        lengths = [len(item["genes"]) for item in items]
        return (
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([item["genes"] for item in items]),
            np.concatenate([item["counts"] for item in items]),
        )

    loader = ld.StreamingDataLoader(cells, batch_size=batch_size, collate_fn=joined)
    return Reader("litdata", lambda: _forever(lambda _: iter(loader)), lambda batch: batch)


def tiledbsoma(path: Path, batch_size: int) -> Reader:
    """tiledbsoma-ml's shuffled ExperimentDataset."""
    import tiledbsoma as soma
    from tiledbsoma_ml import ExperimentDataset, experiment_dataloader

    experiment = soma.Experiment.open(str(path))
    query = experiment.axis_query("RNA")
    cells = ExperimentDataset(
        query, layer_name="data", batch_size=batch_size, shuffle=True, return_sparse_X=True
    )
    return Reader(
        "tiledbsoma-ml",
        lambda: _forever(lambda _: iter(experiment_dataloader(cells))),
        lambda batch: _of_csr(batch[0].tocsr()),
    )


def annbatch_zarr(path: Path, batch_size: int) -> Reader:
    """Annbatch's loader of true random rows (Python 3.12 and later)."""
    import zarr
    from annbatch import DatasetCollection
    from annbatch import Loader as AnnbatchLoader

    loader = AnnbatchLoader(batch_size=batch_size, chunk_size=1, preload_nchunks=batch_size * 64)
    loader.use_collection(DatasetCollection(zarr.open(str(path), mode="r")))

    def arrays(batch: Any) -> Batch:
        matrix = batch["X"]
        return _from_torch(matrix) if hasattr(matrix, "crow_indices") else _of_csr(matrix)

    return Reader("annbatch", lambda: _forever(lambda _: iter(loader)), arrays)


@numba.njit(nogil=True, cache=True)
def _pad(indptr: Array, indices: Array, values: Array, out: tuple[Array, Array, Array]) -> None:
    padded_indices, padded_values, lengths = out
    limit = padded_indices.shape[1]
    tally = np.zeros(256, np.int64)
    for row in range(indptr.size - 1):
        row_indices = indices[indptr[row] : indptr[row + 1]]
        row_values = values[indptr[row] : indptr[row + 1]]
        size = row_indices.size
        to_indices, to_values = padded_indices[row], padded_values[row]
        if size <= limit:
            for entry in range(size):
                to_indices[entry] = row_indices[entry]
                to_values[entry] = row_values[entry]
            kept = size
        else:  # The largest counts; of equal ones the first.
            tally[:] = 0
            for entry in range(size):
                tally[min(np.int64(row_values[entry]), 255)] += 1
            lowest, above = 255, 0
            while above + tally[lowest] < limit:
                above += tally[lowest]
                lowest -= 1
            room = limit - above
            kept = 0
            for entry in range(size):
                count = min(np.int64(row_values[entry]), 255)
                tie = count == lowest and room > 0
                if tie:
                    room -= 1
                if count > lowest or tie:
                    to_indices[kept] = row_indices[entry]
                    to_values[kept] = row_values[entry]
                    kept += 1
        to_indices[kept:] = 0
        to_values[kept:] = 0
        lengths[row] = kept


class Padding:
    """Pads minibatches to 2,048 entries a cell, into memory that is used again.

    Args:
        batch_size: cells of a batch at most.
    """

    def __init__(self, batch_size: int) -> None:
        self.indices = np.zeros((batch_size, PADDED_LENGTH), np.int32)
        self.values = np.zeros((batch_size, PADDED_LENGTH), np.float32)
        self.lengths = np.zeros(batch_size, np.int32)

    def pad(self, batch: Batch) -> int:
        """Pad a minibatch and return its number of cells."""
        indptr, indices, values = batch
        _pad(
            np.asarray(indptr, np.int64), indices, values, (self.indices, self.values, self.lengths)
        )
        return len(indptr) - 1
