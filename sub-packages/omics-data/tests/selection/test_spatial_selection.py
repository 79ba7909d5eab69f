"""Sketching keeps rare types, farthest-first equals brute force, components equal a dense PCA."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data import synthesize
from omics.data.errors import InputDataError, MissingPathError, UsageError
from omics.data.selection import (
    cell_embedding,
    farthest_first_rows,
    geometric_sketch_rows,
    principal_components,
    random_rows,
    read_embedding,
)


def planted(seed, axes=10):
    """Return 10,000 cells of a common, a rarer and a rare type (1%), on decaying axes."""
    rng = np.random.default_rng(seed)
    scales = 1 / np.sqrt(1 + np.arange(axes))
    centres = rng.normal(0, 5, (3, axes)) * scales
    parts = [
        rng.normal(0, 1, (size, axes)) * scales + centre
        for size, centre in zip((9000, 900, 100), centres, strict=True)
    ]
    return np.concatenate(parts), np.repeat([0, 1, 2], (9000, 900, 100))


def test_sketches_keep_several_times_more_of_a_rare_type_than_chance():
    sketched, drawn = [], []
    for seed in range(8):
        points, types = planted(seed)
        rows = geometric_sketch_rows(points, 300, seed=seed)
        assert len(np.unique(rows)) == 300
        assert (np.diff(rows) > 0).all()
        sketched.append((types[rows] == 2).sum())
        drawn.append((types[random_rows(len(points), 300, seed=seed)] == 2).sum())
    # Measured: 26.1 of 300 on average against 2.75 by chance (11 to 42 against 0 to 4).
    assert np.mean(sketched) > 5 * np.mean(drawn)
    assert (np.array(sketched) > np.array(drawn)).all()


def test_sketches_of_few_places_take_every_place_before_any_twice():
    points = np.repeat(np.array([[0.0, 0], [0, 9], [5, 5]]), (50, 5, 1), axis=0)
    for seed in range(5):
        rows = geometric_sketch_rows(points, 3, seed=seed)
        assert len(np.unique(points[rows], axis=0)) == 3
        more = geometric_sketch_rows(points, 9, seed=seed)
        assert len(np.unique(more)) == 9
        assert 55 in more
        assert (points[more] == [0, 9]).all(axis=1).sum() in {3, 4}
    assert len(geometric_sketch_rows(np.zeros((6, 2)), 4)) == 4
    np.testing.assert_array_equal(geometric_sketch_rows(points, 56), np.arange(56))


def test_a_sketch_depends_on_the_seed_alone():
    points, _ = planted(0)
    first = geometric_sketch_rows(points, 200, seed=1)
    np.testing.assert_array_equal(first, geometric_sketch_rows(points, 200, seed=1))
    assert first.tolist() != geometric_sketch_rows(points, 200, seed=2).tolist()


def by_brute_force(points, number):
    chosen = [int(np.argmax(((points - points.mean(axis=0)) ** 2).sum(axis=1)))]
    while len(chosen) < number:
        distances = ((points[:, None] - points[chosen]) ** 2).sum(axis=2).min(axis=1)
        distances[chosen] = -1
        chosen.append(int(np.argmax(distances)))
    return chosen


@settings(max_examples=60)
@given(st.integers(1, 25), st.integers(1, 3), st.integers(0, 10**6), st.data())
def test_farthest_first_equals_brute_force(cells, axes, seed, data):
    # Whole numbers: distances are exact, ties are frequent and must go to the lower row.
    points = np.random.default_rng(seed).integers(0, 6, (cells, axes)).astype(np.float64)
    number = data.draw(st.integers(1, cells))
    assert farthest_first_rows(points, number).tolist() == by_brute_force(points, number)


def test_farthest_first_covers_the_space_better_and_reaches_every_type():
    points, types = planted(3)
    rows = farthest_first_rows(points.astype(np.float32), 100)
    chance = random_rows(len(points), 100, seed=0)

    def radius(chosen):
        near = np.full(len(points), np.inf)
        for row in chosen:
            near = np.minimum(near, ((points - points[row]) ** 2).sum(axis=1))
        return np.sqrt(near.max())

    assert radius(rows) < 0.75 * radius(chance)
    assert set(types[rows]) == {0, 1, 2}
    np.testing.assert_array_equal(farthest_first_rows(points.astype(np.float32), 30), rows[:30])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros(3), r"numbers \[cells, dimensions\], not float64 of shape \(3,\)"),
        (np.array([["a"]]), "not <U1"),
        (np.array([[0.0], [np.nan]]), "coordinates of cell 1 are not finite"),
    ],
)
def test_coordinates_that_are_none(points, message):
    for choose in (geometric_sketch_rows, farthest_first_rows):
        with pytest.raises(InputDataError, match=message):
            choose(points, 1)


def test_more_cells_than_there_are():
    for choose in (geometric_sketch_rows, farthest_first_rows):
        with pytest.raises(UsageError, match="4 cells are wanted, but there are 3 cells"):
            choose(np.eye(3), 4)


@pytest.fixture(scope="module")
def store(write_store, tmp_path_factory):
    adata = synthesize(250, 300, num_types=4, seed=2)
    path = tmp_path_factory.mktemp("selection") / "made.store"
    return write_store(path, adata.X, obs=adata.obs, var=adata.var, block=100)


def dense_components(store, genes, number):
    counts = store.to_anndata().X.toarray().astype(np.float64)
    values = np.log1p(counts * 1e4 / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    values = values[:, genes] - values[:, genes].mean(axis=0)
    _, _, axes = np.linalg.svd(values, full_matrices=False)
    return values @ axes[:number].T


def test_components_equal_a_dense_decomposition(store, monkeypatch):
    monkeypatch.setattr(cell_embedding, "_BLOCK_ENTRIES", 1000)
    advanced: list[int] = []
    genes = np.arange(10, 200)
    found = principal_components(store, 6, genes=genes, on_progress=advanced.append)
    assert found.dtype == np.float32
    assert len(advanced) > 20
    assert sum(advanced) == 2 * len(store)
    expected = dense_components(store, genes, 6)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-4)
    np.testing.assert_array_equal(found, principal_components(store, 6, genes=genes))


def test_without_a_choice_the_genes_that_vary_most_are_used(store):
    counts = store.to_anndata().X.toarray().astype(np.float64)
    values = np.log1p(counts * 1e4 / counts.sum(axis=1, keepdims=True))
    genes = np.sort(np.argsort(-values.var(axis=0))[:60])
    np.testing.assert_array_equal(
        principal_components(store, 5, num_genes=60), principal_components(store, 5, genes=genes)
    )


def test_components_of_small_stores_and_bad_requests(tmp_path, write_store, store):
    tiny = write_store(tmp_path / "tiny", [[1, 0, 2], [0, 0, 0], [4, 1, 0]])
    assert principal_components(tiny).shape == (3, 2)
    with pytest.raises(UsageError, match="1 to 5000 genes"):
        principal_components(store, 5, num_genes=5001)
    with pytest.raises(UsageError, match="outside the 300 genes"):
        principal_components(store, 5, genes=np.array([300]))
    with pytest.raises(UsageError, match="0 genes were given"):
        principal_components(store, 5, genes=np.array([], np.int64))
    with pytest.raises(InputDataError, match="need at least 2"):
        principal_components(write_store(tmp_path / "one", [[1]]))
    floats = write_store(tmp_path / "floats", [[0.5], [1]], value_kind="float")
    with pytest.raises(InputDataError, match="holds no raw counts"):
        principal_components(floats)


def test_embeddings_are_read_from_numpy_and_parquet(tmp_path, store):
    points = np.random.default_rng(0).normal(size=(250, 3))
    np.save(tmp_path / "e.npy", points)
    np.testing.assert_array_equal(read_embedding(tmp_path / "e.npy", store), points)
    frame = pd.DataFrame(points, columns=["x", "y", "z"])
    frame.insert(0, "cell", store.obs.names)
    frame.insert(0, "row", np.arange(250))
    frame["label"] = "text"
    frame.to_parquet(tmp_path / "e.parquet")
    np.testing.assert_array_equal(read_embedding(tmp_path / "e.parquet", store), points)


def test_embeddings_of_other_cells_or_kinds_are_refused(tmp_path, store):
    def saved(name, frame):
        frame.to_parquet(tmp_path / name)
        return tmp_path / name

    np.save(tmp_path / "few.npy", np.zeros((3, 2)))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "e.csv").write_text("1,2")
    other = pd.DataFrame({"cell": ["x"] * 250, "a": np.zeros(250)})
    turned = pd.DataFrame({"row": np.arange(250)[::-1], "a": np.zeros(250)})
    texts = pd.DataFrame({"label": ["x"] * 250})
    for path, message in (
        (tmp_path / "few.npy", "coordinates of 3 cells, .* has 250"),
        (tmp_path / "pickled.npy", "cannot be read as a numpy array of numbers"),
        (tmp_path / "broken.parquet", "cannot be read as Parquet"),
        (tmp_path / "e.csv", r"neither \.npy nor \.parquet"),
        (saved("other.parquet", other), "does not name the cells of"),
        (saved("turned.parquet", turned), "is not 0, 1, 2"),
        (saved("texts.parquet", texts), "no columns of numbers"),
    ):
        with pytest.raises(InputDataError, match=message):
            read_embedding(path, store)
    with pytest.raises(MissingPathError, match="no embedding file"):
        read_embedding(tmp_path / "none.npy", store)
