"""The flat encoder: transformer blocks on [T, d], with attention inside each cell.

- One block with switches covers BERT, ModernBERT and bidirectional LLaMA: pre- or post-norm, layer
  or RMS norm, plain or gated activation, biases, rotary positions, windows; and softmax attention
  may be replaced by random features (Performer) or landmarks (Nyströmformer).
- The last block ends with the tokens that someone reads: attention of their queries to the keys of
  all tokens, and everything behind it. In four blocks that saves a fifth of a masked training step.
- Rotary tables are computed per batch in float32 from positions that restart in every cell:
  no buffer to lose on loading, no growing angle along a pack.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omics.models.attention import backend_of
from omics.models.favor_attention import FavorAttention
from omics.models.nystrom_attention import NystromAttention

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from omics.models.model_config import ModelConfig
    from omics.models.ragged_layout import AskedTokens, RaggedLayout

RotaryTable = tuple[Tensor, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


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
    """Attention and feed-forward with residuals.

    Args:
        config: of the model.
        layer: number of the block, from 0.
        backend: of softmax attention, a key of `attention.BACKENDS`.
    """

    def __init__(self, config: ModelConfig, layer: int, backend: str) -> None:
        super().__init__()
        d, bias = config.hidden_size, config.bias
        self.num_heads = config.num_heads
        self.pre_norm = config.norm == "pre"
        self.glu = config.glu
        self.activation = ACTIVATIONS[config.activation]
        self.backend = backend_of(backend)
        self.window = config.window_of(layer)
        skipped = self.pre_norm and layer == 0 and not config.first_norm
        self.attention_norm = nn.Identity() if skipped else make_norm(config)
        self.mlp_norm = make_norm(config)
        self.qkv = nn.Linear(d, 3 * d, bias)
        self.approximation = make_approximation(config)
        self.out = nn.Linear(d, d, bias)
        self.up = nn.Linear(d, config.intermediate_size * (2 if config.glu else 1), bias)
        self.down = nn.Linear(config.intermediate_size, d, bias)
        self.dropout = nn.Dropout(config.dropout)

    def attend(
        self,
        x_Td: Tensor,
        layout: RaggedLayout,
        table: RotaryTable | None,
        asked: AskedTokens | None = None,
    ) -> Tensor:
        """Return the attention branch, [T, d].

        Args:
            x_Td: input.
            layout: of the batch.
            table: rotary table, or None.
            asked: tokens that it is returned of, [A, d]; None for all.
        """
        q, k, v = self.qkv(x_Td).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        # Windows, random features and landmarks are about all queries: asked ones are picked afterwards.
        is_plain = self.approximation is None and self.window is None
        queries = None
        if asked is not None and is_plain:
            q, queries = q.index_select(0, asked.tokens), asked.layout
        if self.approximation is None:
            mixed = self.backend(q, k, v, layout, self.window, queries=queries)
        else:
            mixed = self.approximation(q, k, v, layout)
        if asked is not None and not is_plain:
            mixed = mixed.index_select(0, asked.tokens)
        return self.dropout(self.out(mixed.flatten(1)))

    def feed_forward(self, x_Td: Tensor) -> Tensor:
        """Return the feed-forward branch, [T, d].

        Args:
            x_Td: input.
        """
        wide = self.up(x_Td)
        if self.glu:
            value, gate = wide.chunk(2, -1)
            return self.dropout(self.down(self.activation(value) * gate))
        return self.dropout(self.down(self.activation(wide)))

    def forward(
        self,
        x_Td: Tensor,
        layout: RaggedLayout,
        table: RotaryTable | None,
        asked: AskedTokens | None = None,
    ) -> Tensor:
        """Return the next hidden states, [T, d].

        Args:
            x_Td: hidden states.
            layout: of the batch.
            table: rotary table, or None.
            asked: tokens that they are returned of, [A, d]; None for all.
        """
        rows = x_Td if asked is None else x_Td.index_select(0, asked.tokens)
        if self.pre_norm:
            rows = rows + self.attend(self.attention_norm(x_Td), layout, table, asked)
            return rows + self.feed_forward(self.mlp_norm(rows))
        rows = self.attention_norm(rows + self.attend(x_Td, layout, table, asked))
        return self.mlp_norm(rows + self.feed_forward(rows))


class Encoder(nn.Module):
    """A stack of blocks.

    Attributes:
        compiled: the blocks as machine code, which are run in their place; None for the blocks.
        recomputes: whether blocks keep nothing but their input for the backward pass, and compute
            the rest again in it.
    """

    def __init__(self, config: ModelConfig, backend: str = "auto") -> None:
        super().__init__()
        self.head_size = config.hidden_size // config.num_heads
        self.layers = nn.ModuleList(
            Block(config, layer, backend) for layer in range(config.num_layers)
        )
        self.compiled: list[Callable[..., Tensor]] | None = None
        self.recomputes = False
        self.norm = make_norm(config) if config.final_norm else nn.Identity()
        self.thetas: list[float | None] = [None] * config.num_layers
        if config.positions == "rope":
            local = (
                config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
            )
            self.thetas = [
                config.rope_theta if config.window_of(layer) is None else local
                for layer in range(config.num_layers)
            ]

    def use_backend(self, name: str) -> None:
        """Choose how softmax attention is computed from now on.

        Args:
            name: a key of `attention.BACKENDS`.

        Raises:
            UsageError: there is none of that name.
        """
        for layer in self.layers:
            assert isinstance(layer, Block)
            layer.backend = backend_of(name)

    def forward(
        self,
        x_Td: Tensor,
        layout: RaggedLayout,
        *,
        kept: Collection[int] = (),
        asked: AskedTokens | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the final hidden states, [T, d], and those of the layers asked for.

        Args:
            x_Td: input embeddings.
            layout: of the batch.
            kept: layers whose hidden states are returned: 0 for the input, k for the output of
                the k-th block, before the final norm.
            asked: tokens that the last block is computed for, [A, d]; None for all.
        """
        tables = {
            theta: rotary_table(layout.position, self.head_size, theta)
            for theta in {theta for theta in self.thetas if theta is not None}
        }
        layers = {0: x_Td} if 0 in kept else {}
        blocks: Iterable[Any] = self.layers if self.compiled is None else self.compiled
        for number, (layer, theta) in enumerate(zip(blocks, self.thetas, strict=True), 1):
            table = None if theta is None else tables[theta]
            given = (x_Td, layout, table, asked if number == len(self.layers) else None)
            if self.recomputes and torch.is_grad_enabled():
                x_Td = checkpoint(layer, *given, use_reentrant=False)
            else:
                x_Td = layer(*given)
            if number in kept:
                layers[number] = x_Td
        return self.norm(x_Td), layers


def make_norm(config: ModelConfig) -> nn.Module:
    """Return a new normalisation of hidden states.

    Args:
        config: of the model.
    """
    eps = config.layer_norm_eps if config.block_norm_eps is None else config.block_norm_eps
    if config.norm_kind == "rms":
        return nn.RMSNorm(config.hidden_size, eps)
    return nn.LayerNorm(config.hidden_size, eps, bias=config.norm_bias)


def make_approximation(config: ModelConfig) -> FavorAttention | NystromAttention | None:
    """Return what stands in for softmax attention; None for softmax attention itself.

    Args:
        config: of the model.
    """
    if config.attention == "favor":
        return FavorAttention(config.hidden_size // config.num_heads, config.num_features)
    if config.attention == "nystrom":
        return NystromAttention(config.num_heads, config.num_landmarks, config.conv_kernel)
    return None
