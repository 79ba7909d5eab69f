"""Arrays in memory stream like matrices of a file; parts with other genes come together by place."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from omics.data.converting.counts_detection import find_counts
from omics.data.errors import InputDataError
from omics.data.sources.memory_matrix import csr_matrix_of, dense_matrix
from omics.data.sources.remapped_matrix import GenePart, RemappedMatrix

HERE = Path("memory")


def as_csr(matrix: Any) -> Any:
    found = sparse.csr_matrix(matrix)
    return csr_matrix_of(
        found.data,
        found.indices,
        found.indptr,
        num_genes=found.shape[1],
        path=HERE,
        location="X",
    )


def read_back(matrix: Any, **options: Any) -> np.ndarray[Any, Any]:
    rows: list[np.ndarray[Any, Any]] = []
    for indptr, genes, values in matrix.blocks("counts", **options):
        block = np.zeros((len(indptr) - 1, matrix.shape[1]), np.int64)
        for cell, (begin, end) in enumerate(pairwise(indptr)):
            assert (np.diff(genes[begin:end].astype(np.int64)) > 0).all()
            block[cell, genes[begin:end]] = values[begin:end]
        rows.append(block)
    return np.concatenate(rows) if rows else np.zeros((0, matrix.shape[1]), np.int64)


COUNTS = st.integers(0, 2**32 - 1).map(
    lambda seed: (
        np.random.default_rng(seed).integers(0, 300, (5, 7))
        * (np.random.default_rng(seed + 1).random((5, 7)) < 0.4)
    )
)


@settings(deadline=None, max_examples=30)
@given(counts=COUNTS, dtype=st.sampled_from(["u1", "u4", "i8", "f2", "f4", "f8"]))
def test_dense_and_sparse_arrays_arrive(counts: np.ndarray[Any, Any], dtype: str) -> None:
    counts = counts % 256
    typed = counts.astype(dtype)
    for matrix in (
        as_csr(typed.astype("f4") if dtype == "f2" else typed),
        dense_matrix(typed, path=HERE, location="X"),
        dense_matrix(np.asfortranarray(typed), path=HERE, location="X"),
    ):
        assert (read_back(matrix) == counts).all()
        assert (read_back(matrix, first_cell=2) == counts[2:]).all()


@settings(deadline=None, max_examples=30)
@given(
    first=COUNTS,
    second=COUNTS,
    places=st.tuples(st.permutations(range(9)), st.permutations(range(9))),
    skip=st.integers(0, 10),
)
def test_parts_are_put_into_the_places_of_their_genes(
    first: np.ndarray[Any, Any],
    second: np.ndarray[Any, Any],
    places: tuple[list[int], list[int]],
    skip: int,
) -> None:
    expected = np.zeros((10, 9), np.int64)
    parts: list[GenePart] = []
    for number, (counts, place) in enumerate(zip((first, second), places, strict=True)):
        expected[5 * number : 5 * number + 5, place[:7]] = counts
        parts.append(GenePart(matrix=as_csr(counts), places=np.array(place[:7])))
    matrix = RemappedMatrix(parts, num_genes=9)
    assert matrix.shape == (10, 9)
    assert matrix.stored_entries == np.count_nonzero(expected)
    assert (read_back(matrix, first_cell=skip) == expected[skip:]).all()
    sample = matrix.sample(2**20)
    assert sample is not None
    assert sample.complete
    assert sample.indptr is not None
    assert sample.values.sum() == expected.sum()
    assert sample.indptr[-1] == len(sample.values)
    assert matrix.count_empty(2**20) == (expected.sum(axis=1) == 0).sum()


def test_the_kind_of_values_is_found_in_many_parts() -> None:
    counts = np.random.default_rng(0).poisson(1.0, (20, 30))
    parts = [GenePart(matrix=as_csr(counts), places=np.arange(30)) for _ in range(20)]
    (candidate,) = find_counts([RemappedMatrix(parts, num_genes=30)])
    assert candidate.summary.kind == "counts"
    assert candidate.shape == (400, 30)


def test_a_place_outside_is_an_error_that_names_it() -> None:
    matrix = csr_matrix_of(
        np.array([1.0]),
        np.array([7]),
        np.array([0, 1]),
        num_genes=3,
        path=HERE,
        location="sm",
    )
    with pytest.raises(InputDataError, match="sm of memory: row 0 has an entry at column 7"):
        list(matrix.blocks())
    remapped = RemappedMatrix([GenePart(matrix=matrix, places=np.arange(3))], num_genes=3)
    with pytest.raises(InputDataError, match="outside 0 to 2"):
        list(remapped.blocks())
    assert "oddly" in str(remapped.error("it is oddly shaped"))
