from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.errors import ConfigError
from omics.tokenizers import Vocabulary
from omics.tokenizers.vocabulary import special_value


def test_our_own_layout_puts_the_special_tokens_first():
    vocabulary = Vocabulary.of_names(["A", "B"])
    assert vocabulary.tokens == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "B")
    assert vocabulary.ids(["B", "?", "A", "[CLS]"]).tolist() == [6, -1, 5, 2]
    assert [vocabulary.id_of(role) for role in ("pad", "unk", "cls", "sep", "mask")] == [*range(5)]
    assert vocabulary.name(6) == "B"
    assert vocabulary.special_ids == (0, 1, 2, 3, 4)


def test_further_special_tokens_follow_the_first_five():
    vocabulary = Vocabulary.of_names(["A"], other_specials=["[S]", "[T]"])
    assert vocabulary.ids(["[S]", "[T]", "A"]).tolist() == [5, 6, 7]
    assert vocabulary.names == ("A",)


def test_special_tokens_may_stand_anywhere():
    vocabulary = Vocabulary(
        ["<pad>", "G1", "<mask>", "G2", "[S]"],
        specials={"pad": "<pad>", "mask": "<mask>"},
        other_specials=["[S]"],
    )
    assert vocabulary.names == ("G1", "G2")
    assert vocabulary.ordinary_ids.tolist() == [1, 3]
    assert vocabulary.is_special.tolist() == [True, False, True, False, True]
    assert vocabulary.id_of("mask") == 2
    assert vocabulary.id_of("cls") is None


def test_a_role_that_is_missing_is_named_with_what_needs_it():
    vocabulary = Vocabulary(["<pad>", "G"], specials={"pad": "<pad>"})
    with pytest.raises(ConfigError, match="append_sep needs a special token with the role 'sep'"):
        vocabulary.required("sep", needed_for="append_sep")
    assert vocabulary.required("pad", needed_for="padding") == "<pad>"


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (["A", "B", "A"], {"specials": {}}, "repeats 1 tokens, first 'A'"),
        (["A"], {"specials": {"pad": "[PAD]"}}, r"'\[PAD\]' is not among the 1 tokens"),
        (["A"], {"specials": {}, "other_specials": ["[S]"]}, r"'\[S\]' is not among"),
        (["A"], {"specials": {"msk": "A"}}, "role 'msk'. Did you mean 'mask'"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(tokens, options, message):
    with pytest.raises(ConfigError, match=message):
        Vocabulary(tokens, **options)


def test_a_gene_named_like_a_special_token_is_refused():
    with pytest.raises(ConfigError, match=r"repeats 1 tokens, first '\[CLS\]'"):
        Vocabulary.of_names(["A", "[CLS]"])


@given(st.lists(st.text(max_size=3), unique=True, max_size=8), st.data())
def test_the_json_form_gives_the_same_vocabulary(tokens, data):
    picked = data.draw(st.lists(st.sampled_from(tokens), unique=True)) if tokens else []
    specials = dict(zip(("pad", "mask"), picked, strict=False))
    vocabulary = Vocabulary(tokens, specials=specials, other_specials=picked[2:])
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert again == vocabulary
    assert again.digest == vocabulary.digest
    ordinary = [token for token in tokens if token not in picked]
    assert vocabulary.names == tuple(ordinary)
    assert vocabulary.ids(tokens).tolist() == list(range(len(tokens)))


def test_digest_depends_on_names_order_and_roles():
    plain = [Vocabulary.of_names(names) for names in (["A", "B"], ["B", "A"], ["AB"])]
    roles = [Vocabulary(["A", "B"], specials=s) for s in ({}, {"pad": "A"}, {"mask": "A"})]
    assert len({each.digest for each in [*plain, *roles]}) == 6


def test_special_values_are_negative_and_distinct():
    values = np.array([special_value(i) for i in range(5)])
    assert values.tolist() == [-1, -2, -3, -4, -5]
