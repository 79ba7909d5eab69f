"""From the configuration to a `MaskPlan`: what is hidden, with which ratios and weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError
from omics.tokenizers import GeneTokenizer
from omics.train.adaptive_masking import AdaptiveMasking
from omics.train.masking import FieldMask, MaskPlan, pattern_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.tokenizers import CellTokenizer, FieldSpec
    from omics.train.run_config import RunConfig


def mask_plan(config: RunConfig, tokenizer: CellTokenizer, masked: Sequence[FieldSpec]) -> MaskPlan:
    """Return how the fields of a run are hidden.

    Args:
        config: of the run.
        tokenizer: of the cells.
        masked: the fields that are hidden.

    Raises:
        ConfigError: ratios that are none, patterns without a gene, weights or a share of zeros
            without a masked field, weights beside a share of zeros.
    """
    data = config.data_module
    ratios = {field.field_name: field for field in config.fields}

    def ratio(field: str, name: str) -> Any:
        own = getattr(ratios.get(field), name, None)
        return getattr(data, name) if own is None else own

    names = ("change_ratio", "mask_ratio", "switch_ratio", "nonzero_ratio")
    masks = tuple(
        FieldMask(field=spec, **{name: ratio(spec.name, name) for name in names}) for spec in masked
    )
    for field in config.fields:
        if not field.is_masked and any(getattr(field, name) is not None for name in names):
            raise ConfigError(
                f"The field {field.field_name!r} has a ratio for hiding and is not masked: set "
                "is_masked, or leave the ratio out."
            )
    if not masks and (data.pattern_weights or data.adaptive_masking.enabled):
        raise ConfigError(
            "data_module.pattern_weights and adaptive_masking say which genes are hidden more "
            "often, and no field is masked: set is_masked in an entry of fields."
        )
    if not masks and data.nonzero_ratio is not None:
        raise ConfigError(
            "data_module.nonzero_ratio says which values are hidden, and no field is masked: set "
            "is_masked in an entry of fields."
        )
    vocabulary = tokenizer.vocabulary
    adaptive = data.adaptive_masking
    return MaskPlan(
        genes=tokenizer.fields[0],
        fields=masks,
        comask=data.comask_across_fields,
        gene_weights=pattern_weights(
            data.pattern_weights,
            vocabulary.names,
            *([tokenizer.symbols] if isinstance(tokenizer, GeneTokenizer) else []),
            ids=vocabulary.ordinary_ids,
            num_ids=len(vocabulary),
        )
        if data.pattern_weights
        else None,
        adaptive=AdaptiveMasking(temperature=adaptive.temperature, num_bins=adaptive.num_bins)
        if adaptive.enabled
        else None,
        seed=config.seed,
    )
