"""`Readout`: which row of a cell, of which layer, its embedding is.

- Nothing given means what the bundle says (`embedding_pooling`, `embedding_layer`); a bundle that
  says nothing gives its pooled row, the one that label heads read.
- Layer 0 is what enters the first block, layer k what leaves the k-th; negative layers count from
  the last block. The final hidden states are those of the last block behind the final norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError
from omics.models.model_config import check_pooling, place_of, pooling_parts

if TYPE_CHECKING:
    from torch import Tensor

    from omics.models.model import OmicsModel
    from omics.models.model_config import ModelConfig
    from omics.models.outputs import ModelOutput
    from omics.models.ragged_layout import RaggedLayout

POOLED = "pooled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """A row of each cell.

    Attributes:
        pooling: `pooled` (what label heads read), or a pooling of `ModelConfig`.
        layer: 0 to the number of blocks; None for the final hidden states.
        width: of the row.
        min_tokens: that a cell must have for every part of the row to be made of a token.
    """

    pooling: str
    layer: int | None
    width: int
    min_tokens: int

    @classmethod
    def of(
        cls, config: ModelConfig, *, pooling: str | None = None, layer: int | None = None
    ) -> Readout:
        """Return the readout that is meant.

        Args:
            config: of the model.
            pooling: `pooled`, a pooling of `ModelConfig`, or None: that of the bundle.
            layer: whose hidden states are pooled; negative ones count from the last block. None:
                the layer of the bundle, or the final hidden states where a pooling is given.

        Raises:
            ConfigError: no such pooling or layer in this model.
        """
        if pooling is None:
            if layer is None:
                layer = config.embedding_layer
            pooling = config.embedding_pooling or (POOLED if layer is None else config.pooling)
        if pooling == POOLED:
            if layer is not None:
                raise ConfigError(
                    f"The pooled row is made of the final hidden states and not of layer {layer}. "
                    "Name a pooling (such as mean) for a layer."
                )
            least = _min_tokens(config.pooling)
            return cls(pooling=POOLED, layer=None, width=config.pooled_size, min_tokens=least)
        check_pooling(pooling, "pooling", has_pooler=config.pooler)
        return cls(
            pooling=pooling,
            layer=layer_of(config, layer),
            width=config.hidden_size * len(pooling_parts(pooling)),
            min_tokens=_min_tokens(pooling),
        )

    def leading_tokens(self, config: ModelConfig) -> int | None:
        """Return how many first tokens of a cell this row and the heads of cells are made of.

        Args:
            config: of the model.

        Returns:
            None where they are made of all, or of another layer than the final one.
        """
        if self.layer is not None:
            return None
        return config.leading_tokens(config.pooling if self.pooling == POOLED else self.pooling)

    def rows(self, model: OmicsModel, output: ModelOutput, layout: RaggedLayout) -> Tensor:
        """Return one row per cell, [n, width].

        Args:
            model: that made the output.
            output: with the hidden states of the layer.
            layout: of the tokens that the output has hidden states of.
        """
        if self.pooling == POOLED:
            return output.pooled
        return model.pool(states_of(output, self.layer), layout, self.pooling)

    def to_dict(self) -> dict[str, str]:
        """Return what is written beside the numbers."""
        return {
            "pooling": self.pooling,
            "layer": layer_name(self.layer),
        }


def layer_name(layer: int | None) -> str:
    """Return what is written beside the numbers.

    Args:
        layer: as `layer_of` returns it.
    """
    return "final" if layer is None else str(layer)


def layer_of(config: ModelConfig, layer: int | None) -> int | None:
    """Return the number of a layer, from 0.

    Args:
        config: of the model.
        layer: may be negative: -1 is the last block; None stays None.

    Raises:
        ConfigError: the model has no such layer.
    """
    if layer is None:
        return None
    last = config.num_layers
    if not -last - 1 <= layer <= last:
        raise ConfigError(
            f"layer is {layer}; this model has the layers 0 (its inputs) to {last}, or -1 (its "
            f"last block) to {-last - 1}. Leave it out for the final hidden states."
        )
    return layer if layer >= 0 else last + 1 + layer


def gene_layer(config: ModelConfig, layer: int | None) -> int | None:
    """Return whose hidden states the vectors of genes are.

    Args:
        config: of the model.
        layer: as for `layer_of`; None for the layer of the bundle, or the final hidden states.

    Raises:
        ConfigError: the model has no such layer.
    """
    return layer_of(config, config.embedding_layer if layer is None else layer)


def states_of(output: ModelOutput, layer: int | None) -> Tensor:
    """Return the hidden states of a layer, [T, d].

    Args:
        output: with that layer.
        layer: as `layer_of` returns it.
    """
    return output.hidden if layer is None else output.layers[layer]


def _min_tokens(pooling: str) -> int:
    least = 1
    for part in pooling_parts(pooling):
        place = 1 if part == "mean_after_first" else place_of(part)
        least = max(least, 1 + (place or 0))
    return least
