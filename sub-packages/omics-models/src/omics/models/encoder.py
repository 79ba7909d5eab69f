"""The flat encoder: transformer blocks on [T, d], with attention inside each cell.

- One block with switches: pre- or post-norm, plain or gated GELU, biases, rotary positions.
- Rotary tables are computed per batch in float32 from positions that restart in every cell:
  no buffer to lose on loading, no growing angle along a pack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omics.models.attention import BACKENDS

if TYPE_CHECKING:
    from omics.models.model_config import ModelConfig
    from omics.models.ragged_layout import RaggedLayout

RotaryTable = tuple[Tensor, Tensor]


def rotary_table(position_T: Tensor, head_size: int, theta: float) -> RotaryTable:
    """Return cosines and sines, float32 [T, 1, head_size] (Su et al. 2021).

    Args:
        position_T: int64, positions within each cell.
        head_size: even.
        theta: base of the angles.
    """
    exponents = torch.arange(0, head_size, 2, device=position_T.device, dtype=torch.float32)
    angle = position_T[:, None].float() / theta ** (exponents / head_size)
    angle = torch.cat((angle, angle), -1)[:, None]
    return angle.cos(), angle.sin()


def rotate(x_THD: Tensor, table: RotaryTable) -> Tensor:
    """Return queries or keys turned by their position.

    Args:
        x_THD: [T, H, D].
        table: of `rotary_table`.
    """
    x = x_THD.float()
    first, second = x.chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (x * table[0] + turned * table[1]).to(x_THD.dtype)


class Block(nn.Module):
    """Attention and feed-forward with residuals."""

    def __init__(self, config: ModelConfig, attention: str) -> None:
        super().__init__()
        d, bias = config.hidden_size, config.bias
        self.num_heads = config.num_heads
        self.head_size = d // config.num_heads
        self.pre_norm = config.norm == "pre"
        self.glu = config.glu
        self.attention = attention
        self.attention_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.mlp_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.qkv = nn.Linear(d, 3 * d, bias)
        self.out = nn.Linear(d, d, bias)
        self.up = nn.Linear(d, config.intermediate_size * (2 if config.glu else 1), bias)
        self.down = nn.Linear(config.intermediate_size, d, bias)
        self.dropout = nn.Dropout(config.dropout)

    def attend(self, x_Td: Tensor, layout: RaggedLayout, table: RotaryTable | None) -> Tensor:
        """Return the attention branch, [T, d].

        Args:
            x_Td: input.
            layout: of the batch.
            table: rotary table, or None.
        """
        q, k, v = self.qkv(x_Td).unflatten(1, (3, self.num_heads, self.head_size)).unbind(1)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        mixed = BACKENDS[self.attention](q, k, v, layout)
        return self.dropout(self.out(mixed.flatten(1)))

    def feed_forward(self, x_Td: Tensor) -> Tensor:
        """Return the feed-forward branch, [T, d].

        Args:
            x_Td: input.
        """
        wide = self.up(x_Td)
        if self.glu:
            value, gate = wide.chunk(2, -1)
            return self.dropout(self.down(F.gelu(value) * gate))
        return self.dropout(self.down(F.gelu(wide)))

    def forward(self, x_Td: Tensor, layout: RaggedLayout, table: RotaryTable | None) -> Tensor:
        """Return the next hidden states, [T, d].

        Args:
            x_Td: hidden states.
            layout: of the batch.
            table: rotary table, or None.
        """
        if self.pre_norm:
            x_Td = x_Td + self.attend(self.attention_norm(x_Td), layout, table)
            return x_Td + self.feed_forward(self.mlp_norm(x_Td))
        x_Td = self.attention_norm(x_Td + self.attend(x_Td, layout, table))
        return self.mlp_norm(x_Td + self.feed_forward(x_Td))


class Encoder(nn.Module):
    """A stack of blocks."""

    def __init__(self, config: ModelConfig, attention: str = "loop") -> None:
        super().__init__()
        self.head_size = config.hidden_size // config.num_heads
        self.rope_theta = config.rope_theta if config.positions == "rope" else None
        self.layers = nn.ModuleList(Block(config, attention) for _ in range(config.num_layers))
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm: nn.Module = norm if config.final_norm else nn.Identity()

    def forward(self, x_Td: Tensor, layout: RaggedLayout) -> Tensor:
        """Return the last hidden states, [T, d].

        Args:
            x_Td: input embeddings.
            layout: of the batch.
        """
        table = None
        if self.rope_theta is not None:
            table = rotary_table(layout.position, self.head_size, self.rope_theta)
        for layer in self.layers:
            x_Td = layer(x_Td, layout, table)
        return self.norm(x_Td)
