"""`GeneBaseline`: what a cell shows where nothing is known of a gene.

- An attribution asks how a gene's token changes the answer from that of a token that says nothing, so
  the point of comparison must be a token that the model takes for one. Special tokens (first, last,
  read depths) belong to every cell and stay as they are.
- `mask`: the gene's id is the mask token; its value is the mask token of that field where training
  hid values of it, else 0. The answer is what the gene and its value change together.
- `zero`: the gene stays and its value is 0 (the bin of zeros): what expressing it changes. A model of
  ranks has no values, and no such baseline.
- A continuous field takes no id: its special tokens are negative, and a positive number there is a
  value. An id put into such a field would be an expression of that height.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, nearest
from omics.tokenizers import GeneBinTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.models.bundle import Bundle
    from omics.tokenizers import FieldSpec, TokenBatch

Array = np.ndarray[Any, np.dtype[Any]]

BASELINES = ("mask", "zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneBaseline:
    """The tokens that stand in place of genes.

    Attributes:
        genes: the field that says which tokens are genes.
        fills: `{field: what a gene's token shows there}`; other fields are left alone.
        num_bins: of tokens that name a gene and its bin; None for tokens that name genes.
        to_zero_bin: whether such a token becomes that of the same gene in the bin of zeros.
    """

    genes: FieldSpec
    fills: Mapping[str, float]
    num_bins: int | None = None
    to_zero_bin: bool = False

    @classmethod
    def of(cls, bundle: Bundle, kind: str) -> GeneBaseline:
        """Return the baseline of a kind for the fields of a bundle.

        Args:
            bundle: with a tokenizer of cells.
            kind: `mask` or `zero`.

        Raises:
            ConfigError: no such baseline, or this model has none.
        """
        if kind not in BASELINES:
            raise ConfigError(f"baseline is {kind!r}.{nearest(kind, BASELINES)}")
        genes, *others = bundle.tokenizer.fields
        read = {field.name for field in bundle.model.model_config.fields}
        values = [spec for spec in others if spec.name in read]
        tokenizer = bundle.tokenizer
        num_bins = tokenizer.num_bins if isinstance(tokenizer, GeneBinTokenizer) else None
        if kind == "zero":
            if num_bins is None and not values:
                raise ConfigError(
                    f"baseline=zero sets the values of genes to 0, and this model reads only "
                    f"{genes.name!r}, which holds no values. Take baseline=mask."
                )
            fills = {spec.name: _zero(spec) for spec in values}
            return cls(
                genes=genes, fills=fills, num_bins=num_bins, to_zero_bin=num_bins is not None
            )
        if genes.mask_id is None:
            raise ConfigError(
                f"baseline=mask shows the mask token in place of a gene, and the field "
                f"{genes.name!r} of this model has none. Take baseline=zero."
            )
        fills = {genes.name: genes.mask_value()}
        for spec in values:
            hidden = spec.mask_id is not None and _was_hidden(bundle, spec.name)
            fills[spec.name] = spec.mask_value() if hidden else _zero(spec)
        return cls(genes=genes, fills=fills, num_bins=num_bins)

    def is_gene(self, batch: TokenBatch) -> Array:
        """Return bool [T], True at the tokens of genes.

        Args:
            batch: numpy tokens.
        """
        return ~self.genes.is_special(np.asarray(batch.fields[self.genes.name]))

    def gene_of(self, tokens: Array) -> Array:
        """Return int64, the places in the vocabulary of the genes of tokens.

        Args:
            tokens: ids of the field of the genes, none of them special.
        """
        tokens = np.asarray(tokens, np.int64)
        return tokens if self.num_bins is None else tokens // self.num_bins

    def instead_of(self, batch: TokenBatch, hidden: Array) -> TokenBatch:
        """Return the batch with some genes shown as the baseline shows them.

        Args:
            batch: numpy tokens.
            hidden: bool [T], which tokens; those of genes.
        """
        shown = {
            name: np.where(hidden, np.asarray(fill, batch.fields[name].dtype), batch.fields[name])
            for name, fill in self.fills.items()
        }
        if self.to_zero_bin:
            assert self.num_bins is not None
            name = self.genes.name
            ids = batch.fields[name]
            shown[name] = np.where(hidden, ids - ids % self.num_bins, ids)
        return batch.with_fields(**shown)


def _zero(spec: FieldSpec) -> float:
    """Return what the value 0 is in a field."""
    if spec.kind == "continuous":
        return 0.0
    zeros = np.flatnonzero(np.asarray(spec.token_values) == 0)
    if not len(zeros):
        raise ConfigError(
            f"The ids of the field {spec.name!r} stand for no values, so none of them means that "
            "nothing was measured: genes of this model have no baseline."
        )
    return float(zeros[0])


def _was_hidden(bundle: Bundle, name: str) -> bool:
    """Return whether a training hid values of a field: its record or a head of it says so."""
    heads = {head.field for head in bundle.model.model_config.field_heads}
    return name in heads or name in bundle.provenance.get("masked_fields", ())
