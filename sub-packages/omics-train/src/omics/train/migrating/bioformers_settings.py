"""What Bioformers' settings.json says in several keys, and what its scripts have built in."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError
from omics.train.migrating.migration_rules import Dropped, one_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.train.migrating.migration_draft import Draft

DATASETS = {"PBMC": "pbmc_4k_8k", "adamson": "adamson_gears"}
SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
CONVERTERS: dict[str, Callable[[Any], Any]] = {"schedule": one_of(SCHEDULES)}
NUM_BINS = 64
DEFAULTS = {
    "trainer.weight_decay": 0.01,
    "trainer.gradient_clip_norm": 0.0,
    "trainer.accelerator": "auto",
    "trainer.precision": "32-true",
    "data_module.order": "random",
    "data_module.mask_ratio": 1.0,
}
MODEL = {
    "norm": "post",
    "final_norm": False,
    "embedding_norm": True,
    "dropout": 0.1,
    "layer_norm_eps": 1e-12,
    "embedding_std": 0.02,
    "pooling": "mean",
    "pooled_norm": False,
    "field_transform": "shared_norm",
}


def finish(draft: Draft) -> None:
    """Put together what single settings do not say.

    Args:
        draft: after all rules were applied.

    Raises:
        ConfigError: a data set that Bioformers does not have.
    """
    old = draft.old
    name = old.get("dataset_name")
    row = one_of(DATASETS)(name)
    if isinstance(row, Dropped):
        raise ConfigError(f"{old.path} has dataset_name {name!r}; it is PBMC or adamson.")
    draft.set("task", ["train"])
    draft.set("data_module.dataset", row)
    draft.set(
        "fields",
        [
            {"field_name": "genes", "encoder": "embedding"},
            {"field_name": "expression", "encoder": "embedding", "is_masked": True},
        ],
    )
    draft.set("tokenizer.num_bins", NUM_BINS)
    draft.set("tokenizer.prepend_cls", False)
    draft.set("data_module.transforms", _transforms(draft))
    draft.set("trainer.losses", [{"field_name": "expression", "name": "cross_entropy"}])
    for key, value in MODEL.items():
        draft.set(f"model.{key}", value)
    width = draft.get("model.hidden_size")
    if width is not None:
        draft.set_defaults({"model.intermediate_size": 4 * width})
    draft.set_defaults(DEFAULTS)
    _cells(draft, row)


def _cells(draft: Draft, row: str) -> None:
    """Name store and split, and say how they are made."""
    folder = f"{draft.old.path.stem}.prepared"
    draft.set("data_module.path", f"{folder}/cells.store")
    draft.set("data_module.split", f"{folder}/split.parquet")
    command = [f"omics-data prepare dataset:{row} {shlex.quote(folder)} --fractions 0.8,0.1,0.1"]
    # The processed file of GEARS holds logarithms, which the linear bins are made for.
    has_counts = row != "adamson_gears"
    if not has_counts:
        command.append("--counts X --allow-non-counts")
    options = {"filter_gene_cutoff": "--min-gene-counts", "filter_cell_cutoff": "--min-counts"}
    if has_counts:
        options["hvg_num"] = "--hvg"
    else:
        draft.drop("hvg_num", "variable genes are found on counts, and this file holds logarithms")
    for key, option in options.items():
        value = draft.old.get(key)
        if value:
            command.append(f"{option} {value}")
    purpose = (
        "cells and genes that are kept, and a split with test cells, which the reference has not"
    )
    draft.steps.append((" ".join(command), purpose))


def _transforms(draft: Draft) -> list[dict[str, Any]]:
    old = draft.old
    logarithmic = bool(old.get("log_transform", False))
    binning: dict[str, Any] = {
        "name": "bin_log" if logarithmic else "bin_linear",
        "num_bins": NUM_BINS,
    }
    keys = {"bin_size": "bin_size"} | ({"bin_cutoff": "cutoff"} if logarithmic else {})
    for key, parameter in keys.items():
        if old.get(key) is not None:
            binning[parameter] = old.get(key)
    if not logarithmic:
        draft.drop("bin_cutoff", "bins of equal width have none")
    return [{"name": "all_genes"}, binning]
