from __future__ import annotations

import sys

import numpy as np
import pytest

from omics.data.errors import ConfigError, InputDataError, MissingExtraError, MissingPathError
from omics.tokenizers.ontology_labels import Ontology
from omics.train.label_columns import LabelColumn, label_columns

OBO = """format-version: 1.2

[Term]
id: C:0
name: cell

[Term]
id: C:1
name: lymphocyte
is_a: C:0 ! cell

[Term]
id: C:2
name: T cell
is_a: C:1 ! lymphocyte

[Term]
id: C:3
name: CD4 T cell
is_a: C:2 ! T cell

[Term]
id: C:4
name: CD8 T cell
is_a: C:2 ! T cell
relationship: part_of C:9

[Term]
id: C:5
name: B cell
is_a: C:1 ! lymphocyte

[Term]
id: C:6
name: monocyte
is_a: C:0 ! cell

[Term]
id: C:7
name: old cell
is_obsolete: true

[Term]
id: C:9
name: blood
"""


@pytest.fixture
def obo(tmp_path):
    path = tmp_path / "cells.obo"
    path.write_text(OBO)
    return path


def test_the_most_specific_labels_are_the_classes_and_all_above_are_nodes(obo):
    column = LabelColumn(label_column_name="t", ontology_file=str(obo))
    values = np.array(["CD4 T cell", "T cell", "C:5", None, "CD8 T cell", "monocyte"], dtype=object)
    spec = column.spec(values)
    assert spec.kind == "hierarchy"
    assert spec.classes == ("C:5", "CD4 T cell", "CD8 T cell", "monocyte")
    assert dict(spec.nodes) == {
        "T cell": (1, 2),
        "cell": (0, 1, 2, 3),
        "lymphocyte": (0, 1, 2),
    }
    assert spec.encode(values).tolist() == [1, 4, 0, -100, 2, 3]
    # A label of a validation cell that no training cell has, but that stands above them.
    assert spec.encode(np.array(["lymphocyte", "old cell"], dtype=object)).tolist() == [6, -100]
    assert (column.head(spec).num_classes, column.head(spec).name) == (4, "t")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["T cell", "B cel"], "'B cel' of column 't' is no term.*Did you mean 'B cell'"),
        (["B cell", "C:5", "T cell"], "are one term"),
        (["T cell", "CD4 T cell"], "holds 1 classes"),
        (["old cell", "B cell"], "'old cell' of column 't' is no term"),
    ],
)
def test_labels_that_are_no_classes_are_refused(obo, labels, message):
    with pytest.raises(InputDataError, match=message):
        Ontology.read(obo).label_spec("t", labels)


def test_a_file_that_is_no_ontology_is_refused(tmp_path):
    with pytest.raises(MissingPathError, match=r"no ontology file .*Download the \.obo"):
        Ontology.read(tmp_path / "none.obo")
    (tmp_path / "x.obo").write_text("cell\ttype\n1\t2\n")
    with pytest.raises(InputDataError, match=r"x\.obo"):
        Ontology.read(tmp_path / "x.obo")


def test_without_obonet_one_line_says_what_to_install(obo, monkeypatch):
    monkeypatch.setitem(sys.modules, "obonet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'omics-tokenizers\[ontology\]'"):
        Ontology.read(obo)


def test_entries_are_names_or_mappings():
    columns = label_columns(
        ["a", {"label_column_name": "b", "kind": "regression", "token": 2, "depth": 2}]
    )
    assert columns[0] == LabelColumn(label_column_name="a")
    assert (columns[1].kind, columns[1].token, columns[1].depth) == ("regression", 2, 2)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["a", "a"], "holds 'a' twice"),
        ([3], "holds 3; give the name of a column"),
        ([{"kind": "class"}], "with label_column_name"),
        ([{"label_column_name": "a", "knd": "class"}], "no key 'knd'.*Did you mean 'kind'"),
        ([{"label_column_name": "a", "kind": "clas"}], "Did you mean 'class'"),
        ([{"label_column_name": "a", "depth": "2"}], "depth is '2'; expected int"),
        (
            [{"label_column_name": "a", "kind": "regression", "ontology_file": "x"}],
            "leave one out",
        ),
        ([{"label_column_name": "a", "gradient_reversal": -1.0}], "must not be negative"),
        (
            [{"label_column_name": "a", "gradient_reversal": 1.0, "reversal_schedule": "dan"}],
            "Did you mean 'dann'",
        ),
        (
            [{"label_column_name": "a", "reversal_schedule": "dann"}],
            "and no gradient_reversal",
        ),
        ([{"label_column_name": "a", "reversal_head_steps": 5}], "of a reversed head alone"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(entries, message):
    with pytest.raises(ConfigError, match=message):
        label_columns(entries)
