from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

from omics.data.errors import ConfigError, InputDataError
from omics.tokenizers import FieldSpec, LabelSpec
from omics.tokenizers.fields import labelled_rows


def test_classes_are_sorted_and_missing_values_are_unlabelled():
    values = np.array(["b", None, "a", "b", float("nan")], dtype=object)
    label = LabelSpec.from_values("cell_type", values)
    assert label.classes == ("a", "b")
    assert label.encode(values).tolist() == [1, -100, 0, 1, -100]


def test_a_class_unseen_in_training_is_unlabelled():
    label = LabelSpec(name="cell_type", classes=("a", "b"))
    assert label.encode(np.array(["c", "a"], dtype=object)).tolist() == [-100, 0]


def test_numbers_are_read_as_names():
    label = LabelSpec.from_values("cluster", np.array([2, 1, 2]))
    assert label.classes == ("1", "2")
    assert label.encode(np.array([1, 2])).tolist() == [0, 1]


def test_encoding_no_cells_gives_no_codes():
    label = LabelSpec(name="t", classes=("a", "b"))
    assert label.encode(np.array([], dtype=object)).tolist() == []
    assert label.encode(np.array([None, None], dtype=object)).tolist() == [-100, -100]


@pytest.mark.parametrize(
    ("values", "found"), [(["a", "a"], "only 'a'"), ([None, None], "no value at all")]
)
def test_fewer_than_two_classes_are_refused(values, found):
    with pytest.raises(InputDataError, match=found):
        LabelSpec.from_values("t", np.array(values, dtype=object))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="kind 'text'"):
        FieldSpec(name="genes", kind="text", vocabulary_size=3, special_ids=(), mask_id=None)


def test_special_tokens_of_a_field_are_told_from_its_values():
    genes = FieldSpec(
        name="genes", kind="discrete", vocabulary_size=6, special_ids=(0, 5), mask_id=5
    )
    assert genes.is_special(np.array([0, 1, 5])).tolist() == [True, False, True]
    assert genes.mask_value() == 5
    values = FieldSpec(
        name="expression", kind="continuous", vocabulary_size=2, special_ids=(1,), mask_id=1
    )
    assert values.is_special(np.array([0.0, -2.0, 3.5])).tolist() == [False, True, False]
    assert values.mask_value() == -2.0


def test_a_field_without_a_mask_token_cannot_be_masked():
    spec = FieldSpec(name="genes", kind="discrete", vocabulary_size=3, special_ids=(), mask_id=None)
    with pytest.raises(ConfigError, match="'genes' cannot be masked"):
        spec.mask_value()


def test_values_of_a_field_stand_for_numbers():
    bins = FieldSpec(
        name="bin",
        kind="discrete",
        vocabulary_size=3,
        special_ids=(0,),
        mask_id=0,
        token_values=(math.nan, 0.0, 2.5),
    )
    found = pickle.loads(pickle.dumps(bins)).numbers(np.array([2, 1, 0]))
    assert found.dtype == np.float32
    assert found[:2].tolist() == [2.5, 0.0]
    assert np.isnan(found[2])
    assert bins == replace(bins)
    values = replace(bins, kind="continuous", token_values=())
    assert values.numbers(np.array([0.0, -1.0, 3.5])).tolist() == [0.0, -1.0, 3.5]


def test_special_ids_outside_the_field_are_refused():
    with pytest.raises(ConfigError, match=r"has 3 ids and special ones at \(3,\)"):
        FieldSpec(name="g", kind="discrete", vocabulary_size=3, special_ids=(3,), mask_id=None)


def test_several_labels_of_a_cell_are_ones_in_a_row():
    values = np.array(["b|a", None, "c", "a", "d|a", "d"], dtype=object)
    label = LabelSpec.from_values("tissues", values[:4], kind="multilabel")
    assert label.classes == ("a", "b", "c")
    assert label.num_outputs == 3
    encoded = label.encode(values)
    assert encoded.dtype == np.float32
    assert encoded[[0, 2, 3, 4]].tolist() == [[1, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]]
    # Nothing is known of a cell without a label, and of one whose labels no training cell has.
    assert np.isnan(encoded[[1, 5]]).all()
    assert labelled_rows(encoded).tolist() == [0, 2, 3, 4]


def test_a_regression_label_is_a_number():
    values = np.array([3.5, None, 2, float("nan")], dtype=object)
    label = LabelSpec.from_values("age", values, kind="regression")
    assert (label.classes, label.num_outputs) == ((), 1)
    encoded = label.encode(values)
    assert encoded.dtype == np.float32
    assert encoded[[0, 2]].tolist() == [3.5, 2.0]
    assert labelled_rows(encoded).tolist() == [0, 2]
    with pytest.raises(InputDataError, match="holds 'old', which is no finite number"):
        label.encode(np.array(["3", "old"], dtype=object))
    with pytest.raises(InputDataError, match="'age' holds no number"):
        LabelSpec.from_values("age", np.array([None, None], dtype=object), kind="regression")


HIERARCHY = LabelSpec(
    name="t", classes=("a", "b", "c"), kind="hierarchy", nodes={"ab": (0, 1), "all": (0, 1, 2)}
)


def test_nodes_of_a_hierarchy_follow_its_classes():
    values = np.array(["all", "b", None, "x", "ab"], dtype=object)
    assert HIERARCHY.encode(values).tolist() == [4, 1, -100, -100, 3]
    assert labelled_rows(HIERARCHY.encode(values)).tolist() == [0, 1, 4]
    assert HIERARCHY.below().astype(int).tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [1, 1, 0],
        [1, 1, 1],
    ]


def test_the_probability_of_a_node_is_the_sum_of_those_below():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]], np.float32)
    rolled = HIERARCHY.roll_up(probabilities)
    assert rolled.dtype == np.float32
    assert np.allclose(rolled, [[0.8, 1.0], [0.0, 1.0]])
    plain = LabelSpec(name="t", classes=("a", "b", "c"))
    assert plain.roll_up(probabilities).shape == (2, 0)


@pytest.mark.parametrize(
    "spec",
    [
        LabelSpec(name="t", classes=("a", "b")),
        LabelSpec(name="t", classes=("a", "b"), kind="multilabel"),
        LabelSpec(name="t", classes=(), kind="regression"),
        HIERARCHY,
    ],
)
def test_a_label_survives_as_json(spec):
    assert LabelSpec.from_json("t", json.loads(json.dumps(spec.to_json()))) == spec


def test_plain_classes_are_a_list_in_json():
    assert LabelSpec(name="t", classes=("a", "b")).to_json() == ["a", "b"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"kind": "clas"}, "Did you mean 'class'"),
        ({"nodes": {"ab": (0, 1)}}, "has nodes but is no hierarchy"),
    ],
)
def test_a_label_that_makes_no_sense_is_refused(parts, message):
    with pytest.raises(ConfigError, match=message):
        LabelSpec(name="t", classes=("a", "b"), **parts)


def test_values_of_tokens_are_as_many_as_ids():
    with pytest.raises(ConfigError, match="has 3 ids and 2 values for them"):
        FieldSpec(
            name="g",
            kind="discrete",
            vocabulary_size=3,
            special_ids=(),
            mask_id=None,
            token_values=(0.0, 1.0),
        )
