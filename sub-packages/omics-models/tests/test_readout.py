from __future__ import annotations

import numpy as np
import pytest
import torch
from ragged_tokens import random_tokens, small_config, small_model

from omics.data.errors import ConfigError
from omics.models import Readout, run_tokens
from omics.models.ragged_layout import RaggedLayout


def embedded(model, tokens, **options):
    readout = Readout.of(model.model_config, **options)
    (result,) = run_tokens(model, [tokens], readout=readout)
    assert result.embeddings.shape == (len(tokens), readout.width)
    return result.embeddings


@pytest.fixture
def tokens():
    return random_tokens([70, 3, 40])


def hidden_of(model, tokens, layer):
    """Return the hidden states of a layer, block by block."""
    layout = RaggedLayout.from_offsets(torch.from_numpy(tokens.offsets))
    with torch.inference_mode():
        hidden = model.embedding(tokens.to_torch().fields, layout)
        for block in model.encoder.layers[:layer]:
            hidden = block(hidden, layout, None)
        return (model.encoder.norm(hidden) if layer is None else hidden).numpy()


def means(hidden, tokens):
    parts = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    return np.stack([hidden[a:b].mean(0) for a, b in parts])


@pytest.mark.parametrize(
    ("layer", "number"), [(None, None), (0, 0), (1, 1), (2, 2), (-1, 2), (-3, 0)]
)
def test_a_layer_is_what_leaves_that_block(tokens, layer, number):
    model = small_model()
    found = embedded(model, tokens, pooling="mean", layer=layer)
    assert np.allclose(found, means(hidden_of(model, tokens, number), tokens), atol=1e-5)


def test_without_a_choice_it_is_the_pooled_row(tokens):
    model = small_model(pooling="mean")
    with torch.inference_mode():
        pooled = model(tokens.to_torch()).pooled.numpy()
    for options in ({}, {"pooling": "pooled"}):
        assert np.array_equal(embedded(model, tokens, **options), pooled)
    # The pooled row has a norm of its own; the pooling of the same name has none.
    assert not np.allclose(embedded(model, tokens, pooling="mean"), pooled)


def test_without_a_choice_it_is_what_the_bundle_says(tokens):
    model = small_model(embedding_pooling="mean+first_token", embedding_layer=1)
    wanted = embedded(model, tokens, pooling="mean+first_token", layer=1)
    assert np.array_equal(embedded(model, tokens), wanted)
    # A pooling that is asked for is of the final hidden states; a layer keeps the pooling.
    assert not np.array_equal(embedded(model, tokens, pooling="mean+first_token"), wanted)
    assert np.array_equal(
        embedded(model, tokens, layer=2),
        embedded(model, tokens, pooling="mean+first_token", layer=-1),
    )
    only_layer = small_model(pooling="mean", embedding_layer=1)
    assert np.array_equal(
        embedded(only_layer, tokens), embedded(only_layer, tokens, pooling="mean", layer=1)
    )


def test_poolings_stand_side_by_side(tokens):
    model = small_model(pooler=True)
    names = ["token:1", "mean_after_first", "pooler", "pooler_of_mean"]
    joined = embedded(model, tokens, pooling="+".join(names))
    for place, name in enumerate(names):
        assert np.array_equal(
            joined[:, 32 * place : 32 * (place + 1)], embedded(model, tokens, pooling=name)
        )


def test_a_model_without_a_pooler_has_no_such_embedding():
    with pytest.raises(ConfigError, match=r"pooling=pooler needs model\.pooler=true"):
        Readout.of(small_config(), pooling="pooler")


@pytest.mark.parametrize(
    ("pooling", "tokens"),
    [("mean", 1), ("token:0", 1), ("mean+token:3", 4), ("mean_after_first", 2), ("pooled", 2)],
)
def test_how_many_tokens_a_row_is_made_of(pooling, tokens):
    config = small_config(pooling="mean_after_first")
    assert Readout.of(config, pooling=pooling).min_tokens == tokens


def test_it_says_what_it_is():
    config = small_config()
    assert Readout.of(config).to_dict() == {"pooling": "pooled", "layer": "final"}
    assert Readout.of(config, pooling="mean", layer=-1).to_dict() == {
        "pooling": "mean",
        "layer": "2",
    }
