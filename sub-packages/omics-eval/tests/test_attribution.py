"""`attribute` on planted cells: it finds the markers, says so alike in tables and files, or why not."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from attribution_parts import bundle_of

from omics.data import convert
from omics.data.errors import (
    ConfigError,
    ExistingPathError,
    InputDataError,
    MissingExtraError,
    UsageError,
)
from omics.eval import attribute, attribute_files
from omics.eval.attribution_run import drawn_rows
from omics.eval.explained_cells import AttributionOptions
from omics.eval.results import read_results
from omics.models import Bundle, ModelConfig, OmicsModel
from omics.models.model_config import FieldInput, LabelHeadConfig
from omics.tokenizers import LabelSpec, SequenceTokenizer

TYPES = ("type0", "type1", "type2")
QUICK = {"steps": 8, "num_top": 6, "max_cells": 40, "device": "cpu"}


@pytest.fixture(scope="module")
def found(planted_cells):
    """An attribution with checks, by integrated gradients from the mask."""
    options = {**QUICK, "steps": 16, "max_cells": 120}
    return attribute(planted_cells.store, planted_cells.bundle, **options)


def check(rows, metric, class_name=None):
    task = "attribute:cell_type" + ("" if class_name is None else f"={class_name}")
    (row,) = [row for row in rows if (row.task, row.metric) == (task, metric)]
    return row


def test_the_top_genes_are_the_planted_markers(planted_cells, found):
    assert found.classes == list(TYPES)
    hits = {}
    for name in TYPES:
        top = found.top_genes[found.top_genes["class"] == name]
        assert top["rank"].tolist() == [1, 2, 3, 4, 5, 6]
        assert len(planted_cells.markers(name)) == 6
        hits[name] = len(planted_cells.markers(name) & {*top["gene"]})
    # By chance 6 * 6 / 120 = 0.3 of each type would be among them.
    assert min(hits.values()) >= 3
    assert sum(hits.values()) >= 12
    first = found.top_genes[found.top_genes["rank"] == 1]
    assert (first["p_holm"] < 1e-4).all()
    assert (first["low"] > 0).all()


def test_the_checks_say_that_the_scores_hold(found):
    assert check(found.checks, "completeness_error_max").value < 0.02
    gain = check(found.checks, "drop_difference")
    assert gain.low > 0
    top, random = (check(found.checks, name) for name in ("drop_top", "drop_random"))
    assert gain.value == pytest.approx(top.value - random.value)
    for name in ("head", "model"):
        row = check(found.checks, f"correlation_shuffled_{name}")
        assert abs(row.value) < 0.5
        assert row.n == 120
    for name in TYPES:
        row = check(found.checks, "top_genes_shared_by_halves", name)
        assert row.value > 0.2
        assert row.n == (found.scores["class"] == name).groupby(found.scores["row"]).any().sum()


def test_scores_are_of_all_genes_of_each_cell_and_sum_to_the_change(planted_cells, found):
    scores = found.scores
    assert list(scores.columns) == [
        *("row", "cell", "label", "class", "gene", "symbol", "score"),
        *("score_genes", "score_expression"),
    ]
    assert scores["row"].is_monotonic_increasing
    assert scores["row"].nunique() == found.num_cells == 120
    expressed = planted_cells.adata[scores["row"].unique()].X
    assert scores.groupby("row").size().tolist() == np.diff(expressed.tocsr().indptr).tolist()
    np.testing.assert_allclose(
        scores["score"], scores["score_genes"] + scores["score_expression"], atol=1e-5
    )
    # The mean of a gene is over all cells of the class.
    row = found.top_genes.iloc[0]
    own = scores[(scores["class"] == row["class"]) & (scores["gene"] == row["gene"])]
    assert row["score"] == pytest.approx(own["score"].sum() / row["cells"], rel=1e-5)
    assert row["cells_with_gene"] == len(own)


def test_files_hold_the_same_bits_and_an_object_and_a_file_do_too(planted_cells, tmp_path):
    store, bundle = planted_cells.store, planted_cells.bundle
    expected = attribute(store, bundle, **QUICK)
    written = attribute_files(store, bundle.path, tmp_path / "out", **QUICK)
    assert written.scores is None
    read = pd.read_parquet(tmp_path / "out/attributions.parquet")
    for column in read.columns:
        assert np.array_equal(read[column].to_numpy(), expected.scores[column].to_numpy()), column
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "out/top_genes.parquet"), expected.top_genes
    )
    assert str(read_results(tmp_path / "out/checks.parquet")) == str(expected.checks)
    metadata = pq.read_schema(tmp_path / "out/attributions.parquet").metadata
    assert metadata[b"bundle_digest"].decode() == bundle.digest
    assert metadata[b"baseline"] == b"mask"
    assert (tmp_path / "out/top_genes.svg").read_bytes().startswith(b"<svg")
    quick = {**QUICK, "checks": False}
    from_object = attribute(planted_cells.adata, bundle, **quick)
    assert np.array_equal(from_object.scores["score"], expected.scores["score"])
    assert from_object.checks == []


def test_csv_replaces_what_an_earlier_run_left_only_when_allowed(planted_cells, tmp_path):
    store, bundle = planted_cells.store, planted_cells.bundle
    quick = {**QUICK, "max_cells": 6, "method": "rollout"}
    attribute_files(store, bundle, tmp_path, **quick)
    with pytest.raises(ExistingPathError, match=r"attributions.parquet exists already"):
        attribute_files(store, bundle, tmp_path, table_format="csv", **quick)
    quick["checks"] = False
    attribute_files(store, bundle, tmp_path, table_format="csv", overwrite=True, **quick)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"attributions.csv", "top_genes.csv", "top_genes.svg"}
    table = pd.read_csv(tmp_path / "attributions.csv")
    assert table["row"].nunique() == 6
    # All relevance that does not fall on [CLS] falls on genes.
    assert (table.groupby("row")["score"].sum() < 1).all()
    with pytest.raises(ConfigError, match=r"The format is 'xlsx'"):
        attribute_files(store, bundle, tmp_path, table_format="xlsx", **quick)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExistingPathError, match="is a file; give the path of a folder"):
        attribute_files(store, bundle, tmp_path / "file", **quick)


def test_another_bundle_is_compared_by_its_top_genes(planted_cells, tmp_path):
    store, bundle = planted_cells.store, planted_cells.bundle
    same = attribute(store, [bundle, bundle], **QUICK)
    other = bundle_of(list(planted_cells.adata.var_names), list(bundle.label_specs), seed=9)
    other.save(tmp_path / "other")
    quick = {**QUICK, "targets": "every"}
    different = attribute(store, [bundle, other], **quick)
    for name in TYPES:
        row = check(same.checks, "top_genes_shared_by_bundles", name)
        assert (row.value, row.bundle) == (1.0, bundle.digest)
        row = check(different.checks, "top_genes_shared_by_bundles", name)
        assert row.value < 0.7
        assert row.bundle == other.digest
    with pytest.raises(UsageError, match="1 further bundles were given and checks are off"):
        attribute(store, [bundle, other], checks=False, **QUICK)
    spec = LabelSpec(name="cell_type", classes=("a", "b"))
    foreign = bundle_of(list(planted_cells.adata.var_names), [spec])
    with pytest.raises(ConfigError, match="do not have the same classes of 'cell_type'"):
        attribute(store, [bundle, foreign], **QUICK)
    with pytest.raises(UsageError, match="No model was given"):
        attribute(store, [], **QUICK)


def test_a_number_is_explained_by_its_value(planted_cells):
    spec = LabelSpec(name="age", classes=(), kind="regression")
    bundle = bundle_of(list(planted_cells.adata.var_names), [spec])
    found = attribute(planted_cells.store, bundle, **QUICK)
    assert found.classes == ["value"]
    assert set(found.scores["class"]) == {"value"}
    (error,) = [row for row in found.checks if row.metric == "completeness_error_max"]
    assert (error.task, error.value < 0.05) == ("attribute:age", True)


def test_cells_that_the_model_does_not_see_are_counted_and_left_out(planted_cells, tmp_path):
    cells = planted_cells.adata[:8].copy()
    counts = cells.X.tolil()
    counts[2] = 0
    cells.X = counts.tocsr()
    found = attribute(cells, planted_cells.bundle, **QUICK)
    assert (found.num_cells, found.num_unseen) == (7, 1)
    assert 2 not in set(found.scores["row"])
    assert "7 cells explained; the model sees no gene of 1 more" in found.lines()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    store, empty = convert(tmp_path / "cells.h5ad", tmp_path / "cells.store"), np.array([2])
    with pytest.raises(InputDataError, match="sees no gene of any of the 1 cells"):
        attribute_files(store, planted_cells.bundle, tmp_path / "out", rows=empty, **QUICK)
    assert not list((tmp_path / "out").iterdir())


def test_a_class_that_no_cell_is_given_is_an_error_that_says_what_to_do(planted_cells):
    rows = np.flatnonzero(planted_cells.adata.obs["cell_type"] == "type0")
    store, bundle = planted_cells.store, planted_cells.bundle
    quick = {**QUICK, "max_cells": 5, "checks": False}
    types = attribute(store, bundle, rows=rows, **quick).scores.groupby("row")["class"].first()
    rows = types.index[types == "type0"].to_numpy()
    with pytest.raises(InputDataError, match=r"gives none of .* the classes 'type2'.*every"):
        attribute(store, bundle, rows=rows, classes=["type2"], **quick)
    every = attribute(store, bundle, rows=rows, classes=["type2"], targets="every", **quick)
    assert set(every.scores["class"]) == {"type2"}
    assert every.scores["row"].nunique() == len(rows)


def test_a_class_without_a_gene_that_argues_for_it_is_named(found):
    without = found.top_genes[found.top_genes["class"] != "type1"]
    lines = replace(found, top_genes=without).lines()
    assert "type1: no gene argues for it; the cells have it by what they lack" in lines
    assert any(line.startswith("type0: ") and line.count(", ") == 5 for line in lines)


def test_a_bundle_of_sequences_is_refused(planted_cells):
    sequences = SequenceTokenizer()
    (spec,) = sequences.fields
    fields = (
        FieldInput(name=spec.name, encoder="embedding", vocabulary_size=spec.vocabulary_size),
    )
    sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 8}
    heads = (LabelHeadConfig(name="kind", num_classes=2),)
    bundle = Bundle(
        model=OmicsModel.build(ModelConfig(fields=fields, labels=heads, **sizes), seed=0),
        tokenizer=sequences,
        label_specs=[LabelSpec(name="kind", classes=("x", "y"))],
    )
    with pytest.raises(UsageError, match="'sequence' tokenizer and cannot read cells"):
        attribute(planted_cells.store, bundle, **QUICK)


def test_cells_are_drawn_by_the_seed_and_kept_in_order():
    options = AttributionOptions(max_cells=5)
    first = drawn_rows(100, None, options)
    assert len(first) == 5
    assert (np.diff(first) > 0).all()
    assert drawn_rows(100, None, options).tolist() == first.tolist()
    assert drawn_rows(100, None, replace(options, seed=1)).tolist() != first.tolist()
    assert drawn_rows(100, np.array([7, 3]), options).tolist() == [3, 7]


def test_a_figure_needs_matplotlib_before_any_work(planted_cells, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'omics-eval\[plots\]'"):
        attribute_files(planted_cells.store, planted_cells.bundle, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_convert_first_gives_the_same_as_the_file(planted_cells, tmp_path):
    quick = {**QUICK, "max_cells": 4, "checks": False}
    cells = planted_cells.adata[:20]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    store = convert(tmp_path / "cells.h5ad", tmp_path / "cells.store")
    first = attribute(tmp_path / "cells.h5ad", planted_cells.bundle, **quick)
    second = attribute(store, planted_cells.bundle, **quick)
    pd.testing.assert_frame_equal(first.scores, second.scores)
