from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import ConfigError, InputDataError
from omics.tokenizers import FieldSpec, LabelSpec


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


def test_special_ids_outside_the_field_are_refused():
    with pytest.raises(ConfigError, match=r"has 3 ids and special ones at \(3,\)"):
        FieldSpec(name="g", kind="discrete", vocabulary_size=3, special_ids=(3,), mask_id=None)
