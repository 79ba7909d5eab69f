"""What kind of values a matrix holds, told from a sample read within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy import sparse

from omics.data.converting.counts_detection import detect_counts, find_counts
from omics.data.sources.matrix_blocks import MatrixSource
from omics.data.sources.matrix_sample import NUM_PLACES, sample_matrix


def simulated_counts(
    random: np.random.Generator, *, cells: int | None = None, deep: bool = False
) -> np.ndarray[Any, Any]:
    """Return counts [cells, genes] of some depth, sparsity and spread."""
    cells = cells or int(random.integers(20, 80))
    genes = int(random.integers(100, 400))
    means = random.gamma(0.4, random.uniform(0.5, 6.0), genes) + 1e-3
    # Reads of full-length protocols or of bulk samples: hundreds and thousands for each gene.
    means = means * random.uniform(50, 1000) if deep else means
    depth = random.lognormal(0.0, 0.5, cells)[:, None]
    shape = random.uniform(0.3, 3.0)
    rates = random.gamma(shape, means[None, :] * depth / shape)
    return random.poisson(rates).astype(np.float64)


def normalised(counts: Any, total: float) -> Any:
    return counts * (total / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def per_length(counts: Any, random: np.random.Generator) -> Any:
    return normalised(counts / random.uniform(0.3, 10, counts.shape[1]), 1e6)


def scaled(counts: Any) -> Any:
    logs = np.log1p(normalised(counts, 1e4))
    return (logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-3)


def some_genes(values: Any, random: np.random.Generator) -> Any:
    return values[:, random.random(values.shape[1]) < 0.5]


def rarefied(counts: Any, random: np.random.Generator) -> Any:
    """Draw every cell down to the depth of the poorest."""
    depth = int(max(counts.sum(axis=1).min(), 20))
    drawn = [
        random.multivariate_hypergeometric(row.astype(int), min(depth, int(row.sum())))
        for row in counts
    ]
    return np.array(drawn, dtype=np.float64)


def expected_counts(counts: Any, random: np.random.Generator) -> Any:
    """Share some reads between neighbouring genes, as programs of transcript counting do."""
    share = np.where(random.random(counts.shape) < 0.4, random.random(counts.shape), 0)
    moved = counts * share
    return counts - moved + np.roll(moved, 1, axis=1)


def ranks(values: Any) -> Any:
    from scipy.stats import rankdata

    out = np.zeros_like(values)
    for row, cell in zip(out, values, strict=True):
        row[cell > 0] = rankdata(cell[cell > 0])
    return out


TRANSFORMS = {
    "raw": ("counts", lambda counts, _: counts),
    "cut": ("counts", lambda counts, _: np.minimum(counts, 3)),
    "rarefied": ("counts", rarefied),
    "rarefied, chosen genes": ("counts", lambda counts, random: some_genes(rarefied(counts, random), random)),
    "binary": ("counts", lambda counts, _: (counts > 0).astype(float)),
    "log1p 10,000": ("log1p", lambda counts, _: np.log1p(normalised(counts, 1e4))),
    "log1p million": ("log1p", lambda counts, _: np.log1p(normalised(counts, 1e6))),
    "log1p median": (
        "log1p",
        lambda counts, _: np.log1p(normalised(counts, np.median(counts.sum(axis=1)))),
    ),
    "log2": ("log1p", lambda counts, _: np.log2(1 + normalised(counts, 1e4))),
    "log10 TPM": ("log1p", lambda counts, random: np.log10(1 + per_length(counts, random))),
    "log2 of x + 0.001": (
        "log1p", lambda counts, random: np.log2(per_length(counts, random) + 0.001)
    ),
    "log1p of counts": ("log1p", lambda counts, _: np.log1p(counts)),
    "log1p of chosen genes": (
        "log1p", lambda counts, random: some_genes(np.log1p(normalised(counts, 1e4)), random)
    ),
    "log1p, rounded": ("log1p", lambda counts, _: np.round(np.log1p(normalised(counts, 1e4)), 3)),
    "log2 CPM, one decimal": ("log1p", lambda counts, _: np.round(np.log2(1 + normalised(counts, 1e6)), 1)),
    "per 10,000": ("normalized", lambda counts, _: normalised(counts, 1e4)),
    "per million": ("normalized", lambda counts, _: normalised(counts, 1e6)),
    "TPM": ("normalized", per_length),
    "per million, two decimals": ("normalized", lambda counts, _: np.round(normalised(counts, 1e6), 2)),
    "per million, whole": ("normalized", lambda counts, _: np.round(normalised(counts, 1e6))),
    "TPM, whole": ("normalized", lambda counts, random: np.round(per_length(counts, random))),
    "fractions": ("normalized", lambda counts, _: normalised(counts, 1.0)),
    "per 10,000 of chosen genes": (
        "normalized", lambda counts, random: some_genes(normalised(counts, 1e4), random)
    ),
    "scaled": ("scaled", lambda counts, _: scaled(counts)),
    "scaled and cut": ("scaled", lambda counts, _: np.clip(scaled(counts), -3, 10)),
    "halves": ("fractional", lambda counts, _: counts * 0.5),
    "expected": ("fractional", expected_counts),
    "ranks": ("ranked", lambda counts, _: ranks(counts)),
}  # fmt: skip
# With one to four cells, or much deeper ones, these lose the trace that tells them apart.
NOT_OF_FEW = {"rarefied, chosen genes", "per 10,000 of chosen genes"}
NOT_OF_DEEP = {"per 10,000 of chosen genes", "log2 of x + 0.001"}


def sampled(matrix: Any, layout: str, folder: Path) -> str:
    """Return the kind that is found in a matrix, in memory or in a file."""
    if layout == "memory":
        return detect_counts(matrix.data, matrix.indptr).kind
    with h5py.File(folder / "a.h5", "w", driver="core", backing_store=False) as handle:
        source = matrix_in(handle, "X", matrix, dense=layout == "dense")
        return find_counts([source])[0].summary.kind


@pytest.mark.parametrize("seed", [7])
def test_a_thousand_transformed_matrices_are_recognised(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    wrong: list[tuple[str, str, str]] = []
    names = list(TRANSFORMS)
    sizes: list[dict[str, Any]] = [{}, {}, {"deep": True}, {"cells": 3}]
    cases = 0
    while cases < 1000:
        name, size = names[cases % len(names)], sizes[(cases // len(names)) % len(sizes)]
        cases += 1
        if name in (NOT_OF_FEW if "cells" in size else NOT_OF_DEEP if "deep" in size else ()):
            size = {}
        expected, transform = TRANSFORMS[name]
        values = transform(simulated_counts(random, **size), random)
        dtype = ("f4", "f8", "f4")[cases % 3]
        matrix = sparse.csr_matrix(values.astype(dtype))
        found = sampled(matrix, ("memory", "csr", "dense")[cases % 3], tmp_path)
        if found != expected:
            wrong.append((name, found, str(size)))
    assert len(wrong) <= 5, wrong


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f2", "f4", "f8"])
def test_counts_of_any_type_are_counts(dtype: str) -> None:
    counts = np.minimum(simulated_counts(np.random.default_rng(1)), 200)
    matrix = sparse.csr_matrix(counts.astype(np.float64))
    assert detect_counts(matrix.data.astype(dtype), matrix.indptr).kind == "counts"


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_a_single_cell_is_enough(cells: int) -> None:
    random = np.random.default_rng(2)
    counts = simulated_counts(random, cells=cells)
    for expected, values in {
        "counts": counts,
        "log1p": np.log1p(normalised(counts, 1e4)),
        "normalized": normalised(counts, 1e6),
    }.items():
        matrix = sparse.csr_matrix(values.astype(np.float32))
        assert detect_counts(matrix.data, matrix.indptr).kind == expected


@pytest.mark.parametrize("total", [1e4, 1e6])
def test_the_total_that_cells_were_scaled_to_is_named(total: float) -> None:
    counts = simulated_counts(np.random.default_rng(0))
    matrix = sparse.csr_matrix(np.log1p(normalised(counts, total)).astype(np.float32))
    summary = detect_counts(matrix.data, matrix.indptr)
    assert summary.scaled_to == pytest.approx(total, rel=1e-3)
    assert f"log(1 + x) of counts scaled to about {total:,.0f}" in summary.text
    assert summary.integer_fraction < 0.01


def test_words_for_the_plain_cases() -> None:
    assert "raw counts (whole numbers, max 7)" in detect_counts(np.array([1, 2, 7])).text
    assert "every value is 1" in detect_counts(np.ones(9)).text
    assert detect_counts(np.array([])).kind == "empty"
    assert detect_counts(np.array([1.0, -0.5])).text == "scaled values (min -0.5, max 1)"
    assert detect_counts(np.array([1.0, np.nan])).text == "NaN or infinite values (50.0%)"
    nearly = detect_counts(np.append(np.arange(1.0, 100.0), 3.5))
    assert (nearly.kind, nearly.text[:17]) == ("fractional", "nearly raw counts")
    halves = detect_counts(np.array([0.5, 1.5, 7.5]))
    assert halves.kind == "fractional"
    assert "such as expected or shared counts" in halves.text
    assert detect_counts(np.array([250.5, 1.25, 3.1])).kind == "other"
    # The shape of a log, though no whole cell is known.
    assert detect_counts(np.array([0.3, 1.7, 2.2])).kind == "log1p"


def test_counts_with_one_total_are_counts_with_a_remark() -> None:
    values = np.tile([3, 2, 5], 10)
    summary = detect_counts(values, np.arange(0, 31, 3))
    assert summary.kind == "counts"
    assert "the sum of every cell is about 10" in summary.text


# --- reading within a budget ---------------------------------------------------------------------


def matrix_in(
    handle: h5py.File, location: str, matrix: Any, *, dense: bool = False, **options: Any
) -> MatrixSource:
    group = handle.require_group(location.replace("raw.X", "raw/X"))
    if dense:
        values = group.create_dataset("dense", data=matrix.toarray(), **options)
        parts, encoding = {"values": values}, "dense"
    else:
        parts = {
            "values": group.create_dataset("data", data=matrix.data, **options),
            "indices": group.create_dataset("indices", data=matrix.indices, **options),
            "indptr": group.create_dataset("indptr", data=matrix.indptr),
        }
        encoding = matrix.format
    return MatrixSource(
        path=Path("a.h5ad"), location=location, encoding=encoding, shape=matrix.shape, **parts
    )  # type: ignore[arg-type]


@pytest.fixture
def handle(tmp_path: Path) -> Any:
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        yield file


def big_matrix(layout: str) -> Any:
    matrix = sparse.random(4000, 300, density=0.3, random_state=0, format=layout)
    matrix.data = np.log1p(np.ceil(matrix.data * 9)).astype(np.float32)
    return matrix


@pytest.mark.parametrize("layout", ["csr", "csc", "dense", "dense by columns"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_sample_stays_within_its_budget_and_comes_from_several_places(
    handle: h5py.File, layout: str, compression: str | None
) -> None:
    matrix = big_matrix("csc" if layout == "csc" else "csr")
    dense = layout.startswith("dense")
    chunks: Any = {"dense": (50, 300), "dense by columns": (4000, 2)}.get(layout, (1024,))
    options = {"compression": compression, "chunks": chunks} if compression else {}
    source = matrix_in(handle, "X", matrix, dense=dense, **options)
    budget = 600_000
    sample = sample_matrix(source, budget=budget)
    assert sample is not None
    assert sample.bytes_read <= budget
    assert not sample.complete
    assert 1000 < len(sample.values) < matrix.nnz / 2
    by_columns = layout in {"csc", "dense by columns" if compression else ""}
    assert (sample.indptr is None) == by_columns
    if sample.indptr is not None:
        assert len(sample.indptr) > NUM_PLACES
        assert sample.indptr[-1] == len(sample.values)


def test_a_small_matrix_is_read_whole(handle: h5py.File) -> None:
    matrix = sparse.csr_matrix(np.array([[1, 0, 2], [0, 0, 0], [3, 4, 0]]))
    matrix.data[0] = 0
    for name, dense in (("X", False), ("layers/dense", True)):
        sample = sample_matrix(matrix_in(handle, name, matrix, dense=dense))
        assert sample is not None
        assert sample.complete
        assert sample.values.tolist() == [2, 3, 4]
        assert sample.indptr is not None
        assert sample.indptr.tolist() == [0, 1, 1, 3]


def test_a_chunk_larger_than_the_budget_is_not_read(handle: h5py.File) -> None:
    source = matrix_in(handle, "X", big_matrix("csr"), chunks=(360_000,), compression="gzip")
    assert sample_matrix(source, budget=100_000) is None
    (candidate,) = find_counts([source], budget=100_000)
    assert candidate.summary.kind == "unknown"
    assert "not sampled" in candidate.summary.text


def test_counts_are_found_best_place_first(handle: h5py.File) -> None:
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(0.5, (30, 20)).astype(np.float32))
    logs = counts.log1p()

    def order(**matrices: Any) -> list[str]:
        handle.clear()
        sources = [
            matrix_in(handle, name.replace("layers_", "layers/").replace("raw_X", "raw.X"), matrix)
            for name, matrix in matrices.items()
        ]
        return [f"{each.location}:{each.summary.kind}" for each in find_counts(sources)]

    assert order(raw_X=counts, X=counts) == ["X:counts", "raw.X:counts"]
    assert order(X=logs, raw_X=counts, layers_a=counts, layers_counts=counts) == [
        "layers/counts:counts",
        "raw.X:counts",
        "layers/a:counts",
        "X:log1p",
    ]
    assert order(X=logs, raw_X=logs, layers_spliced=counts)[0] == "layers/spliced:counts"


def test_a_damaged_matrix_does_not_hide_the_others(handle: h5py.File) -> None:
    counts = sparse.csr_matrix(np.eye(6, dtype=np.float32))
    broken = counts.copy()
    broken.indptr = np.array([0, 5, 2, 3, 4, 5, 6])
    group = handle.create_group("X")
    parts = {
        "values": group.create_dataset("data", data=broken.data),
        "indices": group.create_dataset("indices", data=broken.indices),
        "indptr": group.create_dataset("indptr", data=broken.indptr),
    }
    path = Path("a.h5ad")
    damaged = MatrixSource(path=path, location="X", encoding="csr", shape=(6, 6), **parts)
    found = find_counts([damaged, matrix_in(handle, "raw.X", counts)])
    assert [each.location for each in found] == ["raw.X", "X"]
    assert "damaged: X of a.h5ad: its indptr does not ascend" in found[1].summary.text
