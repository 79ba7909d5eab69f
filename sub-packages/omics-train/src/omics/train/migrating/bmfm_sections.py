"""What a bmfm configuration says in several keys at once: tasks, data, split, labels, checkpoint.

- Fields, losses and preprocessing are in `bmfm_inputs`, the model in `bmfm_model_section`.
- With a checkpoint, its bundle brings tokenizer, preprocessing and sizes; a configuration without
  training needs nothing else.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError
from omics.train.migrating import bmfm_inputs, bmfm_model_section
from omics.train.migrating.bmfm_classes import (
    DATA_MODULES,
    STREAMED,
    TASKS,
    DataModule,
    class_name,
    look_up,
)
from omics.train.migrating.bmfm_values import pooling
from omics.train.migrating.migration_rules import DROPPED, Dropped

if TYPE_CHECKING:
    from omics.train.migrating.migration_draft import Draft

DEFAULTS_OF_TRAINING = {
    "data_module.batch_size": 32,
    "data_module.order": "sequential",
    "trainer.learning_rate": 1e-4,
    "trainer.warmup_steps": 0,
    "trainer.schedule": "constant",
    "trainer.weight_decay": 0.0,
    "trainer.betas": [0.9, 0.99],
    "trainer.gradient_clip_norm": 0.0,
    "trainer.max_epochs": 20,
    "trainer.precision": "16-mixed",
    "trainer.accelerator": "auto",
}
ADAPTER_PRESETS = ("scbert", "default", "llama", "scmodernbert")
ADAPTERS = {"r": 16, "alpha": 32, "dropout": 0.05, "use_dora": True}
FRACTIONS = {"train": 0.8, "dev": 0.1, "test": 0.1}

_KWARGS = "data_module.dataset_kwargs"
_RAW = "data_module.transform_kwargs"
_WITH_BUNDLE = "it comes with the bundle of the checkpoint"
_NOT_TRAINED = "nothing is trained; what a bundle needs comes with it"


def finish(draft: Draft) -> None:
    """Put together what single keys do not say.

    Args:
        draft: after all rules were applied.

    Raises:
        ConfigError: a configuration of sequences, or one without a task that is known here.
    """
    tasks = _tasks(draft)
    trains = "train" in tasks
    checkpoint = _checkpoint(draft, tasks)
    module = _data_module(draft)
    path = _path(draft, module)
    _split(draft, path, needed=bool({"train", "test"} & {*tasks}))
    _labels(draft, one_class_token=not checkpoint)
    if trains:
        bmfm_inputs.losses(draft)
        bmfm_inputs.fields(draft)
        bmfm_inputs.steps(draft)
        bmfm_inputs.masking(draft, column=module.column)
        _order(draft)
        _curriculum(draft)
        bmfm_model_section.model(draft)
        _adapters(draft)
        draft.set_defaults(DEFAULTS_OF_TRAINING)
        if checkpoint:
            _leave_to_bundle(draft)
    else:
        _leave_out_training(draft)
    _pooling(draft, of_model=trains and not checkpoint)


def _tasks(draft: Draft) -> list[str]:
    names = []
    for position, item in enumerate(draft.old.items("task")):
        where = f"task[{position}]"
        if "_target_" not in item:
            names.append("train")
            continue
        name = look_up(item["_target_"], TASKS, "task")
        if isinstance(name, Dropped):
            draft.drop_all(where, name.why)
        else:
            names.append(name)
    if draft.old.items("task") and not names:
        raise ConfigError(
            f"{draft.old.path} holds no task that is known here: {', '.join(TASKS)}. Name one."
        )
    draft.set("task", names or ["train"])
    return names or ["train"]


def _checkpoint(draft: Draft, tasks: list[str]) -> bool:
    """Set the bundle to start from; say whether there is one."""
    old = draft.old
    places = [f"task[{position}].checkpoint" for position in range(len(old.items("task")))]
    chosen = None
    for place in [*places, "model.checkpoint", "checkpoint"]:
        value = old.get(place)
        if value is None:
            continue
        if value in {"best", "last"}:
            draft.drop(place, "a task hands its bundle to the next by itself")
        elif chosen is None or value == chosen:
            chosen = str(value)
        else:
            draft.drop(place, f"another checkpoint goes first: {chosen}")
    if chosen is None:
        return False
    if "${" in chosen:
        draft.set("checkpoint", chosen)
        draft.steps.append(("", f"let {chosen} name a bundle, made by `omics-models convert`"))
        return True
    name = re.sub(r"\.(ckpt|pt|bin|safetensors)$", "", chosen.rstrip("/").rsplit("/", 1)[-1])
    bundle = f"bundles/{name}"
    published = re.fullmatch(r"[\w.-]+/[\w.-]+", chosen) and not chosen.endswith(".ckpt")
    source = f"hf:{chosen}" if published else chosen
    draft.set("checkpoint", bundle)
    draft.steps.append(
        (f"omics-models convert {shlex.quote(source)} {bundle}", "the checkpoint as a bundle")
    )
    return True


def _data_module(draft: Draft) -> DataModule:
    value = draft.old.get("data_module._target_")
    if value is None:
        return DataModule()
    name = class_name(value)
    if re.match(r"(DNA|SNP|StreamingSNP|StreamingHiC|StreamingInsulation|StreamingToken)", name):
        raise ConfigError(
            f"{draft.old.path} is about sequences ({name}); this translates configurations of "
            "cells. Sequences are read by omics-dna."
        )
    if name in STREAMED:
        draft.drop(
            "data_module._target_",
            "it reads what is no file of cells: make a store of it with `omics-data convert`, and "
            "give its path as input_file",
        )
        return DataModule()
    module = look_up(value, DATA_MODULES, "data module")
    if isinstance(module, Dropped):
        draft.drop("data_module._target_", module.why)
        return DataModule()
    assert isinstance(module, DataModule)
    if module.dataset:
        draft.set("data_module.dataset", module.dataset)
    else:
        draft.drop("data_module._target_", "any file of cells: data_module.path says which")
    return module


def _path(draft: Draft, module: DataModule) -> str:
    """Set the cells that are read; return them as a shell names them."""
    old = draft.old
    found = {**_named_files(draft), **_files_in_folder(draft, module)}
    if not found:
        return "INPUT"
    place, path = next(iter(found.items()))
    for other in list(found)[1:]:
        if found[other] != path:
            draft.drop(other, f"{path} is read")
    if path == old.get("input_file"):
        draft.change(place, "", new="input_file")
    else:
        draft.set("data_module.path", path)
    return in_shell(path)


def _named_files(draft: Draft) -> dict[str, str]:
    """Return files that are named, by their key; raw ones first."""
    old = draft.old
    folder = old.get(f"{_KWARGS}.data_dir") or old.get("data_module.data_dir")
    found: dict[str, str] = {}
    for place in (f"{_RAW}.source_h5ad_file_name", f"{_KWARGS}.source_h5ad_file_name"):
        value = old.get(place)
        if isinstance(value, str):
            is_whole = "/" in value or "${" in value or folder is None
            found[place] = value if is_whole else f"{folder}/h5ad/{value}"
        elif value is not None:
            draft.drop(place, "several files: make one store of them with `omics-data convert`")
    place = f"{_KWARGS}.processed_data_source"
    if isinstance(old.get(place), str):
        found[place] = old.get(place)
    elif old.get(place) is not None:
        draft.drop(
            place,
            "files for each part: make one store of them with `omics-data convert`, and a split by "
            "the column that names the file",
        )
    return found


def _files_in_folder(draft: Draft, module: DataModule) -> dict[str, str]:
    """Return the file below a folder that is named, by the key of the folder."""
    old = draft.old
    processed = old.get("data_module.processed_name")
    file = module.file or (f"{processed}.h5ad" if processed else "")
    found: dict[str, str] = {}
    for place in ("data_module.data_dir", f"{_KWARGS}.data_dir"):
        value = old.get(place)
        if value is not None and file:
            found[place] = f"{str(value).rstrip('/')}/{file}"
        elif value is not None:
            draft.drop(place, "a folder: data_module.path, or input_file, names the file of cells")
    return found


def _split(draft: Draft, path: str, *, needed: bool) -> None:
    """Name the split, and say how it is made."""
    old = draft.old
    places = {
        "column": [f"{_KWARGS}.split_column_name", f"{_RAW}.split_column_name"],
        "stratify": [f"{_RAW}.stratifying_label", f"{_KWARGS}.stratifying_label"],
        "group": [f"{_RAW}.group_column_name"],
        "fractions": [f"{_RAW}.split_weights"],
        "seed": [f"{_RAW}.random_state"],
    }
    marked = [
        (f"label_columns[{position}].is_stratification_label", item.get("label_column_name"))
        for position, item in enumerate(old.items("label_columns"))
        if item.get("is_stratification_label")
    ]
    for position, item in enumerate(old.items("label_columns")):
        if not item.get("is_stratification_label"):
            draft.drop(f"label_columns[{position}].is_stratification_label", "false")
    used = [*[place for group in places.values() for place in group], *[each for each, _ in marked]]
    if not needed:
        for place in used:
            draft.drop(place, "all cells are predicted")
        return
    said = {
        name: next((old.get(each) for each in group if old.get(each) is not None), None)
        for name, group in places.items()
    }
    if said["stratify"] is None and marked:
        said["stratify"] = marked[0][1]
    stem = old.path.stem
    store, split = f"{stem}.store", f"{stem}.split.parquet"
    options = []
    if said["column"] is not None:
        options.append(f"--column {shlex.quote(str(said['column']))}")
        for place in used[len(places["column"]) :]:
            draft.drop(place, f"the column {said['column']!r} says who is in which part")
    else:
        weights = said["fractions"] if isinstance(said["fractions"], dict) else FRACTIONS
        shares = ",".join(str(weights.get(part, 0.0)) for part in FRACTIONS)
        options += [
            f"--{option} {shlex.quote(str(said[option]))}"
            for option in ("stratify", "group")
            if said[option] is not None
        ]
        seed = 42 if said["seed"] is None else said["seed"]
        options += [f"--fractions {shares}", f"--seed {seed}"]
    draft.set("data_module.split", split)
    draft.steps += [
        (f"omics-data convert {path} {shlex.quote(store)}", "the cells as a store"),
        (
            f"omics-data split {shlex.quote(store)} {shlex.quote(split)} {' '.join(options)}",
            "who is trained on, validated on and tested on",
        ),
    ]


def _labels(draft: Draft, *, one_class_token: bool) -> None:
    """Set the label columns that a loss predicts, a plain name where there is nothing to add."""
    old = draft.old
    entries = _label_entries(draft)
    for position, item in enumerate(entries):
        if one_class_token and item.get("token"):
            del item["token"]
            draft.drop(
                f"label_columns[{position}].decode_from",
                "a new model has one class token: labels are read from the pooled row",
            )
    place, numbers = f"{_KWARGS}.label_columns", f"{_KWARGS}.regression_label_columns"
    if entries:
        for each in (place, numbers):
            draft.drop(each, "label_columns names them")
    else:
        entries = [{"label_column_name": name} for name in old.get(place, [])]
        entries += [
            {"label_column_name": name, "kind": "regression"} for name in old.get(numbers, [])
        ]
    asked = {loss.get("label_column_name") for loss in old.items("trainer.losses")}
    kept = []
    for position, item in enumerate(entries):
        if old.items("trainer.losses") and item["label_column_name"] not in asked:
            draft.drop_all(f"label_columns[{position}]", "no loss predicts it")
        else:
            kept.append(item["label_column_name"] if len(item) == 1 else item)
    draft.remove("label_columns")
    if kept:
        draft.set("label_columns", kept)


def _label_entries(draft: Draft) -> list[dict[str, Any]]:
    """Return the entries of `label_columns`, with their kinds."""
    entries: list[dict[str, Any]] = []
    for position, given in enumerate(draft.old.items("label_columns")):
        item = dict(draft.get(f"label_columns[{position}]", {}))
        for key, kind in (("is_regression_label", "regression"), ("is_multilabel", "multilabel")):
            if given.get(key):
                item["kind"] = kind
            else:
                draft.drop(f"label_columns[{position}].{key}", "false")
        if "label_column_name" in item:
            entries.append(item)
    return entries


def _order(draft: Draft) -> None:
    column = draft.old.get("data_module.balancing_label_column")
    if column is not None:
        draft.set("data_module.order", f"class_balanced:{column}")
        draft.drop("data_module.shuffle", "the balanced order replaces it")


def _curriculum(draft: Draft) -> None:
    stages: list[dict[str, Any]] = []
    for position, item in enumerate(draft.old.items("task")):
        scheduled = [
            stage
            for callback in item.get("callbacks") or []
            if isinstance(callback, dict)
            and class_name(callback.get("_target_")) == "BatchSizeScheduler"
            for stage in callback.get("schedule") or []
        ]
        if not scheduled:
            draft.drop(f"task[{position}].callbacks", "a run reports and saves by itself")
        stages += [
            {
                "max_epochs": stage.get("n_epochs") or 1,
                **{key: stage[key] for key in ("batch_size", "max_length") if stage.get(key)},
            }
            for stage in scheduled
        ]
    if stages:
        draft.set("trainer.curriculum", stages)


def _adapters(draft: Draft) -> None:
    value = draft.old.get("trainer.lora_config")
    if value is None:
        return
    if isinstance(value, str) and value not in ADAPTER_PRESETS:
        known = ", ".join(ADAPTER_PRESETS)
        draft.drop("trainer.lora_config", f"{value!r} is not known here; known are {known}")
        return
    draft.set_defaults({f"trainer.lora.{key}": given for key, given in ADAPTERS.items()})


def _leave_to_bundle(draft: Draft) -> None:
    """Take away what a bundle brings along; masks stay, which are the run's."""
    if any(item.get("is_masked") for item in draft.get("fields", [])):
        draft.set("fields", [item for item in draft.get("fields") if item.get("encoder")])
    else:
        draft.remove("fields")
        draft.drop_all("fields", _WITH_BUNDLE)
    for key in ("model", "tokenizer", "data_module.transforms"):
        draft.remove(key)
        for path, entry in draft.entries.items():
            if entry.new == key or entry.new.startswith(f"{key}."):
                draft.drop(path, _WITH_BUNDLE)
        for name in [name for name in draft.defaults if name.startswith(f"{key}.")]:
            del draft.defaults[name]


