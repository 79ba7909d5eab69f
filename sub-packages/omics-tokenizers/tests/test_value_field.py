from __future__ import annotations

import numpy as np
import pytest

from omics.data.cell_batch import CellBatch
from omics.data.errors import ConfigError, InputDataError, UnknownNameError
from omics.tokenizers import ValueField, Vocabulary

GENES = Vocabulary.of_names(["A", "B"])


def batch(**fields):
    length = len(next(iter(fields.values())))
    return CellBatch(
        indptr=np.array([0, length]),
        genes=np.arange(length, dtype=np.uint16),
        counts=np.ones(length, np.uint8),
        rows=np.array([0]),
        num_genes=length,
        fields=fields,
    )


def test_continuous_values_stay_and_special_tokens_are_negative():
    field = ValueField(name="expressions", source="x")
    assert field.encode(batch(x=np.array([0.5, 2]))).tolist() == [0.5, 2.0]
    assert field.encode(batch(x=np.array([1, 2]))).dtype == np.float32
    assert field.special(GENES, ["[CLS]", "[SEP]"]).tolist() == [-3.0, -4.0]
    spec = field.spec(GENES, ["[CLS]"])
    assert (spec.name, spec.kind, spec.vocabulary_size) == ("expressions", "continuous", 5)
    assert (spec.special_ids, spec.mask_id) == ((0, 2, 4), 4)


def test_the_specials_of_a_continuous_field_are_those_that_occur():
    genes = Vocabulary(["A", "<c>", "<m>", "<x>"], specials={"cls": "<c>"}, other_specials=["<x>"])
    spec = ValueField().spec(genes, ["<c>"])
    assert (spec.special_ids, spec.vocabulary_size, spec.mask_id) == ((1,), 2, None)
    assert ValueField().spec(genes, []).vocabulary_size == 1


def test_bins_have_a_vocabulary_of_their_own():
    field = ValueField.binned(3)
    assert field.source == "bin"
    assert field.encode(batch(bin=np.array([2, 0, 1], np.int32))).tolist() == [7, 5, 6]
    spec = field.spec(GENES, ["[CLS]"])
    assert (spec.kind, spec.vocabulary_size, spec.mask_id) == ("discrete", 8, 4)
    assert np.isnan(spec.token_values[:5]).all()
    assert spec.token_values[5:] == (0.0, 1.0, 2.0)
    assert spec == ValueField.binned(3).spec(GENES, ["[CLS]"])


def test_bins_of_a_published_vocabulary_keep_their_ids():
    bins = Vocabulary(["1", "[CLS]", "0", "2"], specials={"cls": "[CLS]"})
    field = ValueField(source="bin", bins=bins)
    assert field.encode(batch(bin=np.array([0, 1, 2]))).tolist() == [2, 0, 3]
    assert field.special(GENES, ["[CLS]"]).tolist() == [1]
    with pytest.raises(ConfigError, match=r"no special token '\[SEP\]'.*they have \[CLS\]"):
        field.special(GENES, ["[CLS]", "[SEP]"])


@pytest.mark.parametrize("names", [[], ["0", "2"], ["low", "high"]])
def test_bins_must_be_named_by_their_numbers(names):
    with pytest.raises(ConfigError, match="must be named 0 to"):
        ValueField(bins=Vocabulary.of_names(names))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"bin": np.array([0, 3])}, InputDataError, "holds the bin 3; .* the bins 0 to 2"),
        ({"bin": np.array([-1, 1])}, InputDataError, "holds the bin -1"),
        ({"bin": np.array([1.0])}, InputDataError, "holds float64 and not whole numbers"),
        ({"bins": np.array([1])}, UnknownNameError, "carry no field 'bin'.*bin_quantile"),
    ],
)
def test_values_that_are_no_bins_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        ValueField.binned(3).encode(batch(**fields))


def test_the_json_form_gives_the_same_field():
    for field in (ValueField(name="a", source="b"), ValueField.binned(4, name="x", source="y")):
        assert ValueField.from_dict(field.to_dict()) == field
