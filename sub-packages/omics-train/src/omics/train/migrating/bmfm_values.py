"""Converters of single values of bmfm's configurations; `bmfm_keys.toml` names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omics.train.migrating.migration_rules import Changed, Dropped, one_of

if TYPE_CHECKING:
    from collections.abc import Callable

FIELD_NAMES = {
    "genes": "genes",
    "expressions": "expression",
    "label_expressions": "label_expression",
    "perturbations": "perturbation",
}
LOSS_NAMES = {
    "cross_entropy": "cross_entropy",
    "focal": "focal",
    "mse": "mse",
    "mae": "mae",
    "is_zero_bce": "is_zero_bce",
    "is_zero_focal": "is_zero_focal",
    "token_value": "token_value",
    "bce_with_logits": "bce_with_logits",
    "BCEWithLogitsLoss": "bce_with_logits",
    "hce": "hce",
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
POOLINGS = {
    "first_token": "first_token",
    "pooling_layer": "pooler",
    "mean_pooling": "mean_after_first",
}
ACCELERATORS = {"gpu": "cuda", "cuda": "cuda", "cpu": "cpu", "mps": "mps", "auto": "auto"}
PRECISIONS = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
FROZEN = {
    r"\.encoder\.": r"encoder\.",
    r"\.embeddings\.": r"embedding\.",
    r"\.pooler\.": r"pooler\.",
}
ADAPTED = {
    **dict.fromkeys(("query", "key", "value", "c_attn", "Wqkv"), ("qkv",)),
    **dict.fromkeys(("c_fc1", "c_fc2", "Wi"), ("up",)),
    "proj": ("out",),
    "c_proj": ("down",),
    "Wo": ("out", "down"),
    "dense": ("out", "up", "down"),
}
MIN_RESAMPLES = 200
CI_METHODS = {
    "wilson": "wilson",
    "bootstrap_quantiles": "bootstrap",
    "bootstrap_t_interval": "bootstrap_t",
}


def seed(value: Any) -> Any:
    """Return a seed."""
    return value if isinstance(value, int) else Dropped(f"{value!r} is no whole number")


def batch_size(value: Any) -> Any:
    """Return a batch size; that of a schedule is in the schedule."""
    if value == "scheduled":
        return Dropped("the schedule of the callback says it, in trainer.curriculum")
    return value


def order(value: Any) -> Any:
    """Return the order of the training cells."""
    return one_of({"True": "random", "False": "sequential"})(value)


def window(value: Any) -> Any:
    """Return how far a token sees to each side."""
    return value // 2 if isinstance(value, int) else Dropped(f"{value!r} is no whole number")


def positions(value: Any) -> Any:
    """Return the positions that are added to the inputs."""
    return one_of({"absolute": "learned", "none": "none"})(value)


def schedule(value: Any) -> Any:
    """Return the schedule that a number of decay steps asks for."""
    if value == -1:
        return "linear"
    return Changed("linear", "the rate falls in a straight line over all steps of the run")


def precision(value: Any) -> str:
    """Return Lightning's name of a precision."""
    return PRECISIONS.get(str(value), str(value))


def max_steps(value: Any) -> Any:
    """Return the number of steps; -1 was no limit."""
    return Dropped("-1 stands for no limit, as leaving it out does") if value == -1 else value


def metrics(value: Any) -> list[str]:
    """Return the names of metrics, which were mappings."""
    named = [each.get("name") if isinstance(each, dict) else each for each in value]
    renamed = {"nonzero_confusion_matrix": "confusion_matrix"}
    return [renamed.get(str(name), str(name)) for name in named]


def ci_method(value: Any) -> Any:
    """Return the method of intervals."""
    if value == "binomial":
        return Changed(
            "wilson",
            "the normal approximation left [0, 1], and served for what is no proportion as well",
        )
    return one_of(CI_METHODS)(value)


def num_bootstrap_runs(value: Any) -> Any:
    """Return how often the test cells are drawn."""
    if value == 0:
        return Dropped("0: the method alone says whether cells are drawn")
    if value < MIN_RESAMPLES:
        return Dropped(f"{value} are too few for quantiles, and more cost no inference")
    return value


def freeze(value: Any) -> Any:
    """Return patterns of what is frozen; true was the encoder, false nothing."""
    if value is False:
        return Dropped("false: nothing is frozen")
    if value is True:
        return [FROZEN[r"\.encoder\."]]
    parts = str(value).split("|")
    if any(part not in FROZEN for part in parts):
        return Dropped(f"{value!r} names parameters of bmfm: write a pattern of ours instead")
    return [FROZEN[part] for part in parts]


def target_modules(value: Any) -> Any:
    """Return which linear layers have adapters."""
    names = [name for each in value for name in ADAPTED.get(str(each), ("",))]
    if "" in names:
        return Dropped(f"{value!r} is not known here; known are {', '.join(ADAPTED)}")
    return list(dict.fromkeys(names))


CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "seed": seed,
    "field_name": one_of(FIELD_NAMES),
    "loss_name": one_of(LOSS_NAMES),
    "activation": one_of(ACTIVATIONS),
    "accelerator": one_of(ACCELERATORS),
    "batch_size": batch_size,
    "order": order,
    "window": window,
    "positions": positions,
    "schedule": schedule,
    "precision": precision,
    "max_steps": max_steps,
    "metrics": metrics,
    "ci_method": ci_method,
    "freeze": freeze,
    "num_bootstrap_runs": num_bootstrap_runs,
    "target_modules": target_modules,
}


def pooling(value: Any) -> Any:
    """Return the name of a pooling, or of several.

    Args:
        value: a name, the position of a token, or a list of these.
    """
    parts = value if isinstance(value, list) else [value]
    names = [
        f"token:{each}" if isinstance(each, int) else POOLINGS.get(str(each)) for each in parts
    ]
    if None in names:
        return Dropped(f"{value!r} is not known here; known are {', '.join(POOLINGS)}")
    return "+".join(str(name) for name in names)
