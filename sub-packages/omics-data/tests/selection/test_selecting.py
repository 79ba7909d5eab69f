"""`select_cells`, its table, and the verb `select`."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest

from omics.data import Loader, synthesize
from omics.data.checked_table import write_checked_table
from omics.data.command_line import make_app, run
from omics.data.commands.select_command import add_to
from omics.data.errors import (
    CorruptStoreError,
    ExistingPathError,
    InputDataError,
    UnknownNameError,
    UsageError,
)
from omics.data.export import write_h5ad
from omics.data.quality.quality_table import QualityTable
from omics.data.selection import load_selection, select_cells

METHODS = {
    "random": {},
    "equal-per-group": {"group": "cell_type"},
    "label-balanced": {"group": "cell_type"},
    "geometric-sketch": {},
    "farthest-first": {},
}


@pytest.fixture(scope="module")
def adata():
    return synthesize(200, 120, num_types=3, seed=4)


@pytest.fixture(scope="module")
def store(adata, write_store, tmp_path_factory):
    obs = adata.obs.copy()
    obs["lane"] = [None if row < 50 else f"lane{row % 2}" for row in range(200)]
    path = tmp_path_factory.mktemp("selecting") / "made.store"
    return write_store(path, adata.X, obs=obs, var=adata.var, block=100)


def made_quality(store):
    """Return a table of quality control that keeps every third cell, the later the better."""
    rows = np.arange(200)
    return QualityTable(
        names=store.obs.names,
        cells={"keep": rows % 3 == 0, "quality_score": rows / 200},
        genes={
            "gene": store.genes.ids.astype(object),
            "highly_variable": np.arange(120) < 30,
        },
        summary={"store_digest": store.digest, "gene_digest": "x", "seed": 0, "batch": None},
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_rows_that_a_loader_takes(method, store, tmp_path):
    table = select_cells(store, method, 12, seed=7, **METHODS[method])
    assert len(table) == (36 if method == "label-balanced" else 12)
    assert len(np.unique(table.rows)) == len(table)
    assert table.cells.tolist() == store.obs.names[table.rows].tolist()
    batches = list(Loader(store, rows=table.rows, batch_size=5))
    np.testing.assert_array_equal(np.concatenate([each.rows for each in batches]), table.rows)
    table.save(tmp_path / "chosen.parquet")
    again = load_selection(tmp_path / "chosen.parquet", store)
    np.testing.assert_array_equal(again.rows, table.rows)
    assert again.rows.dtype == np.int64
    assert (again.method, again.seed) == (table.method, 7)
    assert again.method["kind"] == method
    assert again.store_digest == store.digest
    assert again.gene_digest == store.genes.digest
    repeated = select_cells(store, method, 12, seed=7, **METHODS[method])
    np.testing.assert_array_equal(repeated.rows, table.rows)


@pytest.mark.parametrize("method", [*METHODS, "by-quality"])
def test_with_a_quality_table_only_kept_cells_are_chosen(method, store):
    table = select_cells(store, method, 9, quality=made_quality(store), **METHODS.get(method, {}))
    assert (table.rows % 3 == 0).all()
    assert table.method["of"] == 67
    if method == "by-quality":
        assert table.rows.tolist() == [198, 195, 192, 189, 186, 183, 180, 177, 174]


def test_groups_say_their_sizes_and_cells_without_one_are_left_out(store):
    table = select_cells(store, "equal-per-group", 21, group="lane")
    assert table.method["sizes"] == {"lane0": 11, "lane1": 10}
    assert table.method["cells_without_group"] == 50
    assert table.rows.min() >= 50


@pytest.mark.parametrize(
    ("method", "change", "error", "message"),
    [
        ("randum", {}, UsageError, "Did you mean 'random'"),
        ("random", {"group": "lane"}, UsageError, "random takes no group"),
        ("label-balanced", {}, UsageError, "needs an obs column: give --group"),
        ("label-balanced", {"group": "lanes"}, UnknownNameError, "Did you mean 'lane'"),
        ("random", {"embedding": "e.npy"}, UsageError, "takes no embedding"),
        ("by-quality", {}, UsageError, "give --quality"),
        ("random", {"number": 201}, UsageError, "201 cells are wanted, but there are 200"),
        ("random", {"seed": -1}, UsageError, "seed is -1"),
    ],
)
def test_arguments_that_do_not_fit(store, method, change, error, message):
    arguments = {"number": 5, **change}
    with pytest.raises(error, match=message):
        select_cells(store, method, arguments.pop("number"), **arguments)


def test_a_quality_table_of_another_number_of_cells_is_refused(store, tmp_path, write_store):
    other = write_store(tmp_path / "o", [[1], [2]])
    with pytest.raises(InputDataError, match=r"has 200 cells, .* has 2"):
        select_cells(other, "random", 1, quality=made_quality(store))


def test_tables_of_other_stores_kinds_and_changed_bytes_are_refused(
    store, tmp_path, write_store, random_counts
):
    path = tmp_path / "chosen.parquet"
    table = select_cells(store, "random", 12)
    table.save(path)
    with pytest.raises(ExistingPathError):
        table.save(path)
    other = write_store(tmp_path / "other", random_counts(200, 5))
    with pytest.raises(InputDataError, match=r"of another store: its cell of row \d+ is 'cell0000"):
        load_selection(path, other)
    data = bytearray(path.read_bytes())
    for place in range(4, len(data), 97):
        changed = bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        (tmp_path / "changed.parquet").write_bytes(changed)
        try:
            again = load_selection(tmp_path / "changed.parquet", store)
        except (CorruptStoreError, InputDataError):
            continue
        np.testing.assert_array_equal(again.rows, table.rows)
        assert again.method == table.method
    pd.DataFrame({"row": [1], "cell": ["a"]}).to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(InputDataError, match="not a table of omics-data select"):
        load_selection(tmp_path / "plain.parquet")
    write_checked_table(tmp_path / "odd.parquet", {"x": np.ones(2)}, {}, kind="omics_selection")
    with pytest.raises(InputDataError, match="has not the columns of a selection"):
        load_selection(tmp_path / "odd.parquet")


@pytest.fixture
def select(monkeypatch, capsys, tmp_path):
    """Run the verb in the test's folder; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        app = make_app("omics-data", "For a test.")
        app.command()(lambda: None)  # With a single verb typer would not ask for its name.
        add_to(app)
        monkeypatch.setattr(sys, "argv", ["omics-data", "select", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run(app)
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_the_command_writes_a_table(select, store, tmp_path):
    code, out, err = select(
        store.path, "a.parquet", "--method", "label-balanced", "--cells", 10, "--group", "lane"
    )
    assert code == 0, err
    assert "wrote a.parquet: 20 of 200 cells, label-balanced" in out
    assert "2 groups, the smallest 'lane0' with 10 cells" in out
    assert "note: 50 cells have no lane: not chosen" in out
    assert len(load_selection(tmp_path / "a.parquet", store)) == 20
    code, _, err = select(store.path, "a.parquet", "--method", "random", "--cells", 10)
    assert code == 2
    assert "a.parquet exists" in err


def test_the_command_takes_embeddings_quality_and_h5ad_files(select, store, adata, tmp_path):
    np.save(tmp_path / "e.npy", np.arange(200.0)[:, None])
    code, out, err = select(
        store.path, "b.parquet", "--method", "farthest-first", "--cells", 3, "--embedding",
        "e.npy", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["method"] == {
        "kind": "farthest-first",
        "cells": 3,
        "of": 200,
        "embedding": "e.npy",
        "axes": 1,
    }
    assert load_selection(tmp_path / "b.parquet").rows.tolist()[:2] == [0, 199]
    made_quality(store).save(tmp_path / "qc", figures=False)
    code, _, err = select(
        store.path, "c.parquet", "--method", "by-quality", "--cells", 2, "--quality", "qc"
    )
    # The made-up summary is small, so saving and reading it is all that is tested of it.
    assert code == 0, err
    assert load_selection(tmp_path / "c.parquet").rows.tolist() == [198, 195]
    write_h5ad(adata, tmp_path / "cells.h5ad")
    code, _, err = select(
        "cells.h5ad", "d.parquet", "--method", "geometric-sketch", "--cells", 9, "--seed", 3
    )
    assert code == 0, err
    assert len(load_selection(tmp_path / "d.parquet", store)) == 9
