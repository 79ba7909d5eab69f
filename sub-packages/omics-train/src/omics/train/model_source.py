"""Where a run's model, tokenizer and preprocessing come from: a checkpoint, or the configuration.

- With a checkpoint its sizes, tokenizer and preprocessing win, and a setting that would say
  otherwise is refused: nothing is dropped in silence.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, nearest
from omics.data.transforms import (
    Transform,
    check_transforms,
    transform_from_dict,
)
from omics.models import Bundle, ModelConfig
from omics.models.gene_embedding import GeneNames
from omics.models.model_config import FieldInput
from omics.tokenizers import (
    CellTokenizer,
    FieldSpec,
    GeneTokenizer,
    RankValueTokenizer,
    ValueField,
    reads_cells,
)
from omics.tokenizers.rank_value_tokenizer import PUBLISHED
from omics.train.control_pairing import PERTURBATION
from omics.train.gene_vectors import MatchedVectors, match_vectors, read_gene_vectors
from omics.train.run_config import FieldConfig, ModelSection, RunConfig, TokenizerConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omics.data.genes import GeneTable

# What a field of the configuration says of the model.
_FIELD_SWITCHES = (
    "encoder",
    "scaled_by",
    "inner_size",
    "zero_row",
    "num_frequencies",
    "frequency_scale",
    "learned_frequencies",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What a training starts from.

    Attributes:
        tokenizer: of the cells.
        config: of the encoder, without heads.
        preprocessing: steps that inference runs too.
        training_steps: the same with the random steps of training in their place.
        masked: fields that are hidden and predicted.
        vectors: pre-trained vectors of the genes, by field.
        checkpoint: whose weights are the start, or None.
    """

    tokenizer: CellTokenizer
    config: ModelConfig
    preprocessing: list[Transform]
    training_steps: list[Transform]
    masked: list[FieldSpec]
    vectors: Mapping[str, MatchedVectors]
    checkpoint: Bundle | None


def model_source(config: RunConfig, genes: GeneTable) -> ModelSource:
    """Return what a run starts from.

    Args:
        config: of the run.
        genes: of the store; the vocabulary of a new model.

    Raises:
        ConfigError: a setting contradicts the checkpoint, or something needed is not set.
    """
    if config.checkpoint is None:
        tokenizer = new_tokenizer(config.tokenizer, genes)
        vectors = _gene_vectors(config.fields, tokenizer)
        encoder = _new_config(config, tokenizer, vectors)
        steps = config.data_module.transforms or []
        if not steps and isinstance(tokenizer, GeneTokenizer):
            raise ConfigError(
                "data_module.transforms is empty: name at least log_normalize, which turns "
                "counts into the expression field."
            )
        preprocessing = [transform_from_dict(step) for step in steps]
        checkpoint = None
    else:
        checkpoint = Bundle.load(config.checkpoint)
        if not reads_cells(checkpoint.tokenizer):
            raise ConfigError(
                f"{config.checkpoint} does not read cells: it cannot be trained here."
            )
        tokenizer = checkpoint.tokenizer
        vectors = {}
        encoder = dataclasses.replace(
            checkpoint.model.model_config, field_heads=(), wced=(), labels=()
        )
        _refuse_contradictions(config, encoder, checkpoint)
        preprocessing = list(checkpoint.transforms)
    random_steps = [transform_from_dict(step) for step in config.data_module.augmentations]
    return ModelSource(
        tokenizer=tokenizer,
        config=encoder,
        preprocessing=preprocessing,
        training_steps=_place(preprocessing, random_steps),
        masked=_masked_fields(config.fields, tokenizer),
        vectors=vectors,
        checkpoint=checkpoint,
    )


def new_tokenizer(config: TokenizerConfig, genes: GeneTable) -> CellTokenizer:
    """Return the tokenizer of a new model.

    Args:
        config: of the tokenizer.
        genes: of the store.

    Raises:
        ConfigError: an unknown kind, or an option that the kind does not have.
    """
    if config.kind in PUBLISHED:
        return _rank_value_tokenizer(config)
    if config.kind != GeneTokenizer.kind:
        known = [GeneTokenizer.kind, *PUBLISHED]
        raise ConfigError(f"tokenizer.kind is {config.kind!r}.{nearest(config.kind, known)}")
    if config.table is not None:
        raise ConfigError(
            f"tokenizer.table is for the kinds {', '.join(PUBLISHED)}; the kind 'gene' takes its "
            "vocabulary from the store."
        )
    values = [ValueField() if config.num_bins is None else ValueField.binned(config.num_bins)]
    if config.perturbation:
        values.append(ValueField.binned(2, name=PERTURBATION, source=PERTURBATION))
    return GeneTokenizer.from_genes(
        genes,
        values=values,
        prepend=None if config.prepend_cls else (),
        append_sep=config.append_sep,
        depth_tokens=config.depth_tokens,
        max_length=config.max_length,
        min_coverage=config.min_coverage,
    )


