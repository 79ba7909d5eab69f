"""A BiomedSciAI RNA checkpoint as a bundle: model, vocabulary, preprocessing, labels.

- The preprocessing contract lay in a README and in flags until now. It goes into the bundle: the
  genes a cell is limited to, the normalisation, the longest cell, the tokens around it.
- A cell that is too long keeps its highest values, where the reference draws genes anew each time.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError, MissingPathError, UsageError, nearest
from omics.data.matching.gene_tables import read_gene_list
from omics.data.transforms import GenePanel, LogNormalize, ReadDepthDownsample, Transform
from omics.models.published.bmfm_keys import bmfm_key_map
from omics.models.published.bmfm_layouts import BODIES, BmfmLayout, find_layout
from omics.models.published.bmfm_model import BmfmModelReader
from omics.models.published.checkpoint_opening import checked_config
from omics.models.published.checkpoint_settings import Settings, plain_values, read_json
from omics.models.published.pickle_values import Record
from omics.tokenizers import GeneTokenizer, import_hf_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from omics.models.bundle import Bundle
    from omics.models.model_config import ModelConfig
    from omics.models.published.checkpoint_opening import Checkpoint, ConversionOptions
    from omics.models.published.weight_rows import KeyMap

# What is kept of a configuration: what this package reads, and what the reference cannot do without.
CONFIG_KEYS = (
    "model_type", "fields", "label_columns", "hidden_size", "num_hidden_layers",
    "num_attention_heads", "intermediate_size", "hidden_act", "hidden_activation", "norm_eps",
    "norm_bias", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "attention_dropout", "attention_bias", "attention", "embedding_dropout", "mlp_bias",
    "mlp_dropout", "classifier_dropout", "classifier_pooling", "classifier_bias",
    "classifier_activation", "decoder_bias", "initializer_range", "initializer_cutoff_factor",
    "global_rope_theta", "local_rope_theta", "global_attn_every_n_layers", "local_attention",
    "max_position_embeddings", "position_embedding_type", "num_memory_tokens", "pad_token_id",
    "vocab_size", "use_cache", "tie_word_embeddings",
)  # fmt: skip
METADATA = "checkpoint_metadata.json"
_TYPE_OF_RECORD = {"SCBertConfig": "scbert", "SCModernBertConfig": "scmodernbert"}
# What the reference's own prediction takes where nothing else is said.
_DEFAULT_LENGTH = 1024
_DEPTH_LENGTH = 4096
_READ_DEPTH = 10_000
_POOLINGS = {"first_token": "first_token", "mean_pooling": "mean_after_first"}


def convert_bmfm(checkpoint: Checkpoint, options: ConversionOptions) -> Bundle:
    """Return the bundle of a checkpoint.

    Args:
        checkpoint: open.
        options: `vocabulary`, `genes`, `label` and `read_depth` are read.

    Raises:
        InputDataError: it is not whole, or asks for what is not computed.
        MissingPathError: its vocabulary is not there.
        UsageError: a label name is missing, or an option has no use.
    """
    settings = bmfm_settings(checkpoint)
    layout = find_layout(
        checkpoint.weights.names,
        settings.text("model_type"),
        label=options.label,
        where=checkpoint.weights.where,
    )
    config = checked_config(
        lambda: BmfmModelReader(settings, checkpoint.weights, layout).config(), settings.where
    )
    config = _with_embedding(config, _pooling_method(checkpoint))
    tokenizer = _tokenizer(checkpoint, settings, config, options.vocabulary)
    return checkpoint.bundle(
        config,
        bmfm_key_map(config, settings.text("model_type"), layout),
        layout={"model_type": settings.text("model_type"), **layout.to_dict()},
        tokenizer=tokenizer,
        transforms=_preprocessing(tokenizer, options, has_depth=tokenizer.depth_tokens),
        labels=_label_classes(checkpoint, config),
        settings=settings.values,
        on_progress=options.on_progress,
    )


def bmfm_keys_of(config: ModelConfig, layout: Mapping[str, Any]) -> KeyMap:
    """Return the key map of a bundle that was converted.

    Args:
        config: of its model.
        layout: of its provenance.
    """
    parts = dict(layout)
    return bmfm_key_map(config, parts.pop("model_type"), BmfmLayout(**parts))


def bmfm_settings(checkpoint: Checkpoint) -> Settings:
    """Return the configuration of a checkpoint: its `config.json`, or what lies with its weights.

    Args:
        checkpoint: open.

    Raises:
        InputDataError: there is none, or it is of a model that is not known.
    """
    record = _hyper_parameters(checkpoint).get("model_config")
    if record is not None:
        where = f"The model_config of {checkpoint.weights.where}"
        values = plain_values(record, where)
        if not isinstance(values, dict):
            raise InputDataError(f"{where} is no configuration.")
        values = {"model_type": _type_of_record(record), **values}
    elif checkpoint.source.config is not None:
        where, values = str(checkpoint.source.config), read_json(checkpoint.source.config)
    else:
        raise InputDataError(
            f"{checkpoint.weights.where} does not say what model it holds: there is no model_config "
            "in it and no config.json beside it. Put the config.json of its source there."
        )
    settings = Settings({key: values[key] for key in CONFIG_KEYS if key in values}, where)
    model_type = settings.text("model_type")
    if model_type not in BODIES:
        raise InputDataError(
            f"{where} is of model_type {model_type!r}, which cannot be converted."
            f"{nearest(model_type, list(BODIES))}"
        )
    return settings


def _hyper_parameters(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a trainer saved of its settings."""
    found = checkpoint.beside.get("hyper_parameters")
    if isinstance(found, Record):
        found = found.fields
    metadata = checkpoint.source.folder / METADATA
    if found is None and metadata.is_file():
        found = {**(read_json(metadata).get("hyper_parameters") or {}), "model_config": None}
    return found if isinstance(found, dict) else {}


