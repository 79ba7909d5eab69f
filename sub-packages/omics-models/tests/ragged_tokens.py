"""Random ragged tokens and small models for the tests of this package."""

from __future__ import annotations

import numpy as np

from omics.models import ModelConfig, OmicsModel
from omics.models.model_config import FieldHeadConfig, FieldInput, LabelHeadConfig, WcedConfig
from omics.tokenizers import TokenBatch

NUM_GENES = 40


def small_config(**changes):
    settings = {
        "fields": (
            FieldInput(name="genes", encoder="embedding", vocabulary_size=NUM_GENES + 5),
            FieldInput(name="expression", encoder="mlp", vocabulary_size=5, scaled_by="genes"),
        ),
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 48,
        "dropout": 0.0,
        "embedding_std": 0.5,
        "pooling": "mean",
    }
    return ModelConfig(**{**settings, **changes})


def heads():
    return {
        "field_heads": (FieldHeadConfig(field="expression", kind="regression"),),
        "wced": (WcedConfig(field="expression"),),
        "labels": (LabelHeadConfig(name="cell.type", num_classes=3),),
    }


def small_model(seed=0, backend="loop", **changes):
    return OmicsModel.build(small_config(**changes), seed=seed, backend=backend).eval()


def random_tokens(lengths, seed=0):
    rng = np.random.default_rng(seed)
    total = int(sum(lengths))
    return TokenBatch(
        fields={
            "genes": rng.integers(5, NUM_GENES + 5, total).astype(np.int32),
            "expression": rng.exponential(1.0, total).astype(np.float32),
        },
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        rows=np.arange(len(lengths), dtype=np.int64),
    )
