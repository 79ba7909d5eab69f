"""Heads: what is read from hidden states, each on the rows it needs and no others.

- A field head sees only the tokens a loss asks for (masked ones); it is never run on all.
- The whole-cell decoder (WCED) and label heads see one row per cell: decoding the first token
  alone is the length of the cell times cheaper than decoding all tokens and keeping one.
- A label head standardises the row by the means and deviations of its training cells: what all
  cells share would otherwise drown what tells them apart, dropout above all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omics.models.encoder import ACTIVATIONS
from omics.models.outputs import ScoreRows

if TYPE_CHECKING:
    from omics.models.model_config import FieldHeadConfig, LabelHeadConfig, ModelConfig, WcedConfig


class FieldTransform(nn.Module):
    """What hidden states pass before the decoders of all fields, [K, d] to [K, d].

    `shared` is a linear layer, the activation and a norm, as in BERT; `shared_norm` leaves the
    linear layer out.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.dense = nn.Linear(d, d) if config.field_transform == "shared" else nn.Identity()
        self.activation = ACTIVATIONS[config.head_activation or config.activation]
        self.norm = nn.LayerNorm(d, config.layer_norm_eps)

    def forward(self, hidden_Kd: Tensor) -> Tensor:
        """Return [K, d].

        Args:
            hidden_Kd: chosen rows of the hidden states.
        """
        transformed: Tensor = self.norm(self.activation(self.dense(hidden_Kd)))
        return transformed


class OwnTransform(nn.Module):
    """The linear layer and GELU of a head of its own, [K, d] to [K, d]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_Kd: Tensor) -> Tensor:
        """Return [K, d].

        Args:
            hidden_Kd: chosen rows of the hidden states.
        """
        return F.gelu(self.dense(hidden_Kd))


class FieldHead(nn.Module):
    """Transformed hidden states of chosen tokens [K, d] to outputs [K, width]."""

    def __init__(self, config: ModelConfig, head: FieldHeadConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.is_scores = head.kind == "token_scores"
        width = config.field(head.field).vocabulary_size if self.is_scores else 1
        own = config.field_transform == "own"
        self.transform: nn.Module = OwnTransform(d) if own else nn.Identity()
        self.decoder: nn.Linear | None = None
        self.bias: nn.Parameter | None = None
        if head.tied:
            self.bias = nn.Parameter(torch.zeros(width))
        else:
            self.decoder = nn.Linear(d, width)

    def forward(self, hidden_Kd: Tensor, table_Vd: Tensor | None = None) -> Tensor:
        """Return [K, width].

        Args:
            hidden_Kd: chosen rows of the hidden states, behind the shared transform if there is one.
            table_Vd: of a tied head: the input table of its field.
        """
        if self.decoder is not None:
            decoded: Tensor = self.decoder(self.transform(hidden_Kd))
            return decoded
        return self.score_rows(hidden_Kd, table_Vd).scores()

    @property
    def scores_in_parts(self) -> bool:
        """Whether the output is a score of every id, by a layer that is nothing but its weights."""
        return self.is_scores and type(self.decoder) in (nn.Linear, type(None))

    def score_rows(self, hidden_Kd: Tensor, table_Vd: Tensor | None = None) -> ScoreRows:
        """Return what the last layer makes the output of.

        Args:
            hidden_Kd: see `forward`.
            table_Vd: see `forward`.
        """
        weight, bias = table_Vd, self.bias
        if self.decoder is not None:
            weight, bias = self.decoder.weight, self.decoder.bias
        assert weight is not None
        assert bias is not None
        return ScoreRows(self.transform(hidden_Kd), weight, bias)


class MvcHead(nn.Module):
    """A value of a gene from its input vector and the pooled row of its cell alone, [K, 1].

    Masked value prediction for cell modelling of scGPT (Cui et al. 2024): the inner product of the
    pooled row with a query made of the gene's vector, so that the row must know the whole cell.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.pooled_size, bias=False)

    def forward(self, gene_Kd: Tensor, pooled_Kp: Tensor) -> Tensor:
        """Return [K, 1].

        Args:
            gene_Kd: input vectors of the genes asked for.
            pooled_Kp: the pooled row of the cell of each.
        """
        query = self.projection(torch.sigmoid(self.query(gene_Kd)))
        return (query * pooled_Kp).sum(-1, keepdim=True)


