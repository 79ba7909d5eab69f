"""Histograms of counts against plain numpy, whatever is emptied into what on the way."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data.storage import gene_statistics
from omics.data.storage.coded_blocks import BlockCoder
from omics.data.storage.gene_statistics import CountStatistics

NUM_GENES = 30


def block_of(counts):
    cells, genes = np.nonzero(counts)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=len(counts)))])
    return BlockCoder(NUM_GENES, "counts").code(indptr, genes, counts[cells, genes])


def some_counts(num_cells, seed):
    rng = np.random.default_rng(seed)
    counts = rng.choice([0, 1, 2, 15, 16, 254, 255, 256, 2**32 - 1], (num_cells, NUM_GENES))
    counts[:, 0] = 0
    return counts * (rng.random(counts.shape) < rng.random(NUM_GENES))


def assert_describes(statistics, counts):
    sums, detection, medians, unknown = statistics.finish()
    assert sums.tolist() == counts.sum(axis=0).tolist()
    assert detection.tolist() == (counts > 0).sum(axis=0).tolist()
    for gene, values in enumerate(counts.T):
        middle = np.sort(values[values > 0])[(detection[gene] - 1) // 2 : detection[gene] // 2 + 1]
        assert unknown[gene] == bool(len(middle) and middle.max() >= 255)
        if not unknown[gene]:
            assert medians[gene] == (np.median(values[values > 0]) if len(middle) else 0)


@pytest.mark.parametrize(("narrow", "wide"), [(2**16 - 1, 2**31), (7, 2**31), (7, 20), (100, 1)])
def test_sums_detection_and_medians_are_those_of_all_cells(narrow, wide, monkeypatch):
    monkeypatch.setattr(gene_statistics, "NARROW_CELLS", narrow)
    monkeypatch.setattr(gene_statistics, "WIDE_CELLS", wide)
    statistics, blocks = CountStatistics(NUM_GENES), []
    for seed, size in enumerate([0, 1, 40, 3, 17, 8]):
        blocks.append(some_counts(size, seed))
        statistics.add(block_of(blocks[-1]))
    assert_describes(statistics, np.concatenate(blocks))
    # Continued from what a checkpoint holds.
    other = CountStatistics(NUM_GENES)
    other.restore({name: values.copy() for name, values in statistics.state().items()})
    blocks.append(some_counts(30, 9))
    other.add(block_of(blocks[-1]))
    assert_describes(other, np.concatenate(blocks))


def test_a_count_seen_in_more_cells_than_16_bits_tell():
    counts = np.zeros((2**16 + 9, NUM_GENES), np.int64)
    counts[:, 3] = 1
    statistics = CountStatistics(NUM_GENES)
    statistics.add(block_of(counts))
    statistics.add(block_of(counts))
    assert_describes(statistics, np.concatenate([counts, counts]))