def _type_of_record(record: object) -> str:
    name = record.name.rpartition(".")[2] if isinstance(record, Record) else ""
    return _TYPE_OF_RECORD.get(name, "scllama" if name.startswith("Llama") else name or "unknown")


def _pooling_method(checkpoint: Checkpoint) -> str | None:
    if checkpoint.row.pooling is not None:
        return checkpoint.row.pooling
    trainer = plain_values(_hyper_parameters(checkpoint).get("trainer_config"), "trainer_config")
    method = trainer.get("pooling_method") if isinstance(trainer, dict) else None
    return "+".join(map(str, method)) if isinstance(method, list) else method


def _with_embedding(config: ModelConfig, method: str | int | None) -> ModelConfig:
    """Return the configuration whose default embedding is what a pooling method gives."""
    if method == "pooling_layer":
        return dataclasses.replace(config, embedding_pooling=None, embedding_layer=None)
    parts = []
    for part in str(method or "first_token").split("+"):
        if part not in _POOLINGS and not part.isdecimal():
            raise InputDataError(
                f"The checkpoint has pooling_method = {part!r}, which this version does not "
                f"compute.{nearest(part, [*_POOLINGS, 'pooling_layer'])}"
            )
        parts.append(_POOLINGS.get(part, f"token:{part}"))
    return dataclasses.replace(config, embedding_pooling="+".join(parts))


