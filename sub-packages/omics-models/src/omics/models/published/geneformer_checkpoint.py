"""A Geneformer checkpoint (Theodoris et al. 2023) of the hub as a bundle, versions 1 and 2.

- It is stock BERT for masked language modelling in the layout of transformers: post-norm, learned
  positions, a decoder tied to the input table. Sizes are taken from the weights.
- Its dictionaries are pickles beside the checkpoints; they are read as data. A table of tokens with
  medians does as well.
- The default embedding is the mean over the tokens of the last block but one, as its own extractor
  of embeddings has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, MissingPathError
from omics.models.model_config import FieldHeadConfig, FieldInput, ModelConfig
from omics.models.published.bmfm_model import ACTIVATION_NAMES
from omics.models.published.checkpoint_opening import checked_config
from omics.models.published.checkpoint_settings import Settings, read_json
from omics.models.published.hf_bert_rows import (
    POSITION_IDS,
    bert_block_rows,
    stock_embedding_rows,
)
from omics.models.published.pickle_values import MAX_BYTES, UnsafeCheckpointError, read_pickle
from omics.models.published.weight_rows import KeyMap, WeightRow, linear_rows
from omics.tokenizers import GeneTokens, RankValueTokenizer, read_gene_tokens
from omics.tokenizers.gene_token_file import vocabulary_by_names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from omics.models.bundle import Bundle
    from omics.models.published.checkpoint_opening import Checkpoint, ConversionOptions
    from omics.models.published.weight_rows import Weights

# What is read of a config.json; everything else in it, code above all, is not looked at.
CONFIG_KEYS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "hidden_dropout_prob", "layer_norm_eps", "max_position_embeddings", "vocab_size",
    "type_vocab_size", "pad_token_id", "position_embedding_type", "is_decoder",
)  # fmt: skip
GENES = "genes"
# Of each version; what follows in their names says which it is.
DICTIONARY_NAMES = (
    "token_dictionary", "gene_median_dictionary", "gene_name_id_dict", "ensembl_mapping_dict",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Dictionaries:
    """What a Geneformer tokenizer is made of.

    Attributes:
        tokens: vocabulary, symbols and medians.
        aliases: retired gene ids to the ones in use.
        where: what they lie in, for messages.
    """

    tokens: GeneTokens
    aliases: Mapping[str, str]
    where: str


def convert_geneformer(checkpoint: Checkpoint, options: ConversionOptions) -> Bundle:
    """Return the bundle of a checkpoint.

    Args:
        checkpoint: open.
        options: `table` is read.

    Raises:
        InputDataError: it is not whole, or the dictionaries belong to another version.
        MissingPathError: it has no configuration, or there are no dictionaries.
    """
    settings = bert_settings(checkpoint)
    config = checked_config(
        lambda: bert_config(settings, checkpoint.weights, embedding_layer=-1), settings.where
    )
    num_types = checkpoint.weights.shape("bert.embeddings.token_type_embeddings.weight")[0]
    layout = {"num_layers": config.num_layers, "num_types": num_types}
    found = _dictionaries(checkpoint, options, config.fields[0].vocabulary_size)
    tokens = found.tokens
    framed = {"cls", "sep"} <= set(tokens.vocabulary.specials)
    longest = checkpoint.row.max_length or config.max_positions
    tokenizer = RankValueTokenizer(
        tokens.vocabulary,
        tokens.medians,
        tokens.symbols,
        aliases=found.aliases or None,
        max_length=min(longest, config.max_positions),
        prepend_cls=framed,
        append_sep=framed,
    )
    return checkpoint.bundle(
        config,
        geneformer_keys_of(config, layout),
        layout=layout,
        tokenizer=tokenizer,
        transforms=[],
        labels={},
        settings=settings.values,
        on_progress=options.on_progress,
    )


def geneformer_keys_of(config: ModelConfig, layout: Mapping[str, Any]) -> KeyMap:
    """Return the key map of a checkpoint, or of a bundle that was converted.

    Args:
        config: of the model.
        layout: of its provenance.
    """
    bias = "cls.predictions.bias"
    rows = [
        *stock_embedding_rows("bert.", GENES, layout["num_types"]),
        *bert_block_rows("bert.", config.num_layers),
        *linear_rows("field_transform.dense", "cls.predictions.transform.dense"),
        *linear_rows("field_transform.norm", "cls.predictions.transform.LayerNorm"),
        WeightRow(ours=f"field_heads.{GENES}_token_scores.bias", reference=(bias,)),
    ]
    copies = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": bias,
    }
    return KeyMap(rows, [POSITION_IDS], copies)


def bert_settings(checkpoint: Checkpoint) -> Settings:
    """Return what is read of the `config.json` of a BERT.

    Args:
        checkpoint: open.

    Raises:
        MissingPathError: there is none.
        InputDataError: it is that of another architecture.
    """
    path = checkpoint.source.config
    if path is None:
        raise MissingPathError(
            f"There is no config.json beside {checkpoint.weights.where}. Take it from where the "
            "checkpoint is from."
        )
    values = read_json(path)
    settings = Settings({key: values[key] for key in CONFIG_KEYS if key in values}, str(path))
    settings.require("model_type", "bert", "it is another architecture")
    settings.require("position_embedding_type", "absolute", "positions are relative")
    settings.require("is_decoder", False, "a token sees only those before it")
    return settings


def bert_config(settings: Settings, weights: Weights, *, embedding_layer: int) -> ModelConfig:
    """Return the configuration of stock BERT with a tied decoder.

    Args:
        settings: its `config.json`.
        weights: its tensors, which give most sizes.
        embedding_layer: of the default embedding, counted from the last block if negative.

    Raises:
        InputDataError: a tensor is missing, or an activation is not known.
    """
    names = set(weights.names)
    for needed in ("word", "position", "token_type"):
        if f"bert.embeddings.{needed}_embeddings.weight" not in names:
            raise InputDataError(
                f"{weights.where} lacks bert.embeddings.{needed}_embeddings.weight: it is not in "
                "the layout of transformers' BertForMaskedLM. Give a Geneformer checkpoint."
            )
    num_ids, hidden = weights.shape("bert.embeddings.word_embeddings.weight")
    layers = settings.whole("num_hidden_layers")
    if layers > len(names):
        raise InputDataError(f"{settings.where} has {layers} layers and {len(names)} tensors.")
    activation = settings.text("hidden_act", "relu")
    if activation not in ACTIVATION_NAMES:
        raise InputDataError(
            f"{settings.where} has hidden_act = {activation!r}, which this version does not compute."
        )
    return ModelConfig(
        fields=(FieldInput(name=GENES, encoder="embedding", vocabulary_size=num_ids),),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=settings.whole("num_attention_heads"),
        intermediate_size=weights.shape("bert.encoder.layer.0.intermediate.dense.weight")[0],
        norm="post",
        final_norm=False,
        embedding_norm=True,
        activation=ACTIVATION_NAMES[activation],
        positions="learned",
        max_positions=weights.shape("bert.embeddings.position_embeddings.weight")[0],
        dropout=settings.number("hidden_dropout_prob", 0.02),
        layer_norm_eps=settings.number("layer_norm_eps", 1e-12),
        pooling="mean",
        pooled_norm=False,
        embedding_pooling="mean",
        embedding_layer=layers + embedding_layer,
        field_transform="shared",
        field_heads=(FieldHeadConfig(field=GENES, kind="token_scores", tied=True),),
    )


def _dictionaries(checkpoint: Checkpoint, options: ConversionOptions, num_ids: int) -> Dictionaries:
    if options.table is not None:
        tokens = read_gene_tokens(options.table)
        found = [Dictionaries(tokens=tokens, aliases={}, where=str(options.table))]
    else:
        found = [_read_dictionaries(path) for path in _token_dictionaries(checkpoint.source.folder)]
    if not found:
        raise MissingPathError(
            f"There are no dictionaries of gene tokens (token_dictionary_*.pkl) near "
            f"{checkpoint.source.folder}. Give a table of gene tokens with --table, or take the "
            "folder `geneformer` from where the checkpoint is from and put it beside its folder."
        )
    for each in found:
        if len(each.tokens.vocabulary) == num_ids:
            return each
    sizes = ", ".join(f"{each.where} has {len(each.tokens.vocabulary):,} tokens" for each in found)
    raise InputDataError(
        f"The vocabulary does not belong to the checkpoint: {sizes}, and the table of "
        f"{checkpoint.weights.where} has {num_ids:,} rows. Version 1 has 25,426 tokens, version 2 "
        "has 20,275: give the dictionaries of its version."
    )


def dictionary_places(folder: Path) -> list[Path]:
    """Return the folders where dictionaries may lie.

    Args:
        folder: of the checkpoint.
    """
    places = [folder, folder / "geneformer", folder.parent / "geneformer"]
    return places + [place / "gene_dictionaries_30m" for place in places]


def _token_dictionaries(folder: Path) -> list[Path]:
    return [
        path
        for place in dictionary_places(folder)
        for path in sorted(place.glob(f"{DICTIONARY_NAMES[0]}*.pkl"))
    ]


def _read_dictionaries(path: Path) -> Dictionaries:
    """Return the four dictionaries of a version: tokens, medians, names, retired ids."""
    own, of_medians, of_names, of_retired = DICTIONARY_NAMES
    tag = path.name.removeprefix(own)
    ids = _dictionary(path, int)
    medians = _dictionary(path.with_name(f"{of_medians}{tag}"), float)
    names = _dictionary(path.with_name(f"{of_names}{tag}"), str, needed=False)
    retired = _dictionary(path.with_name(f"{of_retired}{tag}"), str, needed=False)
    by_id = {number: token for token, number in ids.items()}
    if sorted(by_id) != list(range(len(ids))):
        raise InputDataError(f"{path} does not number its {len(ids)} tokens from 0 without gaps.")
    symbol_of: dict[str, str] = {}
    for symbol, gene in names.items():
        symbol_of.setdefault(gene, symbol)
    vocabulary = vocabulary_by_names([by_id[number] for number in range(len(ids))])
    genes = vocabulary.names
    return Dictionaries(
        tokens=GeneTokens(
            vocabulary=vocabulary,
            symbols=tuple(symbol_of.get(gene, gene) for gene in genes),
            medians=np.array([medians.get(gene, np.nan) for gene in genes], np.float64),
        ),
        aliases={old: new for old, new in retired.items() if old != new and new in ids},
        where=str(path),
    )


def _dictionary(path: Path, kind: type, *, needed: bool = True) -> dict[str, Any]:
    if not path.is_file():
        if needed:
            raise MissingPathError(f"There is no {path}, which belongs to the token dictionary.")
        return {}
    if path.stat().st_size > MAX_BYTES:
        raise UnsafeCheckpointError(f"{path} is too large for a dictionary of genes.")
    value = read_pickle(path.read_bytes(), str(path))
    # Lists of symbols stand for genes that share a name; none of them is needed here.
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputDataError(f"{path} holds no dictionary of names.")
    allowed = (int, float) if kind is float else (kind,)
    wrong = [key for key, each in value.items() if not isinstance(each, allowed) or each is True]
    if wrong:
        raise InputDataError(
            f"{path} gives {wrong[0][:80]!r} a value of type {type(value[wrong[0]]).__name__}; "
            f"{kind.__name__} is expected."
        )
    return value
