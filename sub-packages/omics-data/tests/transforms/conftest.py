"""Cells by hand, for the tests of transforms."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data.cell_batch import CellBatch
from omics.data.genes import GeneTable


def _batch_of(cells, rows=None, dtype=np.uint32, num_genes=100):
    lengths = [len(cell) for cell in cells]
    return CellBatch(
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        genes=np.array([gene for cell in cells for gene in cell], np.uint16),
        counts=np.array([count for cell in cells for count in cell.values()], dtype),
        rows=np.arange(len(cells)) if rows is None else np.array(rows, np.int64),
        num_genes=num_genes,
    )


def _cells_of(batch, field_name=None):
    values = batch.counts if field_name is None else batch.fields[field_name]
    return [
        dict(zip(batch.genes[a:b].tolist(), values[a:b].tolist(), strict=True))
        for a, b in zip(batch.indptr[:-1], batch.indptr[1:], strict=True)
    ]


def _genes_of(batch):
    return [part.tolist() for part in np.split(batch.genes, batch.indptr[1:-1])]


@pytest.fixture(scope="session")
def batch_of():
    """Make a batch of cells given as {gene: count}."""
    return _batch_of


@pytest.fixture(scope="session")
def cells_of():
    """Return the cells of a batch as {gene: count or field}."""
    return _cells_of


@pytest.fixture(scope="session")
def genes_of():
    """Return the genes of each cell, in order."""
    return _genes_of


@pytest.fixture(scope="session")
def table():
    """The table of 100 genes that the batches belong to: ids g0 to g99."""
    places = np.arange(100)
    return GeneTable(
        [f"g{gene}" for gene in range(100)],
        {
            "length": places[::-1].astype(float),
            "chromosome": np.array([f"chr{gene % 4}" for gene in range(100)], object),
            "start": (places * 37 % 100).astype(float),
        },
    )
