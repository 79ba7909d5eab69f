"""The model of a bmfm configuration: what each of its architectures is, as switches of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omics.train.migrating.bmfm_classes import ARCHITECTURES, look_up
from omics.train.migrating.migration_rules import Dropped

if TYPE_CHECKING:
    from omics.train.migrating.migration_draft import Draft

_BERT: dict[str, Any] = {
    "norm": "post",
    "final_norm": False,
    "num_layers": 12,
    "num_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "dropout": 0.1,
    "layer_norm_eps": 1e-12,
    "embedding_std": 0.02,
}
SWITCHES: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "performer": {**_BERT, "attention": "favor"},
    "nystromformer": {
        **_BERT,
        "attention": "nystrom",
        "activation": "gelu_tanh",
        "layer_norm_eps": 1e-5,
        "conv_kernel": 65,
    },
    "modernbert": {
        "first_norm": False,
        "norm_bias": False,
        "glu": True,
        "bias": False,
        "positions": "rope",
        "rope_theta": 160_000.0,
        "window": 64,
        "num_layers": 22,
        "num_heads": 12,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "dropout": 0.0,
    },
    "llama": {
        "norm_kind": "rms",
        "first_norm": False,
        "final_norm": False,
        "glu": True,
        "bias": False,
        "activation": "silu",
        "dropout": 0.0,
        "layer_norm_eps": 1e-12,
    },
}


def model(draft: Draft) -> None:
    """Set the switches of a new model, and the sizes that its class had by default.

    Args:
        draft: after its rules.
    """
    if draft.old.get("model") is None:
        return
    found = look_up(draft.old.get("model._target_"), ARCHITECTURES, "model")
    if isinstance(found, Dropped):
        draft.drop("model._target_", found.why)
        found = "bert"
    if found == "llama":
        draft.drop("model.hidden_act", "its feed-forward layers are gated by silu")
        draft.set("model.activation", "silu")
        # As the class does: two thirds of four times the width, up to a multiple of 256.
        width = int(8 * draft.get("model.hidden_size", 384) / 3)
        draft.set_defaults({"model.intermediate_size": -(-width // 256) * 256})
    labelled = bool(draft.get("label_columns"))
    of_mean = draft.old.get("model.classifier_pooling") == "mean"
    pooled = "mean" if of_mean else "first_token"
    if labelled and found != "modernbert":
        pooled = "pooler"
        draft.drop("model.classifier_pooling", "labels are read from the pooler")
    common = {
        "embedding_norm": True,
        "pooler": labelled and found != "modernbert",
        "pooling": pooled,
        "pooled_norm": False,
        "field_transform": "shared",
    }
    for key, value in {**common, **SWITCHES[found]}.items():
        if draft.get(f"model.{key}") is None:
            draft.set(f"model.{key}", value)
    if draft.get("model.positions", "none") == "none":
        draft.remove("model.max_positions")
        draft.drop("model.max_position_embeddings", "nothing is added for positions")
    if draft.get("model.positions") == "rope":
        draft.remove("model.max_positions")
        draft.drop("model.max_position_embeddings", "rotary positions have no table")