class WcedHead(nn.Module):
    """One row per cell to outputs of every gene, [n, V, number of outputs]."""

    def __init__(self, config: ModelConfig, wced: WcedConfig) -> None:
        super().__init__()
        self.num_outputs = len(wced.outputs)
        width = config.pooled_size if wced.reads == "pooled" else config.hidden_size
        self.decoder = nn.Linear(width, config.gene_vocabulary_size * self.num_outputs)

    def forward(self, row_nd: Tensor, genes: Tensor | None = None) -> Tensor:
        """Return [n, V, number of outputs], or [n, genes, number of outputs] of a subset.

        Args:
            row_nd: one row per cell.
            genes: int64, token ids to decode; None for all.
        """
        if genes is None:
            decoded = self.decoder(row_nd)
        else:
            num_genes = self.decoder.out_features // self.num_outputs
            first = torch.arange(self.num_outputs, device=genes.device) * num_genes
            chosen = (first[:, None] + genes).flatten()
            decoded = F.linear(row_nd, self.decoder.weight[chosen], self.decoder.bias[chosen])
        return decoded.unflatten(1, (self.num_outputs, -1)).transpose(1, 2)


class LabelHead(nn.Module):
    """One row per cell to class logits [n, C].

    Attributes:
        reverses: whether gradients into the row are turned round in training. In evaluation mode a
            gradient is that of the logits, as attribution needs it.
        reversal_strength: by how much; a schedule may set it before a step. At 0 the row gets no
            gradient.
    """

    def __init__(self, config: ModelConfig, label: LabelHeadConfig) -> None:
        super().__init__()
        # Constants of the head, set once; parameters, because those are what checkpoints keep.
        d = config.pooled_size if label.token is None else config.hidden_size
        self.center = nn.Parameter(torch.zeros(d), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(d), requires_grad=False)
        self.reverses = label.gradient_reversal > 0
        self.reversal_strength = label.gradient_reversal
        self.inner: nn.Module = nn.Identity()
        if label.depth == 2:
            self.inner = DeepLabelLayer(config, label, d)
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = nn.Linear(d, label.num_classes)

    @torch.no_grad()
    def standardize(self, row_nd: Tensor) -> None:
        """Take means and deviations from the rows of the training cells.

        Args:
            row_nd: one row per training cell.
        """
        self.center.copy_(row_nd.mean(0))
        deviation = row_nd.std(0, correction=0)
        self.scale.copy_(1 / deviation.clamp(min=1e-6))

    def forward(self, row_nd: Tensor) -> Tensor:
        """Return [n, C].

        Args:
            row_nd: one row per cell.
        """
        if self.reverses and self.training:
            row_nd = reverse_gradient(row_nd, self.reversal_strength)
        standard = (row_nd - self.center) * self.scale
        return self.decoder(self.dropout(self.inner(standard)))


class DeepLabelLayer(nn.Module):
    """A linear layer, the activation and a norm before a label's decoder, [n, d] to [n, d]."""

    def __init__(self, config: ModelConfig, label: LabelHeadConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.activation = ACTIVATIONS[config.head_activation or config.activation]
        self.norm: nn.Module = nn.Identity()
        if label.norm:
            self.norm = nn.LayerNorm(width, config.layer_norm_eps, bias=config.norm_bias)

    def forward(self, row_nd: Tensor) -> Tensor:
        """Return [n, d].

        Args:
            row_nd: one row per cell.
        """
        deeper: Tensor = self.norm(self.activation(self.dense(row_nd)))
        return deeper


class _ReversedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, row_nd: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return row_nd.view_as(row_nd)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse_gradient(row_nd: Tensor, strength: float) -> Tensor:
    """Return the rows as they are; their gradient is multiplied by minus `strength`.

    Args:
        row_nd: one row per cell.
        strength: how strongly what is behind fights what is before (Ganin and Lempitsky 2015).
    """
    reversed_: Tensor = _ReversedGradient.apply(row_nd, strength)  # type: ignore[no-untyped-call]
    return reversed_
