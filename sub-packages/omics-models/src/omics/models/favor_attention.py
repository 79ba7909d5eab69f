"""`FavorAttention`: softmax attention approximated by positive random features (FAVOR+).

Choromanski et al. 2021, "Rethinking Attention with Performers". The cost of a cell grows with its
number of tokens, not with the square of it.

- With w ~ N(0, I), exp(q k) = E[exp(w q - |q|^2 / 2) exp(w k - |k|^2 / 2)]: numerator and
  denominator of softmax attention are estimated without bias, with an error that falls as
  1 / sqrt(number of features). Features are orthogonal in groups of D, which lowers the variance.
- The largest exponent is taken out before exponentiating, for queries per token and for keys per
  cell and head: it cancels, and no cell depends on another.
- The features are a parameter without gradient, so that a checkpoint holds them; `redraw` draws
  new ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omics.models.attention import attend_cells

if TYPE_CHECKING:
    from omics.models.ragged_layout import RaggedLayout


class FavorAttention(nn.Module):
    """Attention of one block by random features.

    Args:
        head_size: D.
        num_features: random features; more are more exact.
    """

    def __init__(self, head_size: int, num_features: int) -> None:
        super().__init__()
        empty = torch.empty(num_features, head_size)
        self.features = nn.Parameter(empty, requires_grad=False)
        self.redraw()

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw orthogonal features whose lengths are those of Gaussian vectors.

        Args:
            generator: of random numbers; None for the global one.
        """
        num_features, head_size = self.features.shape
        if self.features.is_meta:
            return
        num_blocks = -(-num_features // head_size)
        q, r = torch.linalg.qr(torch.randn(num_blocks, head_size, head_size, generator=generator))
        # Without the signs, the directions would not be uniform (Mezzadri 2007).
        blocks = q.mT * r.diagonal(dim1=-2, dim2=-1).sign()[..., None]
        lengths = torch.randn(num_features, head_size, generator=generator).norm(dim=1)
        self.features.copy_(blocks.flatten(0, 1)[:num_features] * lengths[:, None])

    def forward(self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: RaggedLayout) -> Tensor:
        """Return [T, H, D].

        Args:
            q_THD: queries.
            k_THD: keys.
            v_THD: values.
            layout: of the batch.
        """
        return attend_cells(q_THD, k_THD, v_THD, layout, self._attend)

    def _attend(self, q_HnD: Tensor, k_HnD: Tensor, v_HnD: Tensor) -> Tensor:
        queries, keys = self._exponents(q_HnD), self._exponents(k_HnD)
        queries = (queries - queries.amax(-1, keepdim=True)).exp()
        keys = (keys - keys.amax((-2, -1), keepdim=True)).exp()
        mixed = queries @ (keys.transpose(-2, -1) @ v_HnD)
        total = queries @ keys.sum(-2)[..., None]
        return mixed / total.clamp(min=torch.finfo(total.dtype).tiny)

    def _exponents(self, x_HnD: Tensor) -> Tensor:
        """Return w x' - |x'|^2 / 2 with x' = x / D^(1/4), [H, n, features]."""
        scaled = x_HnD * x_HnD.shape[-1] ** -0.25
        return scaled @ self.features.T.to(x_HnD.dtype) - scaled.square().sum(-1, keepdim=True) / 2
