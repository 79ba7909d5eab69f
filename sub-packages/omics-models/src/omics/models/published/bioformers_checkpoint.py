"""A Bioformers state dict as a bundle: BERT over tokens that name a gene and its bin.

- The file holds weights alone: the panel of genes and the number of bins must be given, and the
  number of heads where it is not that of the publication (64 numbers a head).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError, UsageError
from omics.data.matching.gene_tables import read_gene_list
from omics.data.transforms import LinearBins, LogBins, Transform
from omics.models.model_config import FieldHeadConfig, FieldInput, ModelConfig
from omics.models.published.checkpoint_opening import checked_config
from omics.models.published.checkpoint_settings import Settings, read_json
from omics.models.published.hf_bert_rows import (
    POSITION_IDS,
    bert_block_rows,
    stock_embedding_rows,
)
from omics.models.published.weight_rows import KeyMap, linear_rows
from omics.tokenizers import GeneBinTokenizer
from omics.tokenizers.gene_bin_tokenizer import GENE_BINS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.models.bundle import Bundle
    from omics.models.published.checkpoint_opening import Checkpoint, ConversionOptions
    from omics.models.published.weight_rows import Weights

BODY = "Bert."
HEAD_SIZE = 64
LINEAR = "bioformers-linear"
_LAYER = re.compile(r"Bert\.encoder\.layer\.(\d{1,6})\..*")


def convert_bioformers(checkpoint: Checkpoint, options: ConversionOptions) -> Bundle:
    """Return the bundle of a state dict.

    Args:
        checkpoint: open.
        options: `genes` and `num_bins` are read.

    Raises:
        UsageError: the genes or the number of bins were not given.
        InputDataError: they do not belong to the weights, or these are not whole.
    """
    if options.genes is None or options.num_bins is None:
        raise UsageError(
            f"{checkpoint.weights.where} holds weights alone. Give the genes in their order with "
            "--genes FILE and the number of bins, that of zeros included, with --num-bins."
        )
    settings = _settings(checkpoint)
    config = checked_config(lambda: _config(settings, checkpoint.weights), checkpoint.weights.where)
    tokenizer = GeneBinTokenizer(read_gene_list(options.genes), options.num_bins)
    ids, rows = tokenizer.fields[0].vocabulary_size, config.fields[0].vocabulary_size
    if ids != rows:
        raise InputDataError(
            f"{options.genes} does not belong to the checkpoint: {len(tokenizer.vocabulary)} genes "
            f"x {options.num_bins} bins and a mask are {ids:,} tokens, and the table of "
            f"{checkpoint.weights.where} has {rows:,} rows. Give the genes and bins it was trained "
            "with."
        )
    if len(tokenizer.vocabulary) > config.max_positions:
        raise InputDataError(
            f"{options.genes} has {len(tokenizer.vocabulary)} genes, and the checkpoint has "
            f"{config.max_positions} positions. Give the genes it was trained with."
        )
    num_types = checkpoint.weights.shape(f"{BODY}embeddings.token_type_embeddings.weight")[0]
    layout = {"num_types": num_types}
    linear = checkpoint.row.name == LINEAR
    binning: Transform = (LinearBins if linear else LogBins)(num_bins=options.num_bins)
    return checkpoint.bundle(
        config,
        bioformers_keys_of(config, layout),
        layout=layout,
        tokenizer=tokenizer,
        transforms=[binning],
        labels={},
        settings=settings.values,
        on_progress=options.on_progress,
    )


def bioformers_keys_of(config: ModelConfig, layout: Mapping[str, Any]) -> KeyMap:
    """Return the key map of a state dict, or of a bundle that was converted.

    Args:
        config: of the model.
        layout: of its provenance.
    """
    rows = [
        *stock_embedding_rows(BODY, GENE_BINS, layout["num_types"]),
        *bert_block_rows(BODY, config.num_layers),
        *linear_rows("field_transform.norm", "ClassificationHead.1"),
        *linear_rows(f"field_heads.{GENE_BINS}_token_scores.decoder", "ClassificationHead.3"),
    ]
    if config.pooler:
        rows += linear_rows("pooler.dense", f"{BODY}pooler.dense")
    return KeyMap(rows, [POSITION_IDS])


def _settings(checkpoint: Checkpoint) -> Settings:
    path = checkpoint.source.config
    if path is None:
        return Settings({}, checkpoint.weights.where)
    values = read_json(path)
    keys = ("num_attention_heads", "hidden_act", "layer_norm_eps", "hidden_dropout_prob")
    settings = Settings({key: values[key] for key in keys if key in values}, str(path))
    settings.require("hidden_act", "gelu", "it has another activation")
    return settings


def _config(settings: Settings, weights: Weights) -> ModelConfig:
    names = set(weights.names)
    found = [int(match[1]) for name in names if (match := _LAYER.fullmatch(name))]
    needed = [
        f"{BODY}embeddings.{each}_embeddings.weight" for each in ("word", "position", "token_type")
    ]
    missing = [name for name in needed if name not in names]
    if missing or not found:
        raise InputDataError(
            f"{weights.where} lacks {', '.join(missing) or 'the blocks of a BERT'}: it is not the "
            "state dict of a Bioformers model."
        )
    num_ids, hidden = weights.shape(needed[0])
    first = f"{BODY}encoder.layer.0.intermediate.dense.weight"
    if first not in names:
        raise InputDataError(f"{weights.where} lacks {first}.")
    return ModelConfig(
        fields=(FieldInput(name=GENE_BINS, encoder="embedding", vocabulary_size=num_ids),),
        hidden_size=hidden,
        num_layers=min(max(found) + 1, len(names)),
        num_heads=settings.whole("num_attention_heads", max(1, hidden // HEAD_SIZE)),
        intermediate_size=weights.shape(first)[0],
        norm="post",
        final_norm=False,
        embedding_norm=True,
        positions="learned",
        max_positions=weights.shape(needed[1])[0],
        dropout=settings.number("hidden_dropout_prob", 0.1),
        layer_norm_eps=settings.number("layer_norm_eps", 1e-12),
        pooling="mean",
        pooled_norm=False,
        pooler=f"{BODY}pooler.dense.weight" in names,
        field_transform="shared_norm",
        field_heads=(FieldHeadConfig(field=GENE_BINS, kind="token_scores"),),
    )