def _leave_out_training(draft: Draft) -> None:
    """Take away what only training needs: everything but what is read, and on which device."""
    kept = {
        key: draft.get(key)
        for key in (
            "data_module.dataset",
            "data_module.path",
            "data_module.split",
            "data_module.batch_size",
            "trainer.accelerator",
            "trainer.precision",
        )
    }
    of_run = ("seed", "working_dir", "input_file", "checkpoint", "task")
    for path, entry in draft.entries.items():
        stays = entry.new in {*kept, *of_run} or entry.new.startswith("scoring.")
        stays = stays or path == "trainer.pooling_method"
        if entry.kind != DROPPED and not stays:
            draft.drop(path, _NOT_TRAINED)
    for section in ("tokenizer", "fields", "label_columns", "model", "data_module", "trainer"):
        draft.remove(section)
    for key, value in kept.items():
        if value is not None:
            draft.set(key, value)
    draft.set_defaults({"trainer.accelerator": "auto"})


def _pooling(draft: Draft, *, of_model: bool) -> None:
    value = draft.old.get("trainer.pooling_method")
    if value is None:
        return
    name = pooling(value)
    if isinstance(name, Dropped):
        draft.drop("trainer.pooling_method", name.why)
        return
    key = "model.embedding_pooling" if of_model else "embedding.pooling"
    draft.set(key, name)
    draft.change("trainer.pooling_method", "" if of_model else "of what `predict` writes", new=key)


def in_shell(path: str) -> str:
    """Return a path as a shell writes it: `${oc.env:NAME}` becomes `$NAME`.

    Args:
        path: with Hydra's calls.
    """
    if "${" not in path:
        return shlex.quote(path)
    return '"' + re.sub(r"\$\{oc\.env:(\w+)(?:,[^}]*)?\}", r"$\1", path) + '"'