def _tokenizer(
    checkpoint: Checkpoint, settings: Settings, config: ModelConfig, vocabulary: Path | None
) -> GeneTokenizer:
    fields = {field.name: field for field in config.fields}
    if set(fields) != {"genes", "expressions"}:
        raise InputDataError(
            f"{settings.where} has the input fields {', '.join(fields)}. A bundle of cells has genes "
            "and expressions; what other fields mean stands in no tokenizer that can be read here."
        )
    folder = checkpoint.source.folder if vocabulary is None else vocabulary
    inside = folder / "tokenizers" / "genes" / "tokenizer.json"
    if vocabulary is None and not inside.is_file():
        raise MissingPathError(
            f"There is no {inside}: the vocabulary of {checkpoint.weights.where}. Take the folder "
            "`tokenizers` from where the checkpoint is from and put it beside it, or say with "
            "--vocabulary where it is."
        )
    depth = any(each.text("field_name") == "label_expressions" for each in settings.parts("fields"))
    longest = checkpoint.row.max_length or (_DEPTH_LENGTH if depth else _DEFAULT_LENGTH)
    binned = fields["expressions"].encoder == "embedding"
    read = import_hf_tokenizer(folder, binned=binned)
    rows, ids = fields["genes"].vocabulary_size, len(read.vocabulary)
    if ids != rows:
        raise InputDataError(
            f"The vocabulary in {folder} does not belong to the checkpoint: it has "
            f"{ids:,} tokens, and the table of {checkpoint.weights.where} has {rows:,} rows. Take "
            "the folder `tokenizers` from where the checkpoint is from."
        )
    tokenizer = GeneTokenizer(
        read.vocabulary,
        values=read.values,
        prepend=_front(checkpoint.row.prepend or read.prepend, config),
        depth_tokens=depth,
        append_sep=read.append_sep,
        max_length=longest,
    )
    last, held = tokenizer.fields[1].vocabulary_size, fields["expressions"].vocabulary_size
    if last > held:
        raise InputDataError(
            f"The vocabulary in {folder} has special tokens up to {last - 1}, and the "
            f"field 'expressions' of {checkpoint.weights.where} has rows for {held}: it does not "
            "belong to the checkpoint."
        )
    return tokenizer


def _front(prepend: Sequence[str], config: ModelConfig) -> list[str]:
    """Return the first tokens of a cell, with one of its own for every label that reads one."""
    front = list(prepend)
    last = max((label.token for label in config.labels if label.token is not None), default=0)
    return [*front, *(f"[CLS_{place - 1}]" for place in range(len(front), last + 1))]


def _preprocessing(
    tokenizer: GeneTokenizer, options: ConversionOptions, *, has_depth: bool
) -> list[Transform]:
    known = tokenizer.vocabulary.names
    panel = list(known)
    if options.genes is not None:
        wanted = set(read_gene_list(options.genes))
        panel = [name for name in known if name in wanted]
        if not panel:
            raise InputDataError(
                f"None of the {len(wanted)} genes of {options.genes} is in the vocabulary, which "
                f"has genes like {', '.join(known[:3])}. Give gene symbols."
            )
    if has_depth:
        total = options.read_depth or _READ_DEPTH
        return [GenePanel(tuple(panel)), ReadDepthDownsample(mode="auto_align", max_total=total)]
    if options.read_depth is not None:
        raise UsageError(
            "A read depth was given, but this checkpoint is not asked for one. Leave out --read-depth."
        )
    return [GenePanel(tuple(panel)), LogNormalize(added_total=1.0)]


def _label_classes(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, list[str]]:
    """Return the classes of each label in the order of its outputs."""
    where = f"The label_dict of {checkpoint.weights.where}"
    table = _label_table(checkpoint, where)
    classes = {}
    for label in config.labels:
        given = table.get(label.name)
        if given is None:
            # A regression has one output, and some checkpoints leave their classes out.
            names = [label.name] if label.num_classes == 1 else map(str, range(label.num_classes))
            classes[label.name] = list(names)
            continue
        numbers = list(given.values()) if isinstance(given, dict) else []
        if not all(type(number) is int for number in numbers) or sorted(numbers) != [
            *range(label.num_classes)
        ]:
            raise InputDataError(
                f"{where} does not number the {label.num_classes} classes of {label.name!r} from 0 "
                f"to {label.num_classes - 1}: it does not belong to these weights."
            )
        classes[label.name] = sorted(given, key=lambda name: int(given[name]))
        if not all(name.isprintable() for name in classes[label.name]):
            raise InputDataError(f"{where} names classes of {label.name!r} by control characters.")
    return classes


def _label_table(checkpoint: Checkpoint, where: str) -> dict[str, Any]:
    """Return `{label: {class: number}}`, also where it is saved as a list of records."""
    found = plain_values(_hyper_parameters(checkpoint).get("label_dict") or {}, where)
    if isinstance(found, list):
        records = [each for each in found if isinstance(each, dict)]
        return {str(each.get("label_name")): each.get("label_values") for each in records}
    return found if isinstance(found, dict) else {}
