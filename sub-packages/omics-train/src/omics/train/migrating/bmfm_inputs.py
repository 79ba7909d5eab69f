"""Fields, losses, preprocessing and masking of a bmfm configuration, which depend on each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError
from omics.train.migrating.bmfm_classes import class_name

if TYPE_CHECKING:
    from omics.train.migrating.migration_draft import Draft

ENCODERS = {
    "mlp": "mlp",
    "mlp_with_special_token_embedding": "leaky_mlp",
    "mlp_with_special_tokens": "leaky_mlp",
    "scale_adapt": "sinusoid",
}
FREQUENCIES = {
    "n_sin_basis": "num_frequencies",
    "basis_scale": "frequency_scale",
    "trainable": "learned_frequencies",
}
# The bins of bmfm's own preprocessing, and the length of a cell, unless they are given.
NUM_BINS = 10
MAX_LENGTH = 512
TARGET_SUM = 10_000
_KWARGS = "data_module.dataset_kwargs"
_OPTIONS = ("ignore_zero", "link_function", "shrinkage", "label_smoothing", "gamma")


def losses(draft: Draft) -> None:
    """Name the losses that had their default name, and leave out options without effect.

    Args:
        draft: after its rules.
    """
    from omics.train.loss_table import FIELD_LOSSES, LABEL_LOSSES

    kinds = {
        item["label_column_name"]: item.get("kind", "class")
        for item in draft.get("label_columns", [])
        if isinstance(item, dict)
    }
    for position, loss in enumerate(draft.get("trainer.losses", [])):
        where = f"trainer.losses[{position}]"
        label = loss.get("label_column_name")
        default = "mse" if kinds.get(label) == "regression" else "cross_entropy"
        name = loss.setdefault("name", default)
        row: Any = (LABEL_LOSSES if label is not None else FIELD_LOSSES).get(name)
        known = row.options if row is not None else frozenset(_OPTIONS)
        for option in _OPTIONS:
            value = loss.get(option)
            old = "focal_gamma" if option == "gamma" else option
            if value is not None and (value is False or option not in known):
                del loss[option]
                why = "false" if value is False else f"{name} has no such option"
                draft.drop(f"{where}.{old}", why)
        _metrics(draft, where, loss, row)


def _metrics(draft: Draft, where: str, loss: dict[str, Any], row: Any) -> None:
    from omics.train.metric_table import METRICS

    if "metrics" not in loss or row is None:
        return
    about = getattr(row, "about", None) or {
        ("class",): "classes",
        ("hierarchy",): "classes",
        ("multilabel",): "multilabel",
    }.get(row.kinds, "values")
    kept = [name for name in loss["metrics"] if name in METRICS[about]]
    gone = [name for name in loss["metrics"] if name not in kept]
    if gone:
        draft.change(f"{where}.metrics", f"without {', '.join(gone)}, which it does not have")
    loss["metrics"] = kept
    if not kept:
        del loss["metrics"]
        draft.drop(f"{where}.metrics", f"{', '.join(gone)}: it does not have such metrics")


def why_nothing_is_hidden(draft: Draft) -> str:
    """Return why the old data module hid no token; empty where it did.

    Args:
        draft: of the configuration.
    """
    old = draft.old
    if "WCED" in class_name(old.get("data_module.masking_strategy._target_")):
        return "whole cells are decoded instead (WCEDMasker)"
    mlm = old.get("data_module.mlm")
    if mlm is None:
        # Before there was `mlm`, the strategy of collation said it.
        mlm = old.get("data_module.collation_strategy") == "language_modeling"
    return "" if mlm else "data_module.mlm is not true"


def fields(draft: Draft) -> None:
    """Turn the entries of `fields` into inputs of ours.

    Args:
        draft: after its rules and `losses`.

    Raises:
        ConfigError: a field of sequences.
    """
    inputs = []
    for position, item in enumerate(draft.old.items("fields")):
        where = f"fields[{position}]"
        name = draft.get(f"{where}.field_name")
        if str(item.get("field_name")).startswith("dna"):
            raise ConfigError(
                f"{draft.old.path} is about sequences (the field {item['field_name']!r}); this "
                "translates configurations of cells. Sequences are read by omics-dna."
            )
        if name is None:
            draft.drop_all(where, f"{item.get('field_name')!r} is not made here")
        elif not item.get("is_input", True) or name == "label_expression":
            draft.drop_all(where, "no input: a target, which the preprocessing makes")
        else:
            inputs.append(_input(draft, where, item, name))
    draft.remove("fields")
    if inputs:
        draft.set("fields", inputs)
        draft.set("tokenizer.append_sep", True)
    tokens = draft.old.get("tokenizer.prepend_tokens")
    if tokens is not None:
        draft.set("tokenizer.prepend_cls", bool(tokens))
        if tokens == ["[CLS]"]:
            draft.change("tokenizer.prepend_tokens", "")


def _input(draft: Draft, where: str, item: dict[str, Any], name: str) -> dict[str, Any]:
    """Return one input."""
    draft.drop(f"{where}.is_input", "true, as for every entry")
    entry: dict[str, Any] = {"field_name": name, "encoder": "embedding"}
    if item.get("tokenization_strategy", "tokenize") != "tokenize":
        entry |= _value_encoder(draft, where, item)
    elif name == "expression":
        draft.set("tokenizer.num_bins", NUM_BINS)
    vectors = draft.old.get(f"{where}.pretrained_embedding.filename")
    if vectors is not None:
        entry |= {"vectors": str(vectors), "freeze_vectors": True}
    if name == "perturbation":
        draft.set("tokenizer.perturbation", True)
    predicted = {
        loss.get("field_name")
        for loss in draft.get("trainer.losses", [])
        if loss.get("wced_target") is None
    }
    if not item.get("is_masked"):
        draft.drop(f"{where}.is_masked", "false")
    elif why := why_nothing_is_hidden(draft):
        draft.drop(f"{where}.is_masked", f"not hidden: {why}")
    elif name not in predicted:
        draft.drop(f"{where}.is_masked", "not hidden: no loss predicts it")
    else:
        entry["is_masked"] = True
        draft.change(f"{where}.is_masked", "")
    return entry


def _value_encoder(draft: Draft, where: str, item: dict[str, Any]) -> dict[str, Any]:
    """Return how values of a field become vectors."""
    group = "encoder_kwargs" if item.get("encoder_kwargs") else "continuous_value_encoder_kwargs"
    options = item.get(group) or {}
    encoder = ENCODERS.get(options.get("kind", "mlp_with_special_token_embedding"), "leaky_mlp")
    entry: dict[str, Any] = {"encoder": encoder}
    if encoder != "mlp":
        entry["zero_row"] = bool(options.get("zero_as_special_token", True))
    for old, new in FREQUENCIES.items():
        if options.get(old) is None:
            continue
        if encoder == "sinusoid":
            entry[new] = options[old]
        else:
            draft.drop(f"{where}.{group}.{old}", f"{encoder} has no frequencies")
    if options.get("trainable", True):
        draft.change(f"{where}.{group}.trainable", "")
    if encoder == "mlp":
        draft.drop(f"{where}.{group}.zero_as_special_token", "mlp takes 0 as any value")
    return entry


def steps(draft: Draft) -> None:
    """Set the preprocessing and the random steps of training.

    Args:
        draft: after `fields`.
    """
    old = draft.old
    transforms: list[dict[str, Any]] = []
    augmentations: list[dict[str, Any]] = []
    depth = old.get("data_module.rda_transform")
    if depth is not None:
        name = "poisson_downsample" if depth == "poisson_downsample" else "read_depth_downsample"
        if isinstance(depth, int):
            transforms.append({"name": name, "mode": "auto_align", "max_total": depth})
        else:
            transforms.append({"name": name, "mode": "equal"})
        if str(depth).endswith("downsample"):
            augmentations.append({"name": name, "mode": "downsample"})
        if depth == "auto_align":
            draft.change(
                "data_module.rda_transform",
                "as deep as each cell is; for one depth give mode auto_align and max_total, the "
                "largest total of the data",
            )
        draft.set("tokenizer.depth_tokens", True)
        draft.drop("data_module.log_normalize_transform", "rda_transform normalises as well")
    elif old.get("data_module.log_normalize_transform"):
        transforms.append({"name": "log_normalize", "target_sum": TARGET_SUM, "added_total": 1})
    else:
        draft.drop("data_module.log_normalize_transform", "false; see the normalisation below")
        transforms.append({"name": "log_normalize", "target_sum": TARGET_SUM})
        draft.defaults["data_module.transforms"] = (
            "log_normalize: raw counts are read, where bmfm read values that its own preprocessing "
            "had normalised to 10,000 (with logarithms of base 2)"
        )
    if draft.get("tokenizer.num_bins") is not None:
        binning = {"name": "bin_integer", "num_bins": NUM_BINS, "source": "expression"}
        transforms.append(binning)
    max_genes = _max_genes(draft, has_depth=depth is not None)
    augmentations += _zeros(draft, max_genes)
    augmentations += _dropout(draft)
    transforms += _order(draft)
    if max_genes is not None:
        transforms.append({"name": "first_genes", "max_genes": max_genes})
    draft.set("data_module.transforms", transforms)
    if augmentations:
        draft.set("data_module.augmentations", augmentations)


def _max_genes(draft: Draft, *, has_depth: bool) -> int | None:
    length = draft.old.get("data_module.max_length", MAX_LENGTH)
    if length == "scheduled":
        draft.change("data_module.max_length", "", new="trainer.curriculum")
        return None
    special = 4 if has_depth else 2
    return max(1, int(length) - special)


def _order(draft: Draft) -> list[dict[str, Any]]:
    order = draft.old.get("data_module.sequence_order")
    if order == "random":
        return [{"name": "random_order"}]
    if order == "sorted":
        draft.change("data_module.sequence_order", "")
        return [{"name": "expression_order"}]
    if order is not None:
        draft.drop(
            "data_module.sequence_order",
            f"{order!r} needs the places of genes: add the transform chromosome_order with them",
        )
    return []


def _zeros(draft: Draft, max_genes: int | None) -> list[dict[str, Any]]:
    old = draft.old
    place = "data_module.pad_zero_expression_strategy"
    given = old.get(place)
    inside = old.get(f"{_KWARGS}.expose_zeros")
    if given is None:
        if inside is not None:
            draft.drop(f"{_KWARGS}.expose_zeros", "no strategy says how many zeros a cell shows")
        return []
    if inside in {None, False}:
        draft.drop(place, "expose_zeros is not set: there were no zeros to add")
        return []
    options = given if isinstance(given, dict) else {"strategy": given}
    step: dict[str, Any] = {"name": "batch_zeros"}
    if options.get("strategy") == "random":
        step = {"name": "random_zeros", "training_only": True}
    share = options.get("interleave_zero_ratio")
    if share is not None and 0 < share < 1:
        step["expressed_share"] = share
    elif max_genes is not None:
        step["fill_to"] = max_genes
    else:
        draft.drop(place, "with a scheduled length nothing says how many zeros a cell shows")
        return []
    if options.get("expressed_sample_ratio"):
        step["untouched_share"] = options["expressed_sample_ratio"]
    return [step]


def _dropout(draft: Draft) -> list[dict[str, Any]]:
    factor = draft.old.get("data_module.sequence_dropout_factor")
    if factor is None:
        return []
    if factor <= 1:
        return [{"name": "dropout", "drop_share": factor}]
    draft.change("data_module.sequence_dropout_factor", "one run of neighbours of just this length")
    return [{"name": "chunk_dropout", "min_genes": factor, "max_genes": factor}]


def masking(draft: Draft, *, column: str) -> None:
    """Set what is hidden more often, and pairs of perturbed cells and controls.

    Args:
        draft: after `fields`.
        column: of obs with the perturbations, by the class of the data module; empty for none.
    """
    draft.drop("data_module.mlm", "the entries of fields say which are hidden")
    hides = any(item.get("is_masked") for item in draft.get("fields", []))
    _adaptive(draft, hides=hides)
    if not hides:
        for key in ("change_ratio", "mask_ratio", "switch_ratio", "comask_across_fields"):
            draft.remove(f"data_module.{key}")
            draft.drop(f"data_module.{key}", "nothing is hidden")
        draft.remove("data_module.pattern_weights")
        draft.drop("data_module.masking_strategy.pattern_weights", "nothing is hidden")
    named = draft.old.get("data_module.perturbation_column_name")
    predicts = any(
        loss.get("field_name") == "label_expression" for loss in draft.get("trainer.losses", [])
    )
    if predicts and draft.old.get("data_module.rda_transform") is None:
        draft.set(
            "data_module.pairing",
            {"column": named or column or "perturbation", "control": "control", "separator": "_"},
        )
    else:
        draft.drop("data_module.perturbation_column_name", "no loss predicts perturbed cells")


def _adaptive(draft: Draft, *, hides: bool) -> None:
    old, place = draft.old, "data_module.masking_strategy"
    if class_name(old.get(f"{place}._target_")) == "AdaptiveMaskingStrategy" and hides:
        callback = old.get(f"{place}.callback", {})
        found = {
            "num_bins": callback.get("n_bins") if isinstance(callback, dict) else None,
            "temperature": old.get(f"{place}.temperature"),
        }
        chosen = {key: value for key, value in found.items() if value is not None}
        draft.set("data_module.adaptive_masking", {"enabled": True, **chosen})
        draft.change(f"{place}._target_", "")
        return
    why = "" if hides else why_nothing_is_hidden(draft)
    for key in ("_target_", "callback", "temperature"):
        draft.drop(f"{place}.{key}", why or "genes are hidden alike")