def _rank_value_tokenizer(config: TokenizerConfig) -> RankValueTokenizer:
    if config.table is None:
        raise ConfigError(
            f"tokenizer.kind={config.kind} needs the table of its genes: set tokenizer.table to a "
            "file with the columns ensembl_id, symbol, token_id and median."
        )
    default = TokenizerConfig()
    for name in ("prepend_cls", "append_sep", "depth_tokens", "num_bins", "perturbation"):
        if getattr(config, name) != getattr(default, name):
            raise ConfigError(
                f"tokenizer.{name} is for the kind 'gene'; what stands around a cell of "
                f"{config.kind!r} belongs to its version. Leave it out."
            )
    return RankValueTokenizer.from_table(
        config.table,
        version=PUBLISHED[config.kind],
        max_length=config.max_length,
        min_coverage=config.min_coverage,
    )


def _new_config(
    config: RunConfig, tokenizer: CellTokenizer, vectors: Mapping[str, MatchedVectors]
) -> ModelConfig:
    sizes = {spec.name: spec.vocabulary_size for spec in tokenizer.fields}
    for chosen in config.fields:
        if chosen.field_name not in sizes:
            raise ConfigError(
                f"fields names {chosen.field_name!r}; the tokenizer makes {sorted(sizes)}."
            )
    fields = []
    for chosen in config.fields:
        found = vectors.get(chosen.field_name)
        switches = {name: getattr(chosen, name) for name in _FIELD_SWITCHES}
        fields.append(
            FieldInput(
                name=chosen.field_name,
                vocabulary_size=sizes[chosen.field_name],
                vector_size=None if found is None else found.vectors.shape[1],
                **switches,
            )
        )
    return ModelConfig(fields=tuple(fields), **dataclasses.asdict(config.model))


def _gene_vectors(
    fields: Sequence[FieldConfig], tokenizer: CellTokenizer
) -> dict[str, MatchedVectors]:
    """Return the pre-trained vectors by field: there is one field of genes at most."""
    genes = tokenizer.fields[0].name
    vectors = {}
    for chosen in fields:
        if chosen.vectors is None:
            if chosen.freeze_vectors:
                raise ConfigError(
                    f"fields: {chosen.field_name!r} has freeze_vectors and no vectors: name their "
                    "table."
                )
            continue
        if chosen.field_name != genes or chosen.encoder != "embedding":
            raise ConfigError(
                f"fields: {chosen.field_name!r} has vectors; these are for the field {genes!r} "
                "with encoder: embedding."
            )
        table = read_gene_vectors(chosen.vectors)
        names = GeneNames.of(tokenizer)
        vectors[genes] = match_vectors(table, tokenizer, names, frozen=chosen.freeze_vectors)
    return vectors


def _refuse_contradictions(config: RunConfig, encoder: ModelConfig, checkpoint: Bundle) -> None:
    default = ModelSection()
    for item in dataclasses.fields(ModelSection):
        asked, has = getattr(config.model, item.name), getattr(encoder, item.name)
        if asked not in (getattr(default, item.name), has):
            raise ConfigError(
                f"model.{item.name}={asked} contradicts the checkpoint, which has {has}. "
                "Leave it out, or train a new model without checkpoint."
            )
    if config.tokenizer != TokenizerConfig():
        raise ConfigError("The tokenizer comes from the checkpoint: leave `tokenizer` out.")
    for chosen in config.fields:
        field = next((f for f in encoder.fields if f.name == chosen.field_name), None)
        if field is None or any(
            getattr(chosen, name) != getattr(field, name) for name in _FIELD_SWITCHES
        ):
            raise ConfigError(
                f"fields: {chosen.field_name!r} differs from the checkpoint's fields "
                f"{[f.name for f in encoder.fields]}."
            )
        if chosen.vectors is not None or chosen.freeze_vectors:
            raise ConfigError(
                f"fields: {chosen.field_name!r} has vectors, and the checkpoint has its own table. "
                "Leave them out; trainer.freeze keeps a table as it is."
            )
    steps = config.data_module.transforms
    ours = [transform.to_dict() for transform in checkpoint.transforms]
    if steps is not None and [transform_from_dict(step).to_dict() for step in steps] != ours:
        raise ConfigError(
            f"data_module.transforms differs from the checkpoint's preprocessing {ours}. "
            "Leave it out: the weights belong to that preprocessing."
        )


def _masked_fields(fields: Sequence[FieldConfig], tokenizer: CellTokenizer) -> list[FieldSpec]:
    masked = {chosen.field_name for chosen in fields if chosen.is_masked}
    return [spec for spec in tokenizer.fields if spec.name in masked]


def _place(preprocessing: list[Transform], random_steps: list[Transform]) -> list[Transform]:
    """Return the steps of training: random ones after the normalisation, before cuts."""
    for step in preprocessing:
        if step.training_only:
            raise ConfigError(
                f"data_module.transforms holds {step.name!r}, a step of training only: "
                "move it to data_module.augmentations."
            )
    for step in random_steps:
        if not step.training_only:
            raise ConfigError(
                f"data_module.augmentations holds {step.name!r}, which inference needs too: "
                "move it to data_module.transforms."
            )
    last = max((i for i, s in enumerate(preprocessing) if "normalises" in s.kinds()), default=-1)
    joined = [*preprocessing[: last + 1], *random_steps, *preprocessing[last + 1 :]]
    check_transforms(joined)
    return joined
