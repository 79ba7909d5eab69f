from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import ConfigError
from omics.tokenizers import SPECIAL_TOKENS, Vocabulary
from omics.tokenizers.vocabulary import MASK_ID, UNK_ID, special_value


def test_ordinary_tokens_follow_the_special_ones():
    vocabulary = Vocabulary(["A", "B"])
    assert len(vocabulary) == len(SPECIAL_TOKENS) + 2
    assert vocabulary.ids(["B", "?", "A"]).tolist() == [6, UNK_ID, 5]
    assert [vocabulary.name(i) for i in (0, 4, 5, 6)] == ["[PAD]", "[MASK]", "A", "B"]


def test_a_repeated_name_is_refused():
    with pytest.raises(ConfigError, match="repeats 1 names, first 'A'"):
        Vocabulary(["A", "B", "A"])


def test_digest_depends_on_names_and_order():
    digests = {Vocabulary(names).digest for names in (["A", "B"], ["B", "A"], ["AB"])}
    assert len(digests) == 3


def test_special_values_are_negative_and_distinct():
    values = np.array([special_value(i) for i in range(len(SPECIAL_TOKENS))])
    assert (values < 0).all()
    assert len(set(values.tolist())) == len(values)
    assert special_value(MASK_ID) == -5.0
