"""Small BiomedSciAI checkpoints as they are published: a Lightning archive and its vocabularies."""

from __future__ import annotations

import contextlib
import json
import sys
import types

import bmfm_reference as reference
import torch

SPECIALS = ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]
_CLASSES = {"scbert": "SCBertConfig", "scmodernbert": "SCModernBertConfig",
            "scllama": "LlamaForMultiTaskConfig"}  # fmt: skip


@contextlib.contextmanager
def named_classes():
    """Make classes of the reference's names for as long as something is pickled."""
    names = ("bmfm_targets", "bmfm_targets.config")
    modules = {name: types.ModuleType(name) for name in names}
    config = modules["bmfm_targets.config"]
    for name in [*_CLASSES.values(), "FieldInfo", "LabelColumnInfo", "TrainerConfig"]:
        made = type(name, (), {"__module__": config.__name__, "__qualname__": name})
        setattr(config, name, made)
    sys.modules.update(modules)
    try:
        yield config
    finally:
        for name in names:
            del sys.modules[name]


def as_object(kind, values):
    made = kind()
    made.__dict__.update(values)
    return made


def class_names(config):
    """Return `{label: {class: number}}` as a trainer saves it."""
    return {
        each["label_column_name"]: {
            f"{each['label_column_name']} {n}": n for n in range(each["n_unique_values"])
        }
        for each in config["label_columns"] or []
    }


def write_archive(path, config, state, *, labels=None, pooling="first_token"):
    """Write a Lightning archive with the configuration as objects of the reference's classes."""
    with named_classes() as classes:
        values = {key: value for key, value in config.items() if key != "model_type"}
        values["fields"] = [
            as_object(classes.FieldInfo, each) if isinstance(each, dict) else each
            for each in config["fields"]
        ]
        columns = config["label_columns"]
        if columns is not None:
            columns = [as_object(classes.LabelColumnInfo, each) for each in columns]
        values["label_columns"] = columns
        kind = getattr(classes, _CLASSES[config["model_type"]])
        trainer = as_object(
            classes.TrainerConfig, {"pooling_method": pooling, "betas": (0.9, 0.99)}
        )
        value = {
            "epoch": 1,
            "pytorch-lightning_version": "2.6.0",
            "state_dict": {f"model.{name}": each for name, each in state.items()},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
            "hyper_parameters": {
                "model_config": as_object(kind, values),
                "trainer_config": trainer,
                "label_dict": class_names(config) if labels is None else labels,
            },
        }
        torch.save(value, path)
    return path


def write_vocabularies(
    folder, genes, *, extra=(), more_specials=(), front=("[CLS]",), size=reference.NUM_GENES
):
    """Write `tokenizers/genes/tokenizer.json`: special tokens, genes, further special tokens."""
    first = [*SPECIALS, *more_specials]
    count = size - len(first) - len(extra)
    tokens = [*first, *genes[:count], *extra]
    added = [
        {"id": number, "content": token, "special": True}
        for number, token in enumerate(tokens)
        if token.startswith("[")
    ]
    single = [
        *({"SpecialToken": {"id": token, "type_id": 0}} for token in front),
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    value = {
        "version": "1.0",
        "added_tokens": added,
        "post_processor": {"type": "TemplateProcessing", "single": single},
        "model": {
            "type": "WordLevel",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "unk_token": "[UNK]",
        },
    }
    inside = folder / "tokenizers" / "genes"
    inside.mkdir(parents=True)
    (inside / "tokenizer.json").write_text(json.dumps(value))
    return tokens
