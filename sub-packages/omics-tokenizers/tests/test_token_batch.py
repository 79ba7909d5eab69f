from __future__ import annotations

import numpy as np
import pytest

from omics.tokenizers import TokenBatch


def batch():
    return TokenBatch(
        fields={"genes": np.array([2, 5, 6, 2], np.int32)},
        offsets=np.array([0, 3, 4], np.int64),
        rows=np.array([7, 9], np.int64),
        labels={"t": np.array([0, -100], np.int64)},
    )


def test_cell_of_token_and_lengths():
    assert batch().lengths.tolist() == [3, 1]
    assert batch().cell_of_token().tolist() == [0, 0, 0, 1]


def test_padding_happens_in_one_function_and_marks_real_tokens():
    values, mask = batch().padded("genes", pad_value=0)
    assert values.tolist() == [[2, 5, 6], [2, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_to_torch_shares_memory_on_the_cpu():
    tokens = batch()
    tensors = tokens.to_torch()
    tokens.fields["genes"][0] = 99
    assert int(tensors.fields["genes"][0]) == 99
    assert tensors.labels["t"].tolist() == [0, -100]


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 offsets do not describe 2 cells"):
        TokenBatch(fields={"g": np.zeros(1)}, offsets=np.zeros(2), rows=np.zeros(2))
    with pytest.raises(ValueError, match="unequal length"):
        TokenBatch(
            fields={"g": np.zeros(1), "e": np.zeros(2)}, offsets=np.array([0, 1]), rows=np.zeros(1)
        )
