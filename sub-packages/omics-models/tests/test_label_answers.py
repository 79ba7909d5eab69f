from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax

from omics.models import InferenceBatch
from omics.models.label_answers import (
    best_class,
    is_number,
    label_sets,
    probabilities,
    probability_names,
)
from omics.tokenizers import LabelSpec

LOGITS = np.array([[2, -1, 0.5], [-80, 90, 0], [-1, -2, -3], [np.nan] * 3], np.float32)


def batch_of(logits):
    return InferenceBatch(
        rows=np.arange(len(logits)),
        embeddings=np.zeros((len(logits), 1), np.float32),
        logits={"x": logits},
        num_tokens=np.ones(len(logits), np.int64),
        reasons=np.array([0, 0, 0, 2], np.int8)[: len(logits)],
    )


def spec_of(kind, **more):
    return LabelSpec(name="x", classes=("a", "b", "c"), kind=kind, **more)


def test_a_class_has_a_softmax_and_its_best_answer():
    spec = spec_of("class")
    found = probabilities(spec, batch_of(LOGITS))
    assert found.dtype == np.float32
    assert np.allclose(found[:3], softmax(LOGITS[:3].astype(np.float64), axis=1), atol=1e-7)
    assert np.isnan(found[3]).all()
    codes, sure = best_class(spec, batch_of(LOGITS))
    assert codes.tolist() == [0, 1, 0, -1]
    assert np.array_equal(sure, [*found[[0, 1, 2], [0, 1, 0]], np.nan], equal_nan=True)
    assert probability_names(spec) == ["a", "b", "c"]


def test_a_node_has_the_probability_of_what_is_below_it():
    spec = spec_of("hierarchy", nodes={"a or c": (0, 2), "any": (0, 1, 2)})
    found = probabilities(spec, batch_of(LOGITS))
    assert probability_names(spec) == ["a", "b", "c", "a or c", "any"]
    assert found.shape == (4, 5)
    assert np.allclose(found[:3, 3], found[:3, 0] + found[:3, 2], atol=1e-7)
    assert np.allclose(found[:3, 4], 1)
    assert best_class(spec, batch_of(LOGITS))[0].tolist() == [0, 1, 0, -1]


def test_several_labels_are_each_as_likely_as_they_are():
    spec = spec_of("multilabel")
    found = probabilities(spec, batch_of(LOGITS))
    assert np.allclose(found[:3], expit(LOGITS[:3].astype(np.float64)), atol=1e-7)
    assert label_sets(spec, batch_of(LOGITS)).tolist() == ["a|c", "b|c", "", None]


@pytest.mark.parametrize(
    ("spec", "number"),
    [
        (LabelSpec(name="x", classes=(), kind="regression"), True),
        (LabelSpec(name="x", classes=("x",)), True),
        (LabelSpec(name="x", classes=("a", "b")), False),
    ],
)
def test_a_number_is_a_regression_or_the_one_output_of_a_published_model(spec, number):
    assert is_number(spec) == number
